"""`vmae2 memory`: activations per clip by kernel, precision and checkpointing, and what a GPU holds under each ZeRO policy."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, TypedDict

import tyro

from vmae2_ds.config.ds_config import policy_names, read_policy
from vmae2_ds.config.model import CheckpointingName, ModelConfig, SizeName
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.config.strict import ClipLength, Count, Edge, Machines, StrictModel
from vmae2_ds.console.tables import table
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.activations import Activations, mae_activations
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.states import state_bytes
from vmae2_ds.cost.traffic import AttentionKind, ComputePrecision
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import MaskCounts
from vmae2_ds.tune.flops_table import PUBLISHED_MASK, token_sets
from vmae2_ds.tune.setting_cost import GIB, GpuMemory, add_up
from vmae2_ds.tune.tables import scaled

MIB = 2**20
KERNELS: tuple[AttentionKind, ...] = ("math", "flash")
PRECISIONS: tuple[ComputePrecision, ...] = ("bf16", "fp32", "autocast")
MODES: tuple[CheckpointingName, ...] = ("none", "decoder", "every_k", "all")


class Subject(NamedTuple):
    """What is asked about."""

    model: ModelConfig
    geometry: ClipGeometry
    counts: dict[str, MaskCounts]
    """Mask counts by token set: encoder_only, dual and, where the mask allows it, dual_disjoint."""

    def activations(
        self, tokens: str, kernel: AttentionKind, precision: ComputePrecision, mode: CheckpointingName | None = None
    ) -> Activations:
        """One clip's; `mode` instead of the model's own checkpointing."""
        model = self.model if mode is None else self.model.model_copy(update={"checkpointing": mode})
        visible, decode, _ = self.counts[tokens]
        return mae_activations(model, self.geometry, visible, decode, attention=kernel, precision=precision)

    def published_peak(self, tokens: str) -> int:
        """One clip's in the published training loop: autocast, scores held, nothing recomputed."""
        model = self.model.model_copy(update={"checkpointing": "none"})
        visible, decode, _ = self.counts[tokens]
        return mae_activations(
            model, self.geometry, visible, decode, attention="math", precision="autocast", published_loop=True
        ).peak


class MemoryArguments(StrictModel):
    """What one GPU holds: activations of a clip, and states, buffers and the rest under a ZeRO policy.

    Activations are counted as autograd saves them in this package's modules, when the forward pass ends ("held") and at the
    worst moment of the backward pass ("peak"); states and buffers as DeepSpeed allocates them. Context, workspaces and
    fragmentation are assumptions: `vmae2 plan` prints them with their bounds.
    """

    model: SizeName = "base"
    """Size of the model."""
    num_frames: ClipLength = 16
    """Number of frames in a clip."""
    size: Edge = 224
    """Height and width of a clip in pixels."""
    mask: MaskConfig = PUBLISHED_MASK
    """Masks of encoder and decoder."""
    attention: Literal["math", "flash"] = "flash"
    """How attention is computed. math: every score is kept in memory; flash: a fused kernel (flash_attn, sdpa)."""
    precision: ComputePrecision = "bf16"
    """Number format. bf16: as this package trains; fp32; autocast: as the paper trained, float32 weights and half
    precision products."""
    checkpointing: CheckpointingName = "none"
    """Which blocks compute their activations again in the backward pass instead of keeping them."""
    checkpoint_every: Count = 2
    """With --checkpointing every_k: one block in this many is computed again."""
    gpus: Machines = 8
    """Number of GPUs (ranks) that ZeRO divides the states over."""
    clips: Count = 32
    """Number of clips on one GPU in a micro step (micro batch x views)."""
    accumulation: Count = 1
    """Number of micro steps in an optimizer step."""
    ds_config: str = "zero1"
    """ZeRO policy: a built-in name (zero1, zero2, zero3, zero3_offload, ...) or a DeepSpeed JSON file."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""


class MemoryTable(TypedDict):
    """What `--json` prints. Token sets are those of `Subject.counts`."""

    model: SizeName
    clip: list[int]
    """Frames, height, width."""
    params: int
    attention: AttentionKind
    precision: ComputePrecision
    checkpointing: CheckpointingName
    activation_mib_per_sample: dict[str, float]
    """Activations in MiB when the forward pass ends, by token set."""
    activation_peak_mib_per_sample: dict[str, float]
    """Activations in MiB at the worst moment of the backward pass, by token set."""
    activation_mib_per_sample_of: dict[str, dict[str, dict[str, float]]]
    """Activations in MiB by "attention, precision, recomputed"; then held or peak; then token set."""
    published_loop_peak_mib: dict[str, float]
    gpus: int
    clips: int
    accumulation: int
    ds_config: str
    per_gpu_gib: dict[str, float]
    """Memory of one GPU in GiB by what holds it, under the policy asked for."""
    per_gpu_gib_of: dict[str, dict[str, float]]
    """Memory of one GPU in GiB by policy and what holds it."""


def memory(asked: MemoryArguments) -> MemoryTable:
    """Count what one GPU holds, under each ZeRO policy. Raises ConfigError where clip, mask or policy do not fit."""
    config = ModelConfig.of_size(
        asked.model, checkpointing=asked.checkpointing, checkpoint_every=asked.checkpoint_every
    )
    geometry = ClipGeometry(asked.num_frames, asked.size, asked.size, config.tubelet, config.patch)
    counts = {name: chosen.counts for name, chosen in token_sets(asked.mask, geometry).items() if chosen is not None}
    counts.pop("dual_visible_embed")  # holds what dual holds: all cubes are embedded for the published count only
    subject = Subject(config, geometry, counts)

    def gpu_memory(policy: ZeroPolicy) -> GpuMemory:
        states = state_bytes(
            config,
            policy.on(asked.gpus),
            asked.gpus,
            precision="bf16" if asked.precision == "bf16" else "fp32",
            accumulation=asked.accumulation,
        )
        return add_up(
            states, asked.clips * subject.activations("dual", asked.attention, asked.precision).peak, Assumptions()
        )

    policies = {name: ZeroPolicy.of_ds_config(read_policy(name)) for name in policy_names() if name != "cpu"}
    policies = {name: policy for name, policy in policies.items() if asked.gpus % min(policy.hpz, asked.gpus) == 0}
    policies |= {f"DeepSpeed's defaults, stage {stage}": _defaults(stage) for stage in (1, 2, 3)}
    if asked.precision == "bf16":
        del policies["zero0"]
    chosen = ZeroPolicy.of_ds_config(read_policy(asked.ds_config))
    if chosen.stage == 0 and asked.precision == "bf16":
        raise ConfigError(
            "bf16 with ZeRO stage 0 is refused (--train.ds-config says why); use zero1, or --precision fp32"
        )
    return {
        "model": asked.model,
        "clip": [asked.num_frames, asked.size, asked.size],
        "params": count_parameters(config).total,
        "attention": asked.attention,
        "precision": asked.precision,
        "checkpointing": asked.checkpointing,
        "activation_mib_per_sample": {
            name: subject.activations(name, asked.attention, asked.precision).held / MIB for name in counts
        },
        "activation_peak_mib_per_sample": {
            name: subject.activations(name, asked.attention, asked.precision).peak / MIB for name in counts
        },
        "activation_mib_per_sample_of": {
            f"{kernel}, {number}, {mode}": {
                kind: {name: getattr(subject.activations(name, kernel, number, mode), kind) / MIB for name in counts}
                for kind in ("held", "peak")
            }
            for kernel in KERNELS
            for number in PRECISIONS
            for mode in MODES
        },
        "published_loop_peak_mib": {name: subject.published_peak(name) / MIB for name in ("encoder_only", "dual")},
        "gpus": asked.gpus,
        "clips": asked.clips,
        "accumulation": asked.accumulation,
        "ds_config": asked.ds_config,
        "per_gpu_gib": _in_gib(gpu_memory(chosen)),
        "per_gpu_gib_of": {name: _in_gib(gpu_memory(policy)) for name, policy in policies.items()},
    }


def _defaults(stage: int) -> ZeroPolicy:
    return ZeroPolicy.of_ds_config({"zero_optimization": {"stage": stage}})


def _in_gib(memory: GpuMemory) -> dict[str, float]:
    parts = {part: value / GIB for part, value in memory.parts.items()}
    return parts | {"total": memory.total_gib, "host": memory.host_gib}


def _on_the_paper(found: MemoryTable) -> str:
    """Why the published saving is not what a fused kernel saves."""
    before = found["published_loop_peak_mib"]
    held = found["activation_mib_per_sample_of"]["flash, bf16, none"]["held"]
    return (
        f"The published loop (autocast, scores in memory) takes {before['encoder_only']:.0f} MiB a clip encoder-only and "
        f"{before['dual']:.0f} dual: {before['encoder_only'] / before['dual']:.2f} times less. Most of that saving is scores:\n"
        f"with a fused kernel in bf16 it is {held['encoder_only']:.0f} against {held['dual']:.0f}, "
        f"{held['encoder_only'] / held['dual']:.2f} times less, and encoder-only alone has fallen "
        f"{before['encoder_only'] / held['encoder_only']:.1f}-fold."
    )


def describe_memory(found: MemoryTable) -> str:
    """The tables that are printed without `--json`."""
    names = list(found["activation_mib_per_sample"])
    rows = []
    for key, of in found["activation_mib_per_sample_of"].items():
        held, peak = of["held"], of["peak"]
        ratio = f"{held['encoder_only'] / held['dual']:.2f}"
        rows.append([key, *(f"{held[name]:.1f}" for name in names), ratio, *(f"{peak[name]:.1f}" for name in names)])
    header = ["attention, precision, recomputed", *(f"{name} held" for name in names), "ratio"]
    header += [f"{name} peak" for name in names]
    states = found["per_gpu_gib_of"]
    parts = list(found["per_gpu_gib"])
    frames, height, width = found["clip"]
    title = (
        f"GiB of one of {found['gpus']} GPUs, {found['clips']} clips, {found['attention']} attention, {found['precision']}, "
        f"recompute {found['checkpointing']}, accumulation {found['accumulation']}"
    )
    policies = [[name, *(f"{of[part]:.2f}" for part in parts)] for name, of in states.items()]
    if found["ds_config"] not in states:
        policies.append([found["ds_config"], *(f"{value:.2f}" for value in found["per_gpu_gib"].values())])
    return "\n\n".join(
        [
            f"ViT {found['model']}, {scaled(found['params'])} parameters, clip {frames}x{height}x{width}",
            table("Activations of one clip, MiB", header, rows),
            table(title, ["policy", *parts], policies),
            _on_the_paper(found),
            "held: when the forward pass ends; peak: at the worst moment of the backward pass, which is what has to fit.",
        ]
    )
