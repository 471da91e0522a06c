"""Whether the closed form of a step's time, its rates fitted to ViT-S alone, tells how long other sizes take."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks.harness import Step, Variant, paired_ratio, rows_of, time_interleaved
from benchmarks.record import provenance
from benchmarks.steps import MASKS, Precision, _update, geometry_of, our_step, step_flops
from vmae2_ds.config import ModelConfig, TowerConfig
from vmae2_ds.cost.compute_time import (
    ATTENTION_PRODUCTS,
    DeviceRates,
    Observation,
    Work,
    fit_rates,
    micro_step_work,
    optimizer_work,
    time_of,
)
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.traffic import (
    SIDES,
    AttentionKind,
    Side,
    block_traffic,
    score_traffic,
    widths_of,
)
from vmae2_ds.masking import count_masks
from vmae2_ds.model.attention import get_attention
from vmae2_ds.train.peak import DTYPES

if TYPE_CHECKING:
    from benchmarks.cases import Options

CALIBRATED = "small"
"""The one size that the rates are fitted to."""
ATTENTION: dict[Precision, AttentionKind] = {"bf16": "math", "fp32": "sdpa"}
"""Fixed, so that the closed form knows what runs: on a CPU the faster one for most shapes."""
WITHIN = 0.15
"""The bar: |predicted / measured - 1| of a whole step."""


def prediction(options: Options, tell: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """Step time of other sizes from rates fitted to ViT-S: predicted against measured, whole steps with the optimizer."""
    allocator = _keep_freed_memory()
    sizes = tuple(dict.fromkeys(("tiny", CALIBRATED, *options.sizes)))
    for precision in options.precisions:
        parts = _parts(precision, options.batch_size)
        steps = [_step(size, mask, precision, options.batch_size) for size in sizes for mask in MASKS]
        variants = [variant for variant, _ in parts + steps]
        works = {variant.name: work for variant, work in parts + steps}
        timings = time_interleaved(variants, options.rounds, options.warmup, tell=tell)
        shared = {"clock": "process_time", "rounds": options.rounds, "warmup": options.warmup}
        shared |= {"allocator": allocator, **provenance()}
        rows = rows_of("prediction", variants, timings, None, shared)
        measured = {row["variant"]: row["time_s"]["median"] for row in rows if not row["error"]}
        of_size = {variant.name for variant in variants if variant.config["size"] == CALIBRATED}
        calibration = [name for name in measured if name in of_size]
        rates = fit_rates([Observation(works[name], measured[name]) for name in calibration])
        for row in rows:
            row |= _comparison(row, works[row["variant"]], rates, calibrated=row["variant"] in of_size)
        for line in _summary(precision, rows, rates):
            tell(line)
        yield rows


def _keep_freed_memory() -> str:
    """Let glibc keep what is freed instead of giving it back to the system, for this process from here on.

    It gives every tensor above 32 MiB back, and the next one of that size pays a page fault for each 4 KiB: 18 % of the
    CPU time of a ViT-B encoder-only step at batch 2, whose scores take 59 MB, and 13 % of a ViT-S dual step. That belongs to
    neither the model nor the device, and jumps with the shapes.
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1) and mallopt(m_top_pad, 2**28):
        return "glibc, freed memory kept (mallopt M_MMAP_MAX=0, M_TRIM_THRESHOLD and M_TOP_PAD large)"
    return "as it comes"


def _comparison(row: dict[str, Any], work: Work, rates: DeviceRates, *, calibrated: bool) -> dict[str, Any]:
    """What a row gets beside the measurement: the closed form's time by kind, and how far it is from the measured one."""
    predicted = time_of(work, rates)
    added: dict[str, Any] = {
        "calibration": calibrated,
        "work": asdict(work),
        "rates": asdict(rates),
        "predicted_s": {"total": predicted.total_s, **asdict(predicted)},
    }
    if row["samples_s"]:
        ratios = paired_ratio([predicted.total_s] * len(row["samples_s"]), row["samples_s"])
        added["residual"] = {
            "median": predicted.total_s / row["time_s"]["median"] - 1,
            "low": ratios.low - 1,
            "high": ratios.high - 1,
        }
    return added


def _summary(precision: str, rows: Sequence[dict[str, Any]], rates: DeviceRates) -> Iterator[str]:
    yield (
        f"{precision}: linear {rates.linear_flops / 1e9:.0f} GFLOP/s, attention {rates.attention_flops / 1e9:.0f} GFLOP/s, "
        f"memory {rates.memory_bytes / 1e9:.1f} GB/s, scores {rates.score_bytes / 1e9:.1f} GB/s, "
        f"optimizer {rates.optimizer_bytes / 1e9:.1f} GB/s, {rates.kernel_s * 1e6:.1f} us an operation"
    )
    for row in rows:
        if not row["error"]:
            kind = "fitted   " if row["calibration"] else "predicted"
            yield (
                f"{row['variant']:28} measured {row['time_s']['median']:.3f} s, {kind} {row['predicted_s']['total']:.3f} s, "
                f"residual {row['residual']['median']:+.1%}"
            )
    foreign = [abs(row["residual"]["median"]) for row in rows if not row["error"] and not row["calibration"]]
    if foreign:
        met = sum(error <= WITHIN for error in foreign)
        yield f"{precision}: {met} of {len(foreign)} steps of other sizes within {WITHIN:.0%}, worst {max(foreign):.1%}"


Known = tuple[Variant, Work]
"""What is timed, and what the closed form says that it does."""


def _step(size: str, mask_name: str, precision: Precision, batch_size: int) -> Known:
    """A whole training step with the optimizer."""
    model, geometry, kind = ModelConfig.of_size(size), geometry_of(size), ATTENTION[precision]
    counts = count_masks(MASKS[mask_name], geometry)
    config = {
        "package": "vmae2_ds", "size": size, "mask": mask_name, "precision": precision, "batch_size": batch_size,
        "clip": [geometry.num_frames, geometry.height, geometry.width], "visible": counts.visible,
        "decode": counts.decode, "attention_encoder": kind, "attention_decoder": kind,
        "optimizer": "fused AdamW" + ", float32 masters" * (precision == "bf16"),
    }  # fmt: skip
    build = partial(our_step, size, MASKS[mask_name], precision, batch_size, (kind, kind))
    variant = Variant(f"{size}_{mask_name}_{precision}", build, config, step_flops(size, MASKS[mask_name], batch_size))
    work = micro_step_work(
        model, geometry, counts.visible, counts.decode, batch_size, attention=kind, precision=precision
    )
    return variant, work + optimizer_work(count_parameters(model).total, precision)


def _parts(precision: Precision, batch_size: int) -> list[Known]:
    """What tells the rates apart, at ViT-S's shapes under dual masking: linear layers, attention and optimizer alone."""
    model, geometry = ModelConfig.of_size(CALIBRATED), geometry_of(CALIBRATED)
    counts = count_masks(MASKS["dual"], geometry)
    config = {"size": CALIBRATED, "precision": precision, "batch_size": batch_size, "attention": ATTENTION[precision]}
    parts: list[Known] = []
    for side, tower, tokens in zip(
        SIDES, (model.encoder, model.decoder), (counts.visible, counts.visible + counts.decode), strict=True
    ):
        width, mlp = tower.width, tower.mlp
        shapes = [(width, 3 * width), (width, width), (width, mlp), (mlp, width)]
        clip_tokens = batch_size * tokens
        linear = Work(
            linear_flops=6 * clip_tokens * tower.depth * sum(fan_in * fan_out for fan_in, fan_out in shapes),
            kernels=3 * tower.depth * len(shapes),
        )
        build = partial(_linear_layers, clip_tokens, shapes, tower.depth, precision)
        parts.append((Variant(f"linear_{side}_{precision}", build, config, linear.linear_flops), linear))
        attend = _attention_work(tower, tokens, side, precision, batch_size)
        shape = (batch_size, tokens, 3, tower.heads, tower.width // tower.heads)
        build = partial(_attention_layers, shape, tower.depth, precision)
        parts.append((Variant(f"attention_{side}_{precision}", build, config, attend.attention_flops), attend))
    update = optimizer_work(count_parameters(model).total, precision)
    if ATTENTION[precision] == "math":
        for mask in ("dual", "encoder_only"):
            tokens = sum(count_masks(MASKS[mask], geometry)[:2])
            parts.append(_softmax_alone(f"softmax_{mask}", model.decoder, tokens, precision, batch_size, config))
    norms = 200
    launches = Variant(f"launches_{precision}", partial(_small_operations, norms, precision), config)
    parts.append((launches, Work(kernels=2 * norms)))
    optimizer = Variant(f"optimizer_{precision}", partial(_optimizer_step, model, precision), config)
    return [*parts, (optimizer, update)]


def _softmax_alone(
    name: str, tower: TowerConfig, tokens: int, precision: Precision, batch_size: int, config: dict[str, Any]
) -> Known:
    """Softmax and its backward pass: scores without products."""
    size = DTYPES[precision].itemsize
    work = Work(score_bytes=tower.depth * batch_size * tower.heads * tokens**2 * 5 * size, kernels=2 * tower.depth)
    build = partial(_softmax_layers, (batch_size, tower.heads, tokens, tokens), tower.depth, precision)
    return Variant(f"{name}_{precision}", build, config), work


def _attention_work(tower: TowerConfig, tokens: int, side: Side, precision: Precision, batch_size: int) -> Work:
    """Attention alone: its products, its scores, and what of a block's traffic is the layout of q, k and v."""
    kind, widths = ATTENTION[precision], widths_of(precision, side)
    layout = sum(block_traffic(tower, tokens, kind, widths)) - sum(block_traffic(tower, tokens, "flash", widths))
    layers = batch_size * tower.depth
    return Work(
        attention_flops=layers * sum(ATTENTION_PRODUCTS[kind]) * 2 * tokens * tokens * tower.width,
        memory_bytes=layers * layout,
        score_bytes=layers * sum(score_traffic(tower, tokens, kind, widths)),
        kernels=tower.depth * {"math": 15, "sdpa": 4, "flash": 2}[kind],
    )


def _linear_layers(tokens: int, shapes: Sequence[tuple[int, int]], depth: int, precision: Precision) -> Step:
    """Forward and backward of a tower's linear layers, each with its own weights as in the model, one after another."""
    dtype = DTYPES[precision]
    layers = [nn.Linear(width, out, bias=False, dtype=dtype) for _ in range(depth) for width, out in shapes]
    inputs = {width: torch.randn(tokens, width).to(dtype).requires_grad_() for width, _ in shapes}
    gradients = {out: torch.randn(tokens, out).to(dtype) for _, out in shapes}

    def step() -> None:
        for layer in layers:
            layer(inputs[layer.in_features]).backward(gradients[layer.out_features])
            layer.weight.grad = inputs[layer.in_features].grad = None

    return step


def _attention_layers(shape_BN3HK: tuple[int, ...], depth: int, precision: Precision) -> Step:
    """Forward and backward of a tower's attention kernels."""
    attend = get_attention(ATTENTION[precision])
    qkv_BN3HK = torch.randn(shape_BN3HK).to(DTYPES[precision]).requires_grad_()
    gradient_BND = torch.randn(*shape_BN3HK[:2], shape_BN3HK[3] * shape_BN3HK[4]).to(DTYPES[precision])

    def step() -> None:
        for _ in range(depth):
            attend(qkv_BN3HK).flatten(-2).backward(gradient_BND)
            qkv_BN3HK.grad = None

    return step


def _softmax_layers(shape_BHNN: tuple[int, ...], depth: int, precision: Precision) -> Step:
    """Softmax over scores, forward and backward."""
    scores_BHNN = torch.randn(shape_BHNN).to(DTYPES[precision]).requires_grad_()
    gradient_BHNN = torch.randn(shape_BHNN).to(DTYPES[precision])

    def step() -> None:
        for _ in range(depth):
            scores_BHNN.softmax(dim=-1).backward(gradient_BHNN)
            scores_BHNN.grad = None

    return step


def _small_operations(count: int, precision: Precision) -> Step:
    """Norms of a single token, forward and backward: what it costs to start an operation."""
    width = ModelConfig.of_size(CALIBRATED).encoder.width
    token = torch.randn(1, width).to(DTYPES[precision]).requires_grad_()
    norm = nn.LayerNorm(width, dtype=DTYPES[precision])
    gradient = torch.randn_like(token)

    def step() -> None:
        for _ in range(count):
            norm(token).backward(gradient)
        token.grad = norm.weight.grad = norm.bias.grad = None

    return step


def _optimizer_step(model: ModelConfig, precision: Precision) -> Step:
    """AdamW over as many parameters, in pieces of a block's largest weight as the model's are."""
    total, piece = count_parameters(model).total, model.encoder.width * model.encoder.mlp
    sizes = [piece] * (total // piece) + [total % piece]
    parameters = [nn.Parameter(torch.randn(size).to(DTYPES[precision])) for size in sizes]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    update = _update(parameters, masters=precision == "bf16")

    def step() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        update()

    return step
