"""What the planner says of a step's time and memory beside what is measured, on any device: sizes, masks, kernels, batches.

The steps are those of `dual_masking`, without an engine; what ZeRO adds is in the case `zero`. A device that is in no table
is planned with the rates that the case `ceilings` measured on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.case import Bench, Case, Group, batch_suffix, timed
from benchmarks.cases.zero_engine import run_config
from benchmarks.cases.zero_plan import Planner, find_planner
from benchmarks.ceiling import copy_ceiling, product_ceiling
from benchmarks.filling import at_batch, planned_batch
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, geometry_of, step_config, step_flops, workbench_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.cost.activations import mae_activations
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.cost.traffic import ATTENTION_KINDS
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks
from vmae2_ds.tune.setting_cost import Setting, predict_time

ALONE = ZeroPolicy(stage=0)
"""One rank, whose states are whole."""


def groups(bench: Bench) -> Iterator[Group]:
    """By size, precision, kernel and batch."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            for attention in bench.attentions(precision):
                plan = partial(planned_batch, size, precision, attention, tuple(MASKS.values()))
                for batch in bench.batches:
                    title = f"{size} {precision} {attention}{batch_suffix(batch)}"
                    taken = partial(measure, size=size, precision=precision, attention=attention)
                    yield Group(title, partial(at_batch, bench, batch, plan, taken))


def measure(bench: Bench, size: str, precision: Precision, attention: str, batch_size: int) -> list[Row]:
    """Whole steps under each masking; `residual` is predicted over measured, less one."""
    planner, workbench = planner_for(bench), workbench_of(size, precision, bench.device)
    variants = [
        Variant(
            name,
            partial(workbench.step, mask, batch_size, (attention, attention)),
            step_config(size, name, mask, precision, batch_size, (attention, attention)),
            step_flops(size, mask, batch_size),
        )
        for name, mask in MASKS.items()
    ]
    rows = timed(variants, bench, launches=True)
    for row in rows:
        row["predicted"] = {
            "time_s": predicted_seconds(planner, size, row["variant"], precision, attention, batch_size),
            "peak_bytes": predicted_bytes(size, row["variant"], precision, attention, batch_size),
            "source": planner.source,
        }
        if not row["error"]:
            row["residual"] = {"time": row["predicted"]["time_s"] / row["time_s"]["median"] - 1}
            if row["memory"]:
                row["residual"]["memory"] = row["predicted"]["peak_bytes"] / row["memory"]["peak_bytes"] - 1
    return rows


def predicted_seconds(
    planner: Planner, size: str, masking: str, precision: Precision, attention: str, clips: int
) -> float:
    """Forward, backward and update of one rank by itself, videos left out."""
    config = run_config(size, precision, "zero1", attention, clips, clips)
    setting = Setting(config.model_copy(update={"mask": MASKS[masking]}), ALONE)
    return predict_time(setting, planner.cluster, planner.assumptions).device_s


def predicted_bytes(size: str, masking: str, precision: Precision, attention: str, clips: int) -> int:
    """What a step takes above weights, optimizer and batch: gradients of all weights and the activations at their peak."""
    model, geometry = ModelConfig.of_size(size), geometry_of(size)
    counts = count_masks(MASKS[masking], geometry)
    found = mae_activations(
        model, geometry, counts.visible, counts.decode,
        attention=ATTENTION_KINDS[attention], precision=precision,  # type: ignore[index]  # names of ATTENTION
    )  # fmt: skip
    gradient = {"bf16": 2, "fp32": 4}[precision]
    return gradient * count_parameters(model).total + clips * (found.peak - found.clip)


def planner_for(bench: Bench) -> Planner:
    """The planner for one rank on the bench's device, from a datasheet or from what `ceilings` measured.

    Raises:
        ConfigError: a GPU that is in no table, and has no rows of `ceilings` in the same folder.
    """
    known = find_planner(bench.device, 1, 1)
    if known is not None:
        return known
    name = torch.cuda.get_device_name(bench.device)
    copied = copy_ceiling(bench.folder, bench.device)
    peaks = {form: product_ceiling(bench.folder, bench.device, form) for form in ("bf16", "fp16", "tf32", "fp32")}
    measured = {form: peak.rate / 1e12 for form, peak in peaks.items() if peak}
    if copied is None or not measured:
        raise ConfigError(
            f"{name} is not in the table of GPUs: run the case ceilings into the same folder first, and its rates are taken"
        )
    memory_gb = torch.cuda.get_device_properties(bench.device).total_memory / 2**30
    gpu = Accelerator(
        name=name, memory_gb=memory_gb, bandwidth_gb_s=copied.rate / 1e9, link_gb_s=copied.rate / 1e9,
        peak_tflops=measured, source="ceilings measured here in place of a datasheet",
    )  # fmt: skip
    assumed = Assumptions()
    return Planner(make_cluster(gpu, 1, 1, None, assumed.usable_memory), assumed, f"{gpu.source}; {assumed.source}")


CASE = Case(
    groups, "the planner's time and memory of a step beside the measured ones, by size, masking, kernel and batch"
)
