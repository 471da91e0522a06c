"""How long a group takes, before it runs: the closed form of a step's time at rates that were measured for a moment."""

from __future__ import annotations

import re

from benchmarks.case import MATMUL_EDGE, Group, Options
from benchmarks.steps import DECODER_MASKS, MASKS, Precision, geometry_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.cost.compute_time import DeviceRates, micro_step_work, optimizer_work, time_of
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.masking import count_masks

DRAW_S = 5e-9
"""Seconds a parameter to draw, cast and copy a model, on one core of a server."""
MATMUL_SHARE, MEMORY_SHARE = 0.5, 0.6
"""Of a large product's rate and of a copy's that a step keeps (the planner's priors: vmae2_ds/cost/assumptions.py)."""
FIRST_CALL_S = 2.0
"""Of a group: kernels are chosen, loaded and compiled."""

_DUAL, _ALL = MASKS["dual"], list(MASKS.values())
STEPS: dict[str, tuple[list[MaskConfig], int]] = {
    "dual_masking": (_ALL, 3),
    "decoder_masking": (list(DECODER_MASKS.values()), 1),
    "step_parts": (_ALL, 3),
    "checkpointing": ([_DUAL] * 5, 3),
    "peers": ([MASKS["encoder_only"]] * 4 + _ALL, 1),
    "attention": ([_DUAL], 2),
}
"""Masks of the steps that a round of a case takes, and the calls beside the rounds: memory, FLOPs."""
OTHERS_S = {"ceilings": 5.0}
"""Cases without training steps of their own, seconds a group."""
UNKNOWN_S = 30.0


def rates_at(product_flops: float, copy_bytes: float, launch_s: float) -> DeviceRates:
    """What steps keep of a device's measured product and copy; `launch_s` is what starting an operation costs."""
    flops, rate = MATMUL_SHARE * product_flops, MEMORY_SHARE * copy_bytes
    return DeviceRates(flops, flops, rate, rate, rate, launch_s)


def predicted_s(case: str, group: Group, options: Options, rates: DeviceRates, *, queued: bool) -> float:
    """Seconds of a group; `queued`: a device that works off launches behind the host's back, as a GPU does."""
    if case not in STEPS:
        return OTHERS_S.get(case, UNKNOWN_S)
    masks, beside = STEPS[case]
    size, precision = options.sizes[0], options.precisions[0]
    calls = options.rounds + options.warmup + beside
    clips = clips_of(group.name, options)
    step_s = sum(_step_s(size, precision, mask, clips, group.name, rates, queued=queued) for mask in masks)
    if not queued and case != "step_parts":  # on a CPU a product joins the rounds, as the peak of MFU
        step_s += MATMUL_SHARE * 2.0 * MATMUL_EDGE**3 / rates.linear_flops
    return FIRST_CALL_S + DRAW_S * count_parameters(ModelConfig.of_size(size)).total + calls * step_s


def clips_of(group: str, options: Options) -> int:
    """The batch of a group, from its name or the options."""
    named = re.search(r"batch (\d+)", group)
    return int(named[1] if named else options.batch_sizes[0])


def _step_s(
    size: str, precision: Precision, mask: MaskConfig, clips: int, group: str, rates: DeviceRates, *, queued: bool
) -> float:
    model, geometry = ModelConfig.of_size(size), geometry_of(size)
    counts = count_masks(mask, geometry)
    kind = "math" if "math" in group.split() else "sdpa"
    work = micro_step_work(
        model, geometry, counts.visible, counts.decode, clips, attention=kind, precision=precision
    ) + optimizer_work(count_parameters(model).total, precision)
    found = time_of(work, rates)
    return max(found.total_s - found.launch_s, found.launch_s) if queued else found.total_s
