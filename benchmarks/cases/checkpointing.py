"""Activation checkpointing of a whole dual step: what each way of recomputing costs in time and gives back in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.case import Bench, Case, Group, batch_suffix, timed
from benchmarks.devices import measure_memory
from benchmarks.filling import at_batch, planned_batch
from benchmarks.harness import Variant, attempt
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, Workbench, geometry_of, step_config, step_flops, workbench_of
from vmae2_ds.config.model import CheckpointingName, ModelConfig
from vmae2_ds.cost.activations import mae_activations
from vmae2_ds.cost.flops import mae_macs, recomputed_macs, training_flops
from vmae2_ds.cost.traffic import ATTENTION_KINDS
from vmae2_ds.masking import MaskCounts, count_masks

BASE: CheckpointingName = "none"
WAYS: tuple[CheckpointingName, ...] = ("none", "decoder", "every_k", "all")
"""`deepspeed`'s own recomputes what `all` does; it runs inside an engine alone."""
MASK = "dual"


def groups(bench: Bench) -> Iterator[Group]:
    """By size, precision and kernel: math holds scores, which recomputation gives back."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            for attention in bench.attentions(precision):
                plan = partial(planned_batch, size, precision, attention, (MASKS[MASK],))
                for batch in bench.batches:
                    title = f"{size} {precision} {attention}{batch_suffix(batch)}"
                    taken = partial(measure, size=size, precision=precision, attention=attention)
                    yield Group(title, partial(at_batch, bench, batch, plan, taken))


def measure(bench: Bench, size: str, precision: Precision, attention: str, batch_size: int) -> list[Row]:
    """Whole steps; `hfu` counts recomputation as work, `mfu` does not.

    `memory` is that of forward and backward with the weights' gradients in place before the call: activations alone, which
    is what the closed form in `predicted` gives.
    """
    workbench, kernels = workbench_of(size, precision, bench.device), (attention, attention)
    flops = step_flops(size, MASKS[MASK], batch_size)
    variants = []
    for way in WAYS:
        model = ModelConfig.of_size(size, checkpointing=way)
        config = step_config(size, MASK, MASKS[MASK], precision, batch_size, kernels) | {
            "checkpointing": way,
            "checkpoint_every": model.checkpoint_every if way == "every_k" else None,
            "recomputed_blocks": [len(blocks) for blocks in model.recomputed_blocks],
            "hardware_flops": hardware_flops(size, way, batch_size),
            "gradients": "in place before the call whose memory is measured",
        }
        build = partial(workbench.step, MASKS[MASK], batch_size, kernels, checkpointing=way)
        variants.append(Variant(way, build, config, flops))
    rows = timed(variants, bench, BASE, peak=precision, memory=False, count=True, launches=True)
    for row in rows:
        if row["variant"] in WAYS and not row["error"]:
            _add_memory(row, workbench, batch_size, attention)
            _add_hfu(row)
    return rows


def hardware_flops(size: str, way: CheckpointingName, batch_size: int) -> float:
    """FLOPs of forward and backward with what is computed twice."""
    model, geometry, counts = ModelConfig.of_size(size, checkpointing=way), geometry_of(size), _counts(size)
    macs = mae_macs(model, geometry, counts.visible, counts.decode).total
    return batch_size * training_flops(macs, recomputed_macs(model, counts.visible, counts.decode))


def predicted_bytes(size: str, way: CheckpointingName, precision: Precision, attention: str, batch_size: int) -> int:
    """Activations at the worst moment of the step, the batch itself left out: it is there before the call."""
    counts = _counts(size)
    found = mae_activations(
        ModelConfig.of_size(size, checkpointing=way), geometry_of(size), counts.visible, counts.decode,
        attention=ATTENTION_KINDS[attention], precision=precision,  # type: ignore[index]  # names of ATTENTION
    )  # fmt: skip
    return batch_size * (found.peak - found.clip)


def _counts(size: str) -> MaskCounts:
    return count_masks(MASKS[MASK], geometry_of(size))


def _add_memory(row: Row, workbench: Workbench, batch_size: int, attention: str) -> None:
    way, kernels = row["variant"], (attention, attention)
    step = workbench.step(MASKS[MASK], batch_size, kernels, until="backward", checkpointing=way)
    for parameter in workbench.model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # dropped at the step's end
    errors: dict[str, str] = {}
    measured = attempt(way, partial(measure_memory, step, workbench.device), errors)
    row["error"] = errors.get(way)
    row["memory"] = measured._asdict() if measured else None
    predicted = predicted_bytes(workbench.size, way, workbench.precision, attention, batch_size)
    row["predicted"] = {"peak_bytes": predicted, "source": "vmae2_ds/cost/activations.py"}
    if measured:
        row["residual"] = {"memory": predicted / measured.peak_bytes - 1}


def _add_hfu(row: Row) -> None:
    """The same seconds with more FLOPs."""
    if mfu := row.get("mfu"):
        more = row["config"]["hardware_flops"] / row["flops"]
        row["hfu"] = mfu | {name: more * mfu[name] for name in ("median", "low", "high")}


CASE = Case(groups, "activation checkpointing of a dual step: time against memory, MFU and HFU")
