"""Time of a micro step's forward and backward pass and of the optimizer on one device: work over a few device rates.

Each kind of work over its rate, one after another: FLOPs of linear layers and of attention products, bytes of scores, of
everything else in the model and of the optimizer, and the start of every operation. The rates are a datasheet's times an
efficiency (`rates_of`), or are fitted to what was measured on one size (`fit_rates`). How far that carries to other sizes:
`python -m benchmarks run prediction`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import count_parameters, mae_macs, recomputed_macs
from vmae2_ds.cost.hardware import Accelerator, NumberFormat
from vmae2_ds.cost.traffic import (
    AttentionKind,
    ComputePrecision,
    count_kernels,
    mae_traffic,
    recomputed_blocks,
    weight_traffic,
)
from vmae2_ds.errors import ConfigError

TowerAttention = AttentionKind | tuple[AttentionKind, AttentionKind]
"""One kernel for both towers, or the encoder's and the decoder's."""

OPTIMIZER_BYTES: dict[ComputePrecision, int] = {"bf16": 40, "fp32": 28, "autocast": 28}
"""Per parameter of fused AdamW, read + written: weight, gradient and two moments read, all but the gradient written, in
float32 (28); with bf16 the gradient is copied up first (6) and the master copied back after (6)."""

MUON_BYTES: dict[ComputePrecision, int] = {"bf16": 104, "fp32": 92, "autocast": 92}
"""Per parameter of Muon, read + written, without the products: momentum 12, direction 12, decay 8, its negative 8, zeros and
torch's momentum of them 20, to bfloat16, divided and back to float32 20, the update 12; with bf16 as OPTIMIZER_BYTES."""

ATTENTION_PRODUCTS: dict[AttentionKind, tuple[int, int]] = {"math": (2, 4), "sdpa": (2, 5), "flash": (2, 5)}
"""tokens x tokens x width products, forward and backward; kernels that hold no scores compute them again (arXiv 2205.14135)."""

PRODUCT_FORMATS: dict[ComputePrecision, NumberFormat] = {"bf16": "bf16", "fp32": "fp32", "autocast": "fp16"}
"""Peak that counts; fp32 is the plain pipe, as torch leaves TF32 off for matrix products unless --train.tf32 asks for it."""


@dataclass(frozen=True)
class Work:
    """What has to be done, in the units of the rates."""

    linear_flops: float = 0
    attention_flops: float = 0
    memory_bytes: float = 0
    score_bytes: float = 0
    optimizer_bytes: float = 0
    kernels: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class DeviceRates:
    """What one device sustains."""

    linear_flops: float
    """FLOP/s of linear layers."""
    attention_flops: float
    """FLOP/s of the two attention products and their gradients."""
    memory_bytes: float
    """Bytes/s of norms, GELU, additions, layouts, pixels and loss, read + written."""
    score_bytes: float
    """Bytes/s of softmax and of what attention products do with scores held in memory."""
    optimizer_bytes: float
    """Bytes/s of the optimizer, which streams through a few long arrays."""
    kernel_s: float = 0.0
    """Seconds that starting an operation costs and nothing hides; 0 on a GPU whose queue stays full."""


@dataclass(frozen=True)
class ComputeTime:
    """Seconds by kind of work."""

    linear_s: float
    attention_s: float
    elementwise_s: float
    scores_s: float
    optimizer_s: float
    launch_s: float

    @property
    def total_s(self) -> float:
        """All kinds."""
        return sum(astuple(self))


def micro_step_work(
    model: ModelConfig,
    geometry: ClipGeometry,
    visible: int,
    decode: int,
    clips: int,
    *,
    attention: TowerAttention,
    precision: ComputePrecision,
    embed_all: bool = False,
) -> Work:
    """Forward and backward of `clips` clips with `visible` encoder and `decode` mask tokens each, without the optimizer.

    `model.attention` is not read: `attention` says what runs. `embed_all` as `mae_macs`.
    """
    kinds: tuple[AttentionKind, AttentionKind] = (attention, attention) if isinstance(attention, str) else attention
    macs = mae_macs(model, geometry, visible, decode, embed_all=embed_all)
    attention_macs = attention_flops = recomputed_attention = 0
    for tower, tokens, kind, repeated in zip(
        (model.encoder, model.decoder),
        (visible, visible + decode),
        kinds,
        recomputed_blocks(model),
        strict=True,
    ):
        forward, backward = ATTENTION_PRODUCTS[kind]
        product = tokens * tokens * tower.width
        attention_macs += tower.depth * 2 * product
        attention_flops += 2 * product * (tower.depth * (forward + backward) + repeated * forward)
        recomputed_attention += repeated * 2 * product
    linear_macs = macs.total - attention_macs
    recomputed_linear = recomputed_macs(model, visible, decode) - recomputed_attention
    # pixels need no gradient, so the embedding has two products, not three
    linear_flops = 6 * linear_macs - 2 * macs.embed + 2 * recomputed_linear
    traffic = mae_traffic(model, geometry, visible, decode, attention=kinds, precision=precision)
    return Work(
        linear_flops=clips * linear_flops,
        attention_flops=clips * attention_flops,
        memory_bytes=clips * (traffic.ends + traffic.blocks) + weight_traffic(count_parameters(model).total, precision),
        score_bytes=clips * traffic.scores,
        kernels=count_kernels(model, kinds),
    )


def optimizer_work(num_parameters: float, precision: ComputePrecision) -> Work:
    """AdamW over the parameters that this rank holds."""
    return Work(optimizer_bytes=OPTIMIZER_BYTES[precision] * num_parameters)


def time_of(work: Work, rates: DeviceRates) -> ComputeTime:
    """Seconds, kinds of work one after another."""
    return ComputeTime(
        linear_s=work.linear_flops / rates.linear_flops,
        attention_s=work.attention_flops / rates.attention_flops,
        elementwise_s=work.memory_bytes / rates.memory_bytes,
        scores_s=work.score_bytes / rates.score_bytes,
        optimizer_s=work.optimizer_bytes / rates.optimizer_bytes,
        launch_s=work.kernels * rates.kernel_s,
    )


def micro_step_time(
    model: ModelConfig,
    geometry: ClipGeometry,
    visible: int,
    decode: int,
    clips: int,
    rates: DeviceRates,
    *,
    attention: TowerAttention,
    precision: ComputePrecision,
    embed_all: bool = False,
) -> ComputeTime:
    """Seconds of forward and backward, as `micro_step_work`; the optimizer is not in it."""
    work = micro_step_work(
        model, geometry, visible, decode, clips, attention=attention, precision=precision, embed_all=embed_all
    )
    return time_of(work, rates)


def optimizer_time(num_parameters: float, rates: DeviceRates, *, precision: ComputePrecision) -> float:
    """Seconds of AdamW over the parameters that this rank holds."""
    return time_of(optimizer_work(num_parameters, precision), rates).optimizer_s


def muon_time(num_parameters: float, flops: float, rates: DeviceRates, *, precision: ComputePrecision) -> float:
    """Seconds of Muon over the parameters that this rank holds, whose Newton-Schulz takes so many FLOPs.

    They count at the rate of the run's own linear layers, also in fp32, where bfloat16 would be faster.
    """
    work = Work(linear_flops=flops, optimizer_bytes=MUON_BYTES[precision] * num_parameters)
    return time_of(work, rates).total_s


def rates_of(
    accelerator: Accelerator,
    precision: ComputePrecision,
    *,
    matmul_efficiency: float,
    memory_efficiency: float,
    tf32: bool = False,
) -> DeviceRates:
    """Rates of a GPU from its datasheet; operations queue up, so starting them is free. `tf32`: float32 products round to it.

    Raises:
        ConfigError: the device has no such number format.
    """
    number_format: NumberFormat = "tf32" if tf32 else PRODUCT_FORMATS[precision]
    peak = accelerator.peak_flops(number_format)
    if peak is None:
        raise ConfigError(
            f"{accelerator.name} has no {number_format} peak in its datasheet; it has {', '.join(accelerator.peak_tflops)}"
        )
    bandwidth = accelerator.bandwidth_gb_s * 1e9 * memory_efficiency
    return DeviceRates(peak * matmul_efficiency, peak * matmul_efficiency, bandwidth, bandwidth, bandwidth)
