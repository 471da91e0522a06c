"""The paper's training hours (its Table 2) against the closed form of a step's time: how far the form is off, not fitted.

Assumed: 64 A100 80GB SXM, fp16 autocast, scores held in memory (the published attention), all cubes embedded, fused AdamW on
every rank, and nothing else: no data loading, no communication, no evaluation, no stops. So the low end is near a floor.

What came out, with the expected efficiencies: the speed-ups of dual masking fit (1.70 for the published 1.79, 1.27 for 1.48):
what they have above the FLOP ratios of 1.37 and 1.09 is mostly traffic of scores in float32. The hours do not. ViT-g took twice
the modelled hours. ViT-B took 12 times them, with either mask: its hours are 6 TFLOP/s a GPU, 2 % of an A100's peak, so neither
arithmetic nor memory of that GPU set the pace. Data loading is a candidate (docs/DATA.md#what-it-costs), but a step that only
waits for data takes as long with either mask, and these differ by 1.79. A slower, or shared, GPU would slow both alike: that
ViT-B ran on A100s is our assumption; the published code's documents say so of ViT-g alone. No constant here is bent to meet
these figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.assumptions import Assumptions, Range
from vmae2_ds.cost.compute_time import DeviceRates, micro_step_time, optimizer_time, rates_of
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.hardware import Accelerator, find_accelerator
from vmae2_ds.errors import ConfigError

PRECISION: Literal["autocast"] = "autocast"


@dataclass(frozen=True)
class PaperRun:
    """One cell of the paper's Table 2, with what its scripts say about the run (docs/PAPER.md#dual-masking)."""

    name: str
    model: ModelConfig
    hours: float
    """Published."""
    clips: int
    """Seen in the whole run."""
    clips_per_gpu: int
    """Clips of one GPU in one step; there is no accumulation."""
    visible: int
    decode: int
    num_gpus: int = 64

    @property
    def geometry(self) -> ClipGeometry:
        """16 frames of 224 x 224."""
        return ClipGeometry(16, 224, 224, self.model.tubelet, self.model.patch)


# SSv2's training videos x 800 epochs, 64 x 32 clips (VideoMAE V1's script, which the authors name in issue #18).
_B = PaperRun("B dual", ModelConfig.of_size("base"), 15.9, 168_913 * 800, 32, 160, 784)
# UnlabeledHybrid x 1200 epochs, counted in clips: 300 passes of 4 views, 64 x 32 videos x 4 views; --with_checkpoint.
_G = PaperRun("g dual", ModelConfig.of_size("giant", checkpointing="all"), 241, 1_348_000 * 1200, 32 * 4, 208, 1024)

PAPER_RUNS: dict[str, tuple[PaperRun, PaperRun]] = {
    # encoder-only (for g, 356 h is the paper's own estimate), dual
    "B": (replace(_B, name="B encoder-only", hours=28.4, decode=1408), _B),
    "g": (replace(_G, name="g encoder-only", hours=356, decode=1840), _G),
}


@dataclass(frozen=True)
class Comparison:
    """A published figure and the closed form's."""

    name: str
    unit: Literal["h", "x"]
    published: float
    predicted: Range
    """Over the ranges of `matmul_efficiency` and `memory_efficiency`."""

    @property
    def residual(self) -> float:
        """Expected over published, minus 1."""
        return self.predicted.value / self.published - 1


def predicted_hours(run: PaperRun, rates: DeviceRates) -> float:
    """Hours of computing alone."""
    step = micro_step_time(
        run.model, run.geometry, run.visible, run.decode, run.clips_per_gpu, rates,
        attention="math", precision=PRECISION, embed_all=True,
    )  # fmt: skip
    update_s = optimizer_time(count_parameters(run.model).total, rates, precision=PRECISION)
    return run.clips / (run.num_gpus * run.clips_per_gpu) * (step.total_s + update_s) / 3600


def compare_with_paper(assumptions: Assumptions, gpu: str = "A100-SXM4-80GB") -> list[Comparison]:
    """Every published hour figure, the two speed-ups, and encoder-only hours once the dual ones are taken as given.

    `gpu` as torch names it: the published code's documents give it for ViT-g alone.

    Raises:
        ConfigError: a GPU that is not in the table, or has no fp16.
    """
    accelerator = find_accelerator(gpu)
    if accelerator is None:
        raise ConfigError(f"no datasheet for {gpu!r} in vmae2_ds/cost/hardware.py; try A100-SXM4-80GB")
    expected = _rates(accelerator, assumptions.matmul_efficiency.value, assumptions.memory_efficiency.value)
    every = [
        _rates(accelerator, matmul, memory)
        for matmul, memory in product(_ends(assumptions.matmul_efficiency), _ends(assumptions.memory_efficiency))
    ]
    rows = []
    for size, (encoder_only, dual) in PAPER_RUNS.items():
        for run in (encoder_only, dual):
            hours = _range_of(predicted_hours(run, expected), [predicted_hours(run, rates) for rates in every])
            rows.append(Comparison(run.name, "h", run.hours, hours))
        # Both sides of a ratio have the same efficiencies: it ranges less than its two hours do.
        ratio = _range_of(_ratio(encoder_only, dual, expected), [_ratio(encoder_only, dual, rates) for rates in every])
        rows.append(Comparison(f"{size} dual over encoder-only", "x", encoder_only.hours / dual.hours, ratio))
        scaled = Range(low=ratio.low * dual.hours, value=ratio.value * dual.hours, high=ratio.high * dual.hours)
        rows.append(Comparison(f"{encoder_only.name}, from dual's hours", "h", encoder_only.hours, scaled))
    return rows


def _ratio(encoder_only: PaperRun, dual: PaperRun, rates: DeviceRates) -> float:
    return predicted_hours(encoder_only, rates) / predicted_hours(dual, rates)


def _rates(accelerator: Accelerator, matmul: float, memory: float) -> DeviceRates:
    return rates_of(accelerator, PRECISION, matmul_efficiency=matmul, memory_efficiency=memory)


def _ends(constant: Range) -> tuple[float, float, float]:
    return constant.low, constant.value, constant.high


def _range_of(expected: float, values: list[float]) -> Range:
    return Range(low=min(values), value=expected, high=max(values))
