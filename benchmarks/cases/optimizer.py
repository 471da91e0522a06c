"""AdamW over the parameters of each size: torch's three ways and DeepSpeed's for the CPU, with and without float32 masters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.devices import Step
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import LEARNING_RATE, SEED, Precision, geometry_of, optimizer_step
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.cost.compute_time import OPTIMIZER_BYTES
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.model.mae import MaskedAutoencoder

BASE = "one_by_one"
SETTINGS = {"lr": LEARNING_RATE, "weight_decay": 0.01}
IN_PLACE_BYTES = 14
"""Per parameter of fused AdamW in bf16 alone: weight, gradient and two moments read, all but the gradient written."""
MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]

TORCH_WAYS: dict[str, MakeOptimizer] = {
    "one_by_one": partial(torch.optim.AdamW, foreach=False, fused=False, **SETTINGS),  # type: ignore[arg-type]
    "foreach": partial(torch.optim.AdamW, foreach=True, **SETTINGS),  # type: ignore[arg-type]
    "fused": partial(torch.optim.AdamW, fused=True, **SETTINGS),  # type: ignore[arg-type]
}


def groups(bench: Bench) -> Iterator[Group]:
    """By size and precision of the weights."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            yield Group(f"{size} {precision}", partial(measure, bench, size, precision))


def measure(bench: Bench, size: str, precision: Precision) -> list[Row]:
    """`values`: parameters a second, and bytes a second as if each array were passed over once (cost.compute_time).

    16-bit weights keep float32 masters, as a run does; `fused, no masters` is what those cost (it also loses small updates).
    DeepSpeed's CPUAdam takes part on a CPU alone, because under offload it runs on the host; and with `quick` only where it
    is built already: compiling it takes about a minute.
    """
    shapes = parameter_shapes(size)
    total = sum(shape.numel() for shape in shapes)
    masters = precision == "bf16"
    ways = dict(TORCH_WAYS)
    if bench.device.type == "cpu" and (cpu_adam_is_built() or not bench.options.quick):
        ways["deepspeed_cpu_adam"] = cpu_adam
    kinds = [(name, make, masters) for name, make in ways.items()]
    if masters:
        kinds.append(("fused, no masters", TORCH_WAYS["fused"], False))
    variants = []
    for name, make, with_masters in kinds:
        passed = OPTIMIZER_BYTES[precision] if with_masters == masters else IN_PLACE_BYTES
        config = {
            "size": size, "precision": precision, "parameters": total, "tensors": len(shapes), "masters": with_masters,
            "bytes_per_parameter": passed, **SETTINGS,
        }  # fmt: skip
        build = partial(update_step, shapes, precision, bench.device, make, masters=with_masters)
        variants.append(Variant(name, build, config))
    rows = timed(variants, bench, BASE)
    for row in rows:
        if not row["error"]:
            rate = total / row["time_s"]["median"]
            row["values"] = {"parameters_per_s": rate, "bytes_per_s": rate * row["config"]["bytes_per_parameter"]}
            row["kind"] = "measured"
    return rows


def parameter_shapes(size: str) -> list[torch.Size]:
    """Shapes of the model's parameters, in order, without allocating them."""
    with torch.device("meta"):
        model = MaskedAutoencoder(ModelConfig.of_size(size), geometry_of(size), seed=None)
    return [parameter.shape for parameter in model.parameters()]


def make_parameters(
    shapes: Sequence[torch.Size], precision: Precision, device: torch.device
) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """Weights about the size of a trained model's, and gradients: the same at every call."""
    rng = torch.Generator(device).manual_seed(SEED)
    weights, gradients = (
        [torch.randn(shape, generator=rng, device=device).mul_(scale).to(DTYPES[precision]) for shape in shapes]
        for scale in (2e-2, 1e-3)
    )
    return [nn.Parameter(weight) for weight in weights], gradients


def update_step(
    shapes: Sequence[torch.Size], precision: Precision, device: torch.device, make: MakeOptimizer, *, masters: bool
) -> Step:
    """One update of all parameters; the gradients are the same in every call."""
    parameters, gradients = make_parameters(shapes, precision, device)
    update = optimizer_step(parameters, masters, make)

    def step() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        update()

    return step


def cpu_adam(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """DeepSpeed's CPUAdam in its AdamW mode, compiled first where it is not built.

    Raises:
        ImportError: no deepspeed.
        RuntimeError: it cannot be compiled here.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters, **SETTINGS)


def cpu_adam_is_built() -> bool:
    """Was it installed with deepspeed, or compiled on this machine before?"""
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return bool(installed_ops.get("cpu_adam")) or any(root.glob("**/cpu_adam/cpu_adam.so"))


CASE = Case(groups, "AdamW alone: one by one, foreach, fused, float32 masters, DeepSpeed's CPUAdam")
