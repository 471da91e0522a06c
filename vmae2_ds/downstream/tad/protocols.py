"""How published scorers of temporal detection count, each difference a field: by them one file has 40.4 mAP, or 13.6.

docs/PAPER.md#scorers-of-temporal-detection says where each was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProtocolName = Literal["activitynet", "actionformer", "opentad", "thumos14", "thumos14_2015"]


@dataclass(frozen=True)
class Protocol:
    """What counts as a true segment, as a hit, and as average precision."""

    about: str
    """What a user reads: whose numbers are counted so."""
    shortest_s: float | None = None
    """True segments shorter than that are left out, those without length where it is 0; None: none are."""
    drops_copies: bool = False
    """Whether true segments of one label whose ends lie within a millisecond of another's are left out."""
    is_by_truth: bool = False
    """False: a detection takes the free truth that it overlaps most, the best score first. True: a truth, in the order of
    the file, takes the free detection that overlaps it most, whatever its score."""
    must_exceed: bool = False
    """Whether a tIoU that equals the threshold is none."""
    average: Literal["all points", "11 points", "not interpolated"] = "all points"
    ambiguous_ignored: bool = False
    """Whether detections that touch a segment of Ambiguous and hit nothing are left out, instead of Ambiguous being a class."""
    refuses_unknown: bool = False
    """Whether a detection of a label without truth stops the scorer; else those are left out."""
    counts_by_number: bool = False
    """Whether a detection whose label has no truth counts under the class that has its number among those with truth."""
    turns_reversed: bool = False
    """Whether a detection that ends before it starts is turned round; else it overlaps nothing."""
    hits_first: bool = False
    """Whether among equal scores hits come first; else the order of the file stays."""


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "activitynet": Protocol("ActivityNet's scorer, the usual one for THUMOS14 too", refuses_unknown=True),
    "actionformer": Protocol(
        "ActionFormer's scorer: ActivityNet's without copies and segments below 1 ms",
        shortest_s=1e-3,
        drops_copies=True,
        counts_by_number=True,
    ),
    "opentad": Protocol(
        "OpenTAD's scorer: ActivityNet's without copies and segments without length", shortest_s=0.0, drops_copies=True
    ),
    "thumos14": Protocol(
        "the THUMOS14 kit of 2014: each truth takes its closest detection; 11 points",
        is_by_truth=True,
        must_exceed=True,
        average="11 points",
        ambiguous_ignored=True,
        turns_reversed=True,
        hits_first=True,
    ),
    "thumos14_2015": Protocol(
        "the THUMOS14 kit of 2015: each truth takes its closest detection; not interpolated",
        is_by_truth=True,
        must_exceed=True,
        average="not interpolated",
        ambiguous_ignored=True,
        turns_reversed=True,
    ),
}
