"""What `plan` and `tune` are asked: the machines, and what is known about them. The recipe's own options follow as usual."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from vmae2_ds.config.pretrain import PretrainConfig, StrictModel
from vmae2_ds.config.strict import LONG_S, Count, Whole
from vmae2_ds.cost.assumptions import Assumptions, Range, read_assumptions
from vmae2_ds.cost.cluster import CPU_KEY, Cluster, make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.this_cpu import CPU_ASSUMPTIONS, this_cpu

Ranks = Annotated[int, Field(ge=1, le=10**6)]
"""GPUs, or the machines they are in."""
Given = Annotated[float, Field(ge=1e-3, le=1e6)] | None
"""An amount that the command line may say: GiB, Gbit/s, cores."""
HYBRID_VIDEOS = 1_348_000
"""Clips of UnlabeledHybrid, which the *_hybrid recipes are made for (PAPER A6)."""


class PlanArguments(StrictModel):
    """What a run will be on these machines. `vmae2 pretrain --help` lists the recipes; their options may follow.

    Example: vmae2 plan vit_g_pretrain_hybrid --gpus 64 --gpu a100-80g --train.micro-batch 16
    """

    gpus: Ranks
    """GPUs in all (ranks)."""
    gpu: str
    """A key of the table (a100-80g, h100, rtx-4090, ...), a name as torch gives it, a JSON file, or cpu for this machine."""
    nodes: Ranks | None = None
    """Nodes the GPUs are spread over; default: 8 GPUs a node."""
    memory: Given = None
    """GiB of each GPU that may be used; default: 98.5 % of what it has."""
    network_gbit: Given = None
    """Network of one GPU, one way: its node's bandwidth over the node's GPUs, in Gbit/s; default: 50 to 400, expected 200."""
    cores_per_gpu: Given = None
    """CPU cores that read data for one GPU; default: 8 to 16, expected 12."""
    host_memory: Given = None
    """GiB of host memory for one GPU, for offload; default: 64 to 256, expected 128."""
    videos: Count | None = None
    """Videos in the data set; default: counted in --data.manifest, or 1,348,000 for the hybrid recipes."""
    calibration: Path | None = None
    """Assumptions as JSON, such as `tune --measure` writes."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class TuneArguments(PlanArguments):
    """The fastest way to lay out a recipe on these machines. `vmae2 pretrain --help` lists them; their options may follow.

    Example: vmae2 tune vit_g_pretrain_hybrid --gpus 8 --gpu rtx-4090 --out g.json --model.attention sdpa
    """

    out: Path = Path("ds_config.json")
    """Where the chosen ds_config is written."""
    quantized: bool = False
    """Also ZeRO++ with quantised weights and gradients: less traffic, and not quite the same training."""
    offload: bool = True
    """Also optimizer states, and weights, in host memory."""
    measure: Whole = 0
    """Run the best so many settings for a few steps on the GPUs at hand, and refit the assumptions."""
    hostfile: Path | None = None
    """DeepSpeed hostfile for --measure; default: the GPUs of this machine."""
    measure_timeout: float = Field(900, ge=1, le=LONG_S)
    """Seconds after which a measured setting is given up."""


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


def count_videos(arguments: PlanArguments, config: PretrainConfig) -> tuple[int, str]:
    """Videos in the data set, and where the number comes from. Raises ConfigError where nobody says."""
    if arguments.videos is not None:
        return arguments.videos, "--videos"
    if config.data.manifest is not None or config.data.mixture is not None:
        mixture = open_mixture(config.data)
        return mixture.num_videos, mixture.name
    if config.recipe.endswith(("_hybrid", "_plan")):
        return HYBRID_VIDEOS, "UnlabeledHybrid, PAPER A6"
    raise ConfigError(f"how many videos? recipe {config.recipe} names none: give --videos N or --data.manifest FILE")
