"""How long a group takes, before it runs: the closed form of a step's time at rates that were measured for a moment."""

from __future__ import annotations

from benchmarks.case import AUTO, MATMUL_EDGE, USUAL_BATCH, Options
from benchmarks.cases import peers
from benchmarks.cases.loader_rate import worker_counts
from benchmarks.filling import planned_batch
from benchmarks.steps import DECODER_MASKS, MASKS, Precision, geometry_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.cost.compute_time import DeviceRates, micro_step_work, optimizer_work, time_of
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.traffic import ATTENTION_KINDS
from vmae2_ds.host import cores
from vmae2_ds.masking import count_masks
from vmae2_ds.model.attention import ATTENTION

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
    "planner": (_ALL, 3),
}
"""Masks of the steps that a round of a case takes, and the calls beside the rounds: memory, FLOPs."""
OTHERS_S = {"ceilings": 5.0, "compiled": 45.0, "CUDA graph": 15.0, "fp8": 3.0, "real_run": 50.0}
"""Cases whose time is not that of steps, seconds a group. A real run draws videos, starts twice, takes 20 steps."""
SAVED_S = 60e-9
"""Seconds a parameter of a real run that saves: 14 bytes each, written, hashed and read again at half a gigabyte a second."""
LOADER_ROUND_S = 1.3
"""A round of the loader, which every worker has two batches in: 24 clips/s a worker were seen on a busy core."""
UNKNOWN_S = 30.0


def rates_at(product_flops: float, copy_bytes: float, launch_s: float) -> DeviceRates:
    """What steps keep of a device's measured product and copy; `launch_s` is what starting an operation costs."""
    flops, rate = MATMUL_SHARE * product_flops, MEMORY_SHARE * copy_bytes
    return DeviceRates(flops, flops, rate, rate, rate, launch_s)


def predicted_s(case: str, group: str, options: Options, rates: DeviceRates, *, free_bytes: float | None) -> float:
    """Seconds of a group; `free_bytes` is the memory of a GPU, None on a CPU, which does not work behind its host's back."""
    size, precision = options.sizes[0], options.precisions[0]
    if case == "loader_rate":
        return FIRST_CALL_S + LOADER_ROUND_S * (options.rounds + options.warmup + 1) * len(
            worker_counts(cores().usable)
        )
    if case not in STEPS:
        saved_s = SAVED_S * count_parameters(ModelConfig.of_size(size)).total if case == "real_run" else 0.0
        is_graph = group.endswith("CUDA graph")  # a group of its own in `compiled`, which compiles nothing
        return OTHERS_S.get("CUDA graph" if is_graph else case, UNKNOWN_S) + saved_s
    masks, beside = STEPS[case]
    kernel = next((word for word in group.split() if word in ATTENTION), "sdpa")
    planned_for, models = (peers.KERNEL, peers.MODELS) if case == "peers" else (kernel, 1)
    clips = _clips(options, masks, planned_for, free_bytes, models)
    if case == "peers" and clips < peers.LEAST_CLIPS and options.batch_sizes[0] == AUTO:
        return FIRST_CALL_S  # a row that says so
    step_s = sum(_step_s(size, precision, mask, clips, kernel, rates, queued=free_bytes is not None) for mask in masks)
    if free_bytes is None and case != "step_parts":  # on a CPU a product joins the rounds, as the peak of MFU
        step_s += MATMUL_SHARE * 2.0 * MATMUL_EDGE**3 / rates.linear_flops
    calls = options.rounds + options.warmup + beside
    return FIRST_CALL_S + DRAW_S * count_parameters(ModelConfig.of_size(size)).total + calls * step_s


def _clips(options: Options, masks: list[MaskConfig], kernel: str, free_bytes: float | None, models: int) -> int:
    """The batch that a group will have, unless it runs out of memory."""
    asked = options.batch_sizes[0]
    if isinstance(asked, int):
        return asked
    if free_bytes is None:
        return USUAL_BATCH
    return planned_batch(options.sizes[0], options.precisions[0], kernel, masks, free_bytes, models=models)


def _step_s(
    size: str, precision: Precision, mask: MaskConfig, clips: int, kernel: str, rates: DeviceRates, *, queued: bool
) -> float:
    model, geometry = ModelConfig.of_size(size), geometry_of(size)
    counts = count_masks(mask, geometry)
    work = micro_step_work(
        model, geometry, counts.visible, counts.decode, clips, attention=ATTENTION_KINDS[kernel], precision=precision
    ) + optimizer_work(count_parameters(model).total, precision)
    found = time_of(work, rates)
    return max(found.total_s - found.launch_s, found.launch_s) if queued else found.total_s
