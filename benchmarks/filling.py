"""The batch that fills a device: planned from closed forms, one for all variants of a group, halved where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.case import AUTO, Batch, Bench, Group, batch_suffix
from benchmarks.harness import NO_ROOM, measured_row
from benchmarks.record import WHOLE_GROUP, Row
from benchmarks.steps import Precision, geometry_of
from vmae2_ds.config.model import AttentionName, CheckpointingName, ModelConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.cost.activations import mae_activations
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.traffic import ATTENTION_KINDS
from vmae2_ds.masking import count_masks

STATE_BYTES: dict[Precision, int] = {"bf16": 2 + 4 + 8 + 4 + 2, "fp32": 4 + 8 + 4}
"""Of one parameter of a `Workbench` at the end of a backward pass: weight, float32 master, two moments, the master's gradient
and the weight's; float32 has no masters."""
ROUND = 8
"""Clips of a planned batch are a multiple of this where there are more: products like even shapes."""
MOST_CLIPS = 256
"""More clips make a GPU no faster, and only take time to draw."""


def planned_batch(
    size: str,
    precision: Precision,
    kernel: AttentionName,
    masks: Sequence[MaskConfig],
    free_bytes: float,
    *,
    checkpointing: CheckpointingName = "none",
    models: int = 1,
    most: int = MOST_CLIPS,
) -> int:
    """Clips of a step that `free_bytes` of memory have room for, at least 1 and at most `most`.

    A step of the mask that takes most decides, beside the clips of all masks and the states of `models` models. What the
    allocator cannot use and what libraries take is assumed as for a run.
    """
    model, geometry, assumed = ModelConfig.of_size(size, checkpointing=checkpointing), geometry_of(size), Assumptions()
    states = models * STATE_BYTES[precision] * count_parameters(model).total
    steps = []
    for mask in masks:
        counts = count_masks(mask, geometry)
        steps.append(
            mae_activations(
                model, geometry, counts.visible, counts.decode, attention=ATTENTION_KINDS[kernel], precision=precision
            )
        )
    a_clip = max(step.peak - step.clip for step in steps) + sum(step.clip for step in steps)
    usable = (free_bytes - assumed.workspace_gib.value * 2**30) * (1 - assumed.fragmentation.value)
    clips = min(most, int((usable - states) // a_clip))
    return max(1, clips // ROUND * ROUND if clips > ROUND else clips)


def free_bytes(device: torch.device) -> float:
    """What this process may still take of a GPU's memory, with what torch holds of it already."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def at_batch(
    bench: Bench, batch: Batch, plan: Callable[..., int], measure: Callable[..., list[Row]], least: int = 1
) -> list[Row]:
    """Rows of `measure(bench, batch_size=clips)`; for `auto` with `plan(free_bytes=...)` clips.

    Such a batch is halved until no variant of the group runs out of memory; `batch` in the rows says where it did. At one clip
    the variant that runs out is a row with the reason, as it is at a batch that was asked for. Below `least` clips the whole
    group is left out: a row says that there is no room.
    """
    if batch != AUTO:
        return measure(bench, batch_size=batch)
    planned = plan(free_bytes=free_bytes(bench.device))
    clips, too_many = planned, list[int]()
    while True:
        if clips < least:
            rows = [measured_row(WHOLE_GROUP, {}, [], f"{NO_ROOM}: memory for fewer than {least} clips a step")]
            break
        try:
            rows = measure(replace(bench, give_up_for_memory=clips > 1), batch_size=clips)
            break
        except torch.OutOfMemoryError:
            too_many.append(clips)
        clips //= 2
        gc.collect()  # behind the except clause, whose traceback holds the step that did not fit
        torch.cuda.empty_cache()
    return [row | {"batch": {"clips": clips, "planned": planned, "out_of_memory_at": too_many}} for row in rows]


def step_groups(
    bench: Bench,
    measure: Callable[..., list[Row]],
    masks: Sequence[MaskConfig],
    kernel: str,
    models: int = 1,
    least: int = 1,
) -> Iterator[Group]:
    """A group for each size, precision and batch size of the options: `measure` takes them by these names, behind the bench.

    An automatic batch is planned for the largest of `masks` under `kernel`, beside the states of `models` models; below
    `least` clips nothing is measured.
    """
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            for batch in bench.batches:
                plan = partial(planned_batch, size, precision, kernel, masks, models=models)
                taken = partial(measure, size=size, precision=precision)
                name = f"{size} {precision}{batch_suffix(batch)}"
                yield Group(name, partial(at_batch, bench, batch, plan, taken, least))
