"""What `plan` and `tune` are asked: the machines, and what is known about them. The recipe's own options follow as usual."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.strict import LONG_S, Count, Machines, StrictModel, Whole
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.cost.assumptions import Assumptions, Range, read_assumptions
from vmae2_ds.cost.cluster import CPU_KEY, Cluster, make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.this_cpu import CPU_ASSUMPTIONS, this_cpu
from vmae2_ds.tune.workload import Planned

Given = Annotated[float, Field(ge=1e-3, le=1e6)] | None
"""An amount that the command line may say: GiB, Gbit/s, cores."""
HYBRID_VIDEOS = 1_348_000
"""Clips of UnlabeledHybrid, which the *_hybrid recipes are made for (docs/PAPER.md#data)."""
THUMOS14_VIDEOS = 200
"""Videos of THUMOS14 that are trained on, its validation set with actions in time (docs/PAPER.md#temporal-adapters)."""


class PlanArguments(StrictModel):
    """Predict batch, memory, time and cost of a recipe on these machines; options of the recipe may follow.

    `vmae2 pretrain --help`, `vmae2 tad --help` and `vmae2 ava --help` list the recipes, `vmae2 pretrain RECIPE --help` their
    options.

    Example: vmae2 plan vit_g_pretrain_hybrid --gpus 64 --gpu a100-80g --train.micro-batch 16
    """

    gpus: Machines
    """Number of GPUs, which is the number of ranks."""
    gpu: str
    """Type of GPU: a name from the built-in table (a100-80g, h100, rtx-4090, ...), the name torch reports, a JSON file, or
    cpu for this machine."""
    nodes: Machines | None = None
    """Number of nodes that the GPUs are spread over; default: one node for every 8 GPUs."""
    memory: Given = None
    """Usable memory of each GPU in GiB; default: 98.5 % of its nominal memory."""
    network_gbit: Given = None
    """Network bandwidth per GPU in Gbit/s, one way: that of the node divided by its GPUs; default: 200, with bounds of 50
    and 400."""
    cores_per_gpu: Given = None
    """CPU cores that read data for each GPU; default: 12, with bounds of 8 and 16."""
    host_memory: Given = None
    """Host memory per GPU in GiB, for offload; default: 128, with bounds of 64 and 256."""
    videos: Count | None = None
    """Number of videos in the data set, or of key frames for spatial detection; default: counted in --data.manifest,
    --data.annotations or --data.truth, or 1,348,000 for the hybrid recipes and 200 for those of THUMOS14."""
    gpu_hour_price: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Price of one GPU for an hour, in any currency: what the run costs is then told. No prices are built in, as they age."""
    calibration: Path | None = None
    """JSON file of assumptions (efficiencies, overheads), as `vmae2 tune --measure` writes it; default: built-in
    estimates."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""


class TuneArguments(PlanArguments):
    """Find the fastest ZeRO policy and micro batch for a recipe on these machines; options of the recipe may follow.

    `vmae2 pretrain --help` lists the recipes, `vmae2 pretrain RECIPE --help` their options.

    Example: vmae2 tune vit_g_pretrain_hybrid --gpus 8 --gpu rtx-4090 --out g.json --model.attention sdpa
    """

    out: Path = Path("ds_config.json")
    """File that the chosen DeepSpeed configuration is written to."""
    quantized: bool = False
    """Also try ZeRO++ with quantised weights and gradients, which lowers traffic and changes training slightly."""
    offload: bool = True
    """Also try keeping optimizer states, and weights, in host memory."""
    measure: Whole = 0
    """Run this many of the best settings for a few steps on the available GPUs and refit the assumptions to the times
    measured; 0 only predicts."""
    hostfile: Path | None = None
    """DeepSpeed hostfile for --measure; default: the GPUs of this machine."""
    measure_timeout: float = Field(900, ge=1, le=LONG_S)
    """Seconds after which the measurement of one setting is given up."""


def assumptions_of(arguments: PlanArguments) -> Assumptions:
    """Priors or calibration, with what the command line says put in. Raises ConfigError."""
    assumptions = read_assumptions(arguments.calibration)
    if arguments.calibration is None and arguments.gpu == CPU_KEY:
        assumptions = CPU_ASSUMPTIONS
    said = {
        "network_gb_s": None if arguments.network_gbit is None else arguments.network_gbit / 8,
        "cores_per_gpu": arguments.cores_per_gpu,
        "host_memory_gib": arguments.host_memory,
    }
    exact = {name: Range(low=value, value=value, high=value) for name, value in said.items() if value is not None}
    return assumptions.model_copy(update=exact)


def cluster_of(arguments: PlanArguments, assumptions: Assumptions) -> Cluster:
    """The machines asked for. Raises ConfigError."""
    gpu = this_cpu(arguments.gpus) if arguments.gpu == CPU_KEY else get_accelerator(arguments.gpu)
    return make_cluster(gpu, arguments.gpus, arguments.nodes, arguments.memory, assumptions.usable_memory)


def count_videos(arguments: PlanArguments, config: Planned) -> tuple[int, str]:
    """Videos in the data set, and where the number comes from. Raises ConfigError where nobody says."""
    if arguments.videos is not None:
        held = config.data.hold_back if isinstance(config, PretrainConfig) else 0.0
        return round(arguments.videos * (1 - held)), f"--videos, {held:.1%} of them held back" if held else "--videos"
    if isinstance(config, TadConfig):
        return _count_annotated(config)
    if isinstance(config, AvaConfig):
        return _count_key_frames(config)
    if config.data.manifest is not None or config.data.mixture is not None:
        mixture = open_mixture(config.data)
        return mixture.num_videos, mixture.name
    if config.recipe.endswith(("_hybrid", "_plan")):
        return HYBRID_VIDEOS, "UnlabeledHybrid"
    raise ConfigError(f"how many videos? recipe {config.recipe} names none: give --videos N or --data.manifest FILE")


def _count_annotated(config: TadConfig) -> tuple[int, str]:
    """Videos with actions to learn, as the annotations list them."""
    if config.data.annotations is not None:
        from vmae2_ds.downstream.tad.videos import training_videos

        return len(training_videos(config.data)), str(config.data.annotations)
    if config.recipe.startswith("thumos14"):
        return THUMOS14_VIDEOS, "THUMOS14"
    raise ConfigError(f"how many videos? recipe {config.recipe} names none: give --videos N or --data.annotations FILE")


def _count_key_frames(config: AvaConfig) -> tuple[int, str]:
    """Key frames to learn from: a clip each."""
    data = config.data
    if data.truth and data.label_map is not None:
        from vmae2_ds.downstream.ava.videos import training_frames

        return len(training_frames(config)), " and ".join(map(str, data.truth))
    raise ConfigError(
        f"how many key frames? recipe {config.recipe} names none: give --videos N or --data.truth FILE --data.label-map FILE"
    )
