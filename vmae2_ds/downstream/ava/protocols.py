"""How published scorers of AVA count, each difference a field: by them one file has 28.6 mAP, or 20.2.

docs/PAPER.md#scorers-of-spatial-detection says where each was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vmae2_ds.config.ava_protocols import FrameProtocolName as FrameProtocolName


@dataclass(frozen=True)
class FrameProtocol:
    """Which rows count, which of them takes a true box, and which classes are in the mean."""

    about: str
    """What a user reads: whose numbers are counted so."""
    most_a_frame: int | None = None
    """The best so many detections of a key frame count, of the classes of the label map; None: all do."""
    frames: Literal["named", "any", "with truth"] = "any"
    """Key frames whose detections count: those that the truth names, whatever its action ids; any; those with a true box of a
    class of the label map."""
    excludes: bool = True
    """Whether excluded key frames are left out; else they are scored, and the truth says by rows of 2 columns which count."""
    keeps_excluded_truth: bool = False
    """Whether true boxes of excluded key frames still count as not found."""
    by_score: bool = True
    """Whether the best score takes a true box that several detections hit; else the first of the file does."""
    refuses_inside_out: bool = False
    """Whether a box inside out stops the scorer; else detections inside out, or without an area, are dropped (after the best
    of a frame were taken), and true ones are never found."""
    leaves_out_undetected: bool = False
    """Whether a class without a detection is left out of the mean; else its average precision is 0."""
    is_float32: bool = False
    """Whether overlaps are computed in single precision."""
    tries_next: bool = False
    """Whether a detection whose true box is taken by a better one goes for the next that it overlaps enough, or is wrong."""
    average: Literal["all points", "trapezoids"] = "all points"


FRAME_PROTOCOLS: dict[FrameProtocolName, FrameProtocol] = {
    "activitynet": FrameProtocol(
        "today's official scorer (ActivityNet): the 50 best of a key frame", 50, frames="named", excludes=False
    ),
    "legacy": FrameProtocol(
        "the official scorer until 2018, as VideoMAE-Action-Detection has it: all rows, exclusions"
    ),
    "legacy_pyslowfast": FrameProtocol(
        "PySlowFast's copy of the legacy scorer: within a key frame the first row takes a true box", by_score=False
    ),
    "mmaction2": FrameProtocol(
        "mmaction2's scorer: only key frames with truth, classes without a detection left out of the mean",
        frames="with truth",
        keeps_excluded_truth=True,
        refuses_inside_out=True,
        leaves_out_undetected=True,
        is_float32=True,
    ),
    "act": FrameProtocol(
        "ACT's and MOC's scorer, for UCF101-24 and JHMDB: the next true box where the best is taken, precision by trapezoids",
        excludes=False,
        tries_next=True,
        average="trapezoids",
    ),
}
