"""Whether the closed form of a step's time, its rates fitted to ViT-S alone, tells how long other sizes take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.case import USUAL_BATCH, Bench, Case, Group, timed
from benchmarks.devices import Step, keep_freed_memory
from benchmarks.fit_rates import Observation, fit_rates
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, Workbench, fused_adamw, geometry_of, step_config, step_flops
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.cost.compute_time import ATTENTION_PRODUCTS, DeviceRates, Work, micro_step_work, optimizer_work, time_of
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.traffic import (
    AttentionKind,
    Side,
    block_traffic,
    score_traffic,
    widths_of,
)
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.masking import count_masks
from vmae2_ds.model.attention import get_attention

CALIBRATED = "small"
"""The one size that the rates are fitted to."""
ATTENTION: dict[Precision, AttentionKind] = {"bf16": "math", "fp32": "sdpa"}
"""Fixed, so that the closed form knows what runs: on a CPU the faster one for most shapes."""


def groups(bench: Bench) -> Iterator[Group]:
    """By precision, on a CPU: a GPU's rates need other parts to be told apart."""
    if bench.device.type == "cpu":
        for precision in bench.options.precisions:
            yield Group(precision, partial(measure, bench, precision), bench.options.sizes)


def measure(bench: Bench, precision: Precision) -> list[Row]:
    """Parts of a ViT-S step and whole steps of every size, in the same rounds; rates fitted to those of ViT-S."""
    allocator = "freed memory kept" if keep_freed_memory() else "as it comes"
    sizes = tuple(dict.fromkeys(("tiny", CALIBRATED, *bench.options.sizes)))
    known = _parts(precision)
    for size in sizes:
        workbench = Workbench(size, precision, bench.device)
        known += [_step(workbench, name) for name in MASKS]
    works = {variant.name: work for variant, work in known}
    rows = timed([variant for variant, _ in known], bench, memory=False)
    measured = {row["variant"]: row["time_s"]["median"] for row in rows if not row["error"]}
    of_size = {variant.name for variant, _ in known if variant.config["size"] == CALIBRATED}
    rates = fit_rates([Observation(works[name], measured[name]) for name in measured if name in of_size])
    for row in rows:
        row["config"]["allocator"] = allocator
        row |= _comparison(row, works[row["variant"]], rates, calibrated=row["variant"] in of_size)
    return rows


def _comparison(row: Row, work: Work, rates: DeviceRates, *, calibrated: bool) -> Row:
    """What a row gets beside the measurement: the closed form's time by kind, and how far it is from the measured one."""
    predicted = time_of(work, rates)
    source = "closed form, rates fitted to " + ("this row among others" if calibrated else "ViT-S alone")
    added: Row = {
        "calibration": calibrated,
        "work": asdict(work),
        "rates": asdict(rates),
        "predicted": {"time_s": predicted.total_s, "parts_s": asdict(predicted), "source": source},
    }
    if row["samples_s"]:
        added["residual"] = {"time": predicted.total_s / row["time_s"]["median"] - 1}
    return added


Known = tuple[Variant, Work]
"""What is timed, and what the closed form says that it does."""


def _step(workbench: Workbench, mask_name: str) -> Known:
    """A whole training step with the optimizer."""
    size, precision, geometry = workbench.size, workbench.precision, workbench.geometry
    model, kind = ModelConfig.of_size(size), ATTENTION[precision]
    mask, kernels = MASKS[mask_name], (kind, kind)
    counts = count_masks(mask, geometry)
    variant = Variant(
        f"{size}_{mask_name}",
        partial(workbench.step, mask, USUAL_BATCH, kernels),
        step_config(size, mask_name, mask, precision, USUAL_BATCH, kernels),
        step_flops(size, mask, USUAL_BATCH),
    )
    work = micro_step_work(
        model, geometry, counts.visible, counts.decode, USUAL_BATCH, attention=kind, precision=precision
    )
    return variant, work + optimizer_work(count_parameters(model).total, precision)


def _parts(precision: Precision) -> list[Known]:
    """What tells the rates apart, at ViT-S's shapes under dual masking: linear layers, attention and optimizer alone."""
    model, geometry = ModelConfig.of_size(CALIBRATED), geometry_of(CALIBRATED)
    counts = count_masks(MASKS["dual"], geometry)
    config = {"size": CALIBRATED, "precision": precision, "batch_size": USUAL_BATCH, "attention": ATTENTION[precision]}
    parts: list[Known] = []
    for side, tower, tokens in zip(
        ("encoder", "decoder"),
        (model.encoder, model.decoder),
        (counts.visible, counts.visible + counts.decode),
        strict=True,
    ):
        width, mlp = tower.width, tower.mlp
        shapes = [(width, 3 * width), (width, width), (width, mlp), (mlp, width)]
        clip_tokens = USUAL_BATCH * tokens
        linear = Work(
            linear_flops=6 * clip_tokens * tower.depth * sum(fan_in * fan_out for fan_in, fan_out in shapes),
            kernels=3 * tower.depth * len(shapes),
        )
        build = partial(_linear_layers, clip_tokens, shapes, tower.depth, precision)
        parts.append((Variant(f"linear_{side}", build, config, linear.linear_flops), linear))
        attend = _attention_work(tower, tokens, side, precision)
        shape = (USUAL_BATCH, tokens, 3, tower.heads, tower.width // tower.heads)
        build = partial(_attention_layers, shape, tower.depth, precision)
        parts.append((Variant(f"attention_{side}", build, config, attend.attention_flops), attend))
    update = optimizer_work(count_parameters(model).total, precision)
    if ATTENTION[precision] == "math":
        for mask in ("dual", "encoder_only"):
            tokens = sum(count_masks(MASKS[mask], geometry)[:2])
            parts.append(_softmax_alone(f"softmax_{mask}", model.decoder, tokens, precision, config))
    norms = 200
    launches = Variant("launches", partial(_small_operations, norms, precision), config)
    parts.append((launches, Work(kernels=2 * norms)))
    optimizer = Variant("optimizer", partial(_optimizer_step, model, precision), config)
    return [*parts, (optimizer, update)]


def _softmax_alone(name: str, tower: TowerConfig, tokens: int, precision: Precision, config: dict[str, Any]) -> Known:
    """Softmax and its backward pass: scores without products."""
    size = DTYPES[precision].itemsize
    work = Work(score_bytes=tower.depth * USUAL_BATCH * tower.heads * tokens**2 * 5 * size, kernels=2 * tower.depth)
    build = partial(_softmax_layers, (USUAL_BATCH, tower.heads, tokens, tokens), tower.depth, precision)
    return Variant(name, build, config), work


def _attention_work(tower: TowerConfig, tokens: int, side: Side, precision: Precision) -> Work:
    """Attention alone: its products, its scores, and what of a block's traffic is the layout of q, k and v."""
    kind, widths = ATTENTION[precision], widths_of(precision, side)
    layout = sum(block_traffic(tower, tokens, kind, widths)) - sum(block_traffic(tower, tokens, "flash", widths))
    layers = USUAL_BATCH * tower.depth
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
    update = fused_adamw(parameters, masters=precision == "bf16")

    def step() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        update()

    return step


CASE = Case(groups, "step time of other sizes from rates fitted to ViT-S alone: predicted against measured, on a CPU")
