"""Where the time of a training step goes: stamps at the borders of its parts, in every round of whole steps."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Bench, Case, timed
from benchmarks.devices import Step
from benchmarks.filling import step_groups
from benchmarks.harness import Variant, spread
from benchmarks.record import Row
from benchmarks.steps import (
    MASKS,
    Kernels,
    Precision,
    Workbench,
    geometry_of,
    kernels_of_run,
    step_config,
    step_flops,
    workbench_of,
)
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.cost.flops import mae_macs
from vmae2_ds.masking import count_masks

PARTS = (
    "embed",
    "encoder forward",
    "decoder forward",
    "target and loss",
    "decoder backward",
    "encoder backward",
    "optimizer",
)
"""In the order of a step. The bridge counts to the decoder in the forward pass; the loss's backward pass too."""


def measure(bench: Bench, size: str, precision: Precision, batch_size: int) -> list[Row]:
    """Whole steps under each masking; a row's segments add up to its samples but for the stamps themselves."""
    workbench = workbench_of(size, precision, bench.device)
    kernels = kernels_of_run(size, MASKS["dual"], precision, batch_size, bench.device)
    stamped = {name: Stamps(bench.device) for name in MASKS}
    variants = [
        Variant(
            name,
            partial(stamped_step, workbench, mask, batch_size, kernels, stamped[name]),
            step_config(size, name, mask, precision, batch_size, kernels),
            step_flops(size, mask, batch_size),
        )
        for name, mask in MASKS.items()
    ]
    rows = timed(variants, bench, "encoder_only", memory=False, launches=True)
    for row in rows:
        if not row["error"]:
            taken = stamped[row["variant"]].parts()[bench.options.warmup :][: bench.options.rounds]
            row["segments_s"] = {part: spread([each[part] for each in taken])._asdict() for part in PARTS}
            row["segment_flops"] = flops_by_part(size, MASKS[row["variant"]], batch_size)
            row["segment_samples_s"] = {part: [each[part] for each in taken] for part in PARTS}
    return rows


def flops_by_part(size: str, mask: MaskConfig, batch_size: int) -> dict[str, float]:
    """Matrix products of each part of a step, in closed form; loss and optimizer have none.

    They add up to what torch counts: without the gradient of the pixels, which nobody asks for.
    """
    counts = count_masks(mask, geometry_of(size))
    macs = mae_macs(ModelConfig.of_size(size), geometry_of(size), counts.visible, counts.decode)
    forward = {
        "embed": macs.embed,
        "encoder forward": macs.encoder,
        "decoder forward": macs.bridge + macs.decoder + macs.head,
    }
    backward = {
        "decoder backward": 2 * (macs.decoder + macs.head),
        "encoder backward": 2 * (macs.encoder + macs.bridge) + macs.embed,
    }
    return {part: 2.0 * batch_size * work for part, work in {**forward, **backward}.items()}


class Stamps:
    """Moments of each step, in the device's own time."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._steps: list[list[Any]] = []

    def begin(self) -> None:
        """Start a step."""
        self._steps.append([])
        self.stamp()

    def stamp(self) -> None:
        """The part that ran until now ends here."""
        if self._on_cuda:
            moment: Any = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.process_time()
        self._steps[-1].append(moment)

    def parts(self) -> list[dict[str, float]]:
        """Seconds by part, for each step."""
        if self._on_cuda:
            torch.cuda.synchronize()
        return [
            {part: self._between(*pair) for part, pair in zip(PARTS, pairwise(moments), strict=True)}
            for moments in self._steps
        ]

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._on_cuda else end - start


def stamped_step(workbench: Workbench, mask: MaskConfig, batch_size: int, kernels: Kernels, stamps: Stamps) -> Step:
    """A whole step that leaves a stamp wherever one part ends and the next begins."""
    model, objective, update = workbench.model, workbench.objective, workbench.update
    batch = workbench.batch(mask, batch_size)

    def step() -> None:
        workbench.set_up(kernels)
        stamps.begin()
        hooks = [
            model.encoder.embed.register_forward_hook(lambda *_: stamps.stamp()),
            model.encoder.register_forward_hook(lambda *_: stamps.stamp()),
            # the gradient of the decoder's first input is there when its backward pass is over
            model.decoder.register_forward_pre_hook(lambda _, inputs: _stamp_gradient(inputs[0], stamps)),
            model.decoder.register_forward_hook(lambda *_: stamps.stamp()),
        ]
        try:
            loss = objective(batch).loss
        finally:
            for hook in hooks:
                hook.remove()
        stamps.stamp()
        loss.backward()
        stamps.stamp()
        update()
        stamps.stamp()

    return step


def _stamp_gradient(x: Tensor, stamps: Stamps) -> None:
    x.register_hook(lambda _: stamps.stamp())


CASE = Case(
    partial(step_groups, measure=measure, masks=tuple(MASKS.values()), kernel="flash"),
    "where the time goes: embedding, towers forward and backward, loss, optimizer, under each masking",
)
