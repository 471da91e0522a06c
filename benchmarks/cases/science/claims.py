"""Sentences of the papers, the paired difference that each is about, and the rule that decides between three verdicts.

Rule. Differences are paired over seeds, in points of a percent, positive where the first is better; their 95 % interval is by
Student's t.

- "more": the sentence says that the first is better than the second. The interval above 0: supports; below 0: contradicts.
- "no loss": the sentence says that the first is as good. The interval above -MARGIN: supports; below -MARGIN: contradicts.

Anything else, and fewer than LEAST_SEEDS seeds: cannot tell. Intervals are not widened for the number of sentences; beside
them stands p by Holm's correction over all of them, and a verdict whose p would not hold up is marked.

All that was settled before any run. Two things were added when the first three runs had been seen, whose accuracies lay below
those of a random encoder: accuracies of which neither is above the random encoder's, by the same interval, cannot tell; and
each sentence whose two encoders see cubes by the same mask is also asked of the error on hidden cubes, where lower is better.
The papers speak of accuracy: what the error says is no more than how well one objective was learned in two ways.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from benchmarks.cases.science.grid import ALL_CUBES, BASE, LEAST_SEEDS, NONE, OF_NAME, TUBES, Metric
from benchmarks.cases.science.quantiles import t_interval

MARGIN = 3.0
"""Points that may be lost and still count as no loss: about what 5 seeds can show, and small beside what
pre-training gains."""
Kind = Literal["more", "no loss"]
Verdict = Literal["supports", "contradicts", "cannot tell"]


class Claim(NamedTuple):
    """A sentence and the difference that it is about."""

    sentence: str
    source: str
    first: str
    second: str
    kind: Kind
    metric: Metric = "motion"


TABLE1, TABLE2, TABLE3 = (f"VideoMAE V2, Table {number}" for number in (1, 2, 3))
V1 = "VideoMAE, abstract"
CLAIMS: tuple[Claim, ...] = (
    Claim("Running cells that mask half of the decoder cost no accuracy.", f"{TABLE1} and 2", BASE, NONE, "no loss"),
    Claim("For the same FLOPs they are better than no decoder mask.", TABLE2, "dual at none's FLOPs", NONE, "more"),
    Claim("Running cells that mask three quarters cost no accuracy.", TABLE1, "running cell 75 %", NONE, "no loss"),
    Claim("Running cells that mask a quarter cost no accuracy.", TABLE1, "running cell 25 %", NONE, "no loss"),
    Claim("Running cells are better than random cubes.", TABLE1, BASE, "random 50 %", "more"),
    Claim("Running cells are better than whole frames.", TABLE1, BASE, "frame 50 %", "more"),
    Claim("A loss on hidden cubes is better than one on all decoded cubes.", TABLE1, BASE, ALL_CUBES, "more"),
    Claim("Without mask tokens where the encoder saw nothing is lost.", "ours", "tubes with disjoint tokens", TUBES, "no loss"),
    Claim("Masking three quarters is better than no decoder mask for the same FLOPs.", "ours",
          "running cell 75 % at none's FLOPs", NONE, "more"),
    Claim("An encoder that does not see 90 % learns as well.", V1, "encoder tube 90 %", TUBES, "no loss"),
    Claim("An encoder that does not see 95 % learns as well.", V1, "encoder tube 95 %", TUBES, "no loss"),
    Claim("Encoder tubes are better than random cubes.", V1, TUBES, BASE, "more"),
    Claim("Encoder tubes are better than whole frames.", V1, TUBES, "encoder frame 75 %", "more"),
    Claim("Longer pre-training is better: full against half.", TABLE3, BASE, "half as long", "more"),
    Claim("Longer pre-training is better: double against full.", TABLE3, "twice as long", BASE, "more"),
    Claim("Labels afterwards help on videos of the same kind.", "VideoMAE V2, Table 4", "labels afterwards", BASE, "more"),
    Claim("They hurt on videos of another kind.", "VideoMAE V2, on SSv2", BASE, "labels afterwards", "more", "real_motion"),
    Claim("More varied videos are better: mixed against real.", TABLE3, "mixed videos", "real videos", "more", "real_motion"),
    Claim("Mixed videos are better than synthetic alone.", "ours", "mixed videos", BASE, "more", "real_motion"),
)  # fmt: skip


def asked_of_errors() -> tuple[Claim, ...]:
    """The sentences of `CLAIMS` again, of the error on hidden cubes: those whose encoders see by the same mask and paint.

    Not of kinds of videos: the error is that of the main set, which one of the two may not have learned from.
    """
    found = []
    for claim in CLAIMS:
        first, second = OF_NAME[claim.first], OF_NAME[claim.second]
        seen = [(cell.mask.encoder, cell.mask.encoder_ratio) for cell in (first, second)]
        if seen[0] == seen[1] and first.data == second.data and not (first.labels or second.labels):
            found.append(claim._replace(metric="error_to_mean_colour"))
    return tuple(found)


def verdict_of(kind: Kind, differences: list[float], *, told_apart: bool = True) -> Verdict:
    """By the rule above; `differences` in points, one a seed; `told_apart`: one of the two is above a random encoder."""
    interval = t_interval(differences)
    if interval is None or len(differences) < LEAST_SEEDS or not told_apart:
        return "cannot tell"
    bound = 0.0 if kind == "more" else -MARGIN
    if interval.low > bound:
        return "supports"
    return "contradicts" if interval.high < bound else "cannot tell"
