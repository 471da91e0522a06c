"""The grid: what is pre-trained, how long, and which sentences of the papers it is asked about.

Designed before any run. What can be shown: a frozen probe names 960 unseen synthetic videos, so that chance moves a share near
one half by 1.6 points (one deviation) and, of two models on the same videos, mostly the same way; seeds moved such probes by
1 to 2 points in docs/LOG.md. With paired differences of deviation 2, 3 seeds find 6.5 points in 4 of 5 experiments, 4 find 4.3
and 5 find 3.4 (`quantiles.detectable`; the report prints it for the deviations that came out). So 3 seeds are the least and 5
are asked for: 3 of the cells that tell most, seed by seed, then 3 of each of the others, cell by cell, as fewer tell
nothing, then further ones of all. When the first runs took four times as long as planned, six cells stayed in the first part.
Differences as small as the papers' own (0.13 points between dual and encoder-only masking) cannot be shown on a desk: "no
loss" is held to a margin, MARGIN.

What is dropped because it could not be shown: attentive probes and fine-tuning as ends (minutes a run); accuracy on the real
clips for each mask (83 clips, over which seeds moved a probe by 8 to 14 points); running cells of a quarter at equal FLOPs,
whose steps are hardly cheaper; model sizes and numbers of frames, which change what a step costs by more than the grid has.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import mae_macs, training_flops
from vmae2_ds.masking import count_masks

GEOMETRY = ClipGeometry(num_frames=8, height=48, width=48, tubelet=2, patch=8)
MODEL = ModelConfig(
    encoder=TowerConfig(width=128, depth=3, heads=4, mlp=512),
    decoder=TowerConfig(width=128, depth=2, heads=4, mlp=512),
    patch=8,
    attention="math",
)
BATCH = 16
STEPS = 800
"""Optimizer steps of a cell of length 1."""
WARMUP_STEPS = 60
LABELLED_STEPS = 400
"""Of supervised training behind pre-training."""

Data = Literal["synthetic", "real", "mixed"]
Metric = Literal["motion", "real_motion", "error_to_mean_colour"]
"""Accuracy of ridge on the motion of tokens: on unseen videos of the main set; on listed clips, each source left out once.
Error on hidden cubes of unseen videos of the main set, over that of painting the clip's mean colour."""

DUAL = MaskConfig(encoder="random", encoder_ratio=0.75, decoder="running_cell", decoder_ratio=0.5)
"""Without tubes, which hide the path of what moves: under them a model of this size hardly learns in minutes (docs/LOG.md)."""
TUBE = DUAL.model_copy(update={"encoder": "tube"})
LEAST_SEEDS = 3
"""Fewer tell nothing of the spread."""


class Cell(NamedTuple):
    """One way to pre-train."""

    name: str
    ablation: str
    """What it is part of, in the report."""
    mask: MaskConfig
    length: float = 1.0
    """Of the usual number of steps."""
    context_weight: float = 0.0
    """Weight in the loss of cubes that the encoder saw."""
    data: Data | None = None
    """What it learns from; None: the main set."""
    as_much_as: str | None = None
    """Name of the cell whose FLOPs it may spend: a cheaper step trains longer."""
    labels: bool = False
    """Trained with labels afterwards."""
    can_wait: bool = False
    """Its first seeds come behind LEAST_SEEDS of all that cannot wait."""


def _dual(**changes: object) -> MaskConfig:
    return DUAL.model_copy(update=changes)


NONE, ALL_CUBES, BASE, TUBES = "none", "dual with loss on all", "dual", "encoder tube 75 %"
CELLS: tuple[Cell, ...] = (
    Cell(BASE, "decoder mask", DUAL),
    Cell(NONE, "decoder mask", _dual(decoder="none")),
    Cell("dual at none's FLOPs", "equal FLOPs", DUAL, as_much_as=NONE),
    Cell("random 50 %", "decoder mask", _dual(decoder="random")),
    Cell("running cell 75 %", "decoder mask", _dual(decoder_ratio=0.75)),
    Cell(ALL_CUBES, "loss and tokens", DUAL, context_weight=1.0, can_wait=True),
    Cell("half as long", "length", DUAL, length=0.5),
    Cell("labels afterwards", "labels", DUAL, labels=True, can_wait=True),
    Cell(TUBES, "encoder mask", TUBE, can_wait=True),
    Cell("encoder tube 90 %", "encoder mask", TUBE.model_copy(update={"encoder_ratio": 0.9}), can_wait=True),
    Cell("real videos", "data", DUAL, data="real", can_wait=True),
    Cell("mixed videos", "data", DUAL, data="mixed", can_wait=True),
    Cell("frame 50 %", "decoder mask", _dual(decoder="frame"), can_wait=True),
    Cell("twice as long", "length", DUAL, length=2.0, can_wait=True),
    Cell(
        "tubes with disjoint tokens",
        "loss and tokens",
        TUBE.model_copy(update={"decoder_tokens": "disjoint"}),
        can_wait=True,
    ),
    Cell("running cell 75 % at none's FLOPs", "equal FLOPs", _dual(decoder_ratio=0.75), as_much_as=NONE, can_wait=True),
    Cell("running cell 25 %", "decoder mask", _dual(decoder_ratio=0.25), can_wait=True),
    Cell("encoder tube 95 %", "encoder mask", TUBE.model_copy(update={"encoder_ratio": 0.95}), can_wait=True),
    Cell("encoder frame 75 %", "encoder mask", _dual(encoder="frame"), can_wait=True),
)
"""The most telling first."""
OF_NAME = {cell.name: cell for cell in CELLS}


def clip_flops(mask: MaskConfig) -> int:
    """FLOPs of one clip's forward and backward pass, closed form."""
    visible, decode, _ = count_masks(mask, GEOMETRY)
    return training_flops(mae_macs(MODEL, GEOMETRY, visible, decode).total)


def steps_of(cell: Cell, usual: int = STEPS) -> int:
    """Optimizer steps; for equal FLOPs as many as come nearest to what the other cell spends."""
    if cell.as_much_as is None:
        return max(2, round(cell.length * usual))
    other = OF_NAME[cell.as_much_as]
    return max(2, round(steps_of(other, usual) * clip_flops(other.mask) / clip_flops(cell.mask)))


def run_flops(cell: Cell, usual: int = STEPS) -> int:
    """FLOPs of pre-training, labels left out."""
    return steps_of(cell, usual) * BATCH * clip_flops(cell.mask)
