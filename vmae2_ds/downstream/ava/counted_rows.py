"""Which rows of truth and detections a protocol counts, and how many it leaves out for which reason.

N rows of a file, K of them that count, F key frames of the truth and then those of the detections alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.protocols import FrameProtocol
from vmae2_ds.downstream.ava.rows import BoxRows, Key
from vmae2_ds.errors import DataError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ROWS_AT_ONCE = 1 << 18
"""Rows that are looked at together: their columns then stay in the cache."""


@dataclass(frozen=True)
class CountedRows:
    """K rows that count, in the order of their file."""

    rows: BoxRows
    row_K: NDArray[np.int32]
    """Index into `rows`."""
    frame_K: NDArray[np.int32]
    """Index into the key frames of truth and detections together."""
    class_K: NDArray[np.int32]
    """Class column of the label map."""
    num_classes: int

    def __len__(self) -> int:
        return len(self.row_K)

    def of(self, chosen: Bools) -> CountedRows:
        """Some of them."""
        return replace(self, row_K=self.row_K[chosen], frame_K=self.frame_K[chosen], class_K=self.class_K[chosen])

    def keys_of(self, some: slice) -> Ints:
        """Key frame and class of a slice as one number each."""
        return self.frame_K[some].astype(np.int64) * self.num_classes + self.class_K[some]

    def boxes_of(self, some: Ints | slice, dtype: type = np.float64) -> NDArray[np.floating[Any]]:
        """Boxes of some of them, (n, 4)."""
        return np.asarray(self.rows.box_N4[self.row_K[some]], dtype)


@dataclass(frozen=True)
class Counted:
    """What a protocol counts."""

    truth: CountedRows
    found: CountedRows
    key_frames: int
    """Key frames that are scored."""
    frames_without_detection: int
    """How many of those have no detection that counts."""
    dropped: dict[str, int]
    """Reason -> rows that were left out for it, the first that holds of each."""
    cut_among_equals: int
    """Detections that were cut from the best of their key frame with a score that one of those has."""


def count_rows(
    truth: BoxRows, found: BoxRows, label_map: LabelMap, excluded: frozenset[Key], how: FrameProtocol
) -> Counted:
    """The rows that count.

    Raises:
        DataError: No true box is left; the protocol stops at boxes inside out, and there are some.
    """
    frame_of = {key: place for place, key in enumerate(truth.keys)}
    num_named = len(frame_of)
    frame_of_found = np.array([frame_of.setdefault(key, len(frame_of)) for key in found.keys], np.int32)
    excluded = excluded if how.excludes else frozenset()
    is_excluded_F = np.fromiter((key in excluded for key in frame_of), np.bool_, len(frame_of))
    is_kept_F = np.ones(len(frame_of), np.bool_) if how.keeps_excluded_truth else ~is_excluded_F
    true, outside, in_excluded, _ = _kept(truth, np.arange(num_named, dtype=np.int32), label_map, is_kept_F, is_kept_F)
    if not len(truth):
        raise DataError(f"{truth.source} has no true box to score: it needs rows with a box and an action id")
    if not len(true):
        raise DataError(
            f"{truth.source}: no true box is left to score: of {len(truth)}, {outside} have an action id that {label_map.file} "
            f"does not have, and {in_excluded} are in excluded key frames"
        )
    counts_F = np.ones(len(frame_of), np.bool_)
    if how.frames == "named":
        counts_F[num_named:] = False
    elif how.frames == "with truth":
        counts_F = np.bincount(true.frame_K, minlength=len(frame_of)) > 0
    kept, *numbers = _kept(found, frame_of_found, label_map, ~is_excluded_F, counts_F)
    kept, over, cut_among_equals = _best_of_each_frame(kept, how.most_a_frame)
    kept, inside_out = _without_inside_out(kept, true, how)
    reasons = ("outside_label_map", "in_excluded_frames", "in_frames_without_truth")
    dropped = dict(zip(reasons, numbers, strict=True)) | {"over_the_most_a_frame": over, "inside_out": inside_out}
    dropped |= {"truth_outside_label_map": outside, "truth_in_excluded_frames": in_excluded}
    scored_F = counts_F & ~is_excluded_F
    has_found_F = np.bincount(kept.frame_K, minlength=len(frame_of)) > 0
    return Counted(true, kept, int(scored_F.sum()), int((scored_F & ~has_found_F).sum()), dropped, cut_among_equals)


def pieces_of(count: int) -> list[slice]:
    """Slices that cover so many rows."""
    return [slice(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE)]


def _kept(
    rows: BoxRows, frame_of: NDArray[np.int32], label_map: LabelMap, is_kept_F: Bools, counts_F: Bools
) -> tuple[CountedRows, int, int, int]:
    """Rows of the label map in key frames that are kept and count; how many are not, for each of the three reasons."""
    ids = np.array(label_map.ids)
    by_id = np.argsort(ids)
    kept = [(frame_of[:0],) * 3]
    left_out = np.zeros(3, np.int64)
    for some in pieces_of(len(rows)):
        label = rows.label_N[some]
        klass = by_id[np.minimum(np.searchsorted(ids, label, sorter=by_id), len(ids) - 1)]
        frame = frame_of[rows.frame_N[some]]
        is_known = ids[klass] == label
        stays = is_known & is_kept_F[frame]
        counts = stays & counts_F[frame]
        known, staying, counting = (int(np.count_nonzero(which)) for which in (is_known, stays, counts))
        left_out += (len(label) - known, known - staying, staying - counting)
        chosen = np.flatnonzero(counts)
        kept.append(((chosen + some.start).astype(np.int32), frame[chosen], klass[chosen].astype(np.int32)))
    row, frame, column = (np.concatenate(pieces) for pieces in zip(*kept, strict=True))
    outside, in_excluded, uncounted = left_out.tolist()
    return CountedRows(rows, row, frame, column, len(ids)), outside, in_excluded, uncounted


def _best_of_each_frame(found: CountedRows, most: int | None) -> tuple[CountedRows, int, int]:
    """Without the rows beyond the best `most` of their key frame, of equals the first in the file; how many, and how many of
    those share the score of one that stays."""
    if most is None or not len(found):
        return found, 0, 0
    is_cut = np.zeros(len(found), np.bool_)
    is_in_order = (np.diff(found.frame_K) >= 0).all()
    by_frame = None if is_in_order else np.argsort(found.frame_K, kind="stable").astype(np.int32)
    sizes = np.bincount(found.frame_K)
    ends = np.cumsum(sizes)
    among_equals = 0
    for frame in np.flatnonzero(sizes > most):  # a few sorts that stay in the cache beat one of all rows by far
        start, end = int(ends[frame] - sizes[frame]), int(ends[frame])
        rows = np.arange(start, end) if by_frame is None else by_frame[start:end]
        score = found.rows.score_N[found.row_K[rows]]
        order = np.argsort(-score, kind="stable")
        among_equals += int(np.count_nonzero(score[order[most:]] == score[order[most - 1]]))
        is_cut[rows[order[most:]]] = True
    return found.of(~is_cut), int(is_cut.sum()), among_equals


def _without_inside_out(found: CountedRows, truth: CountedRows, how: FrameProtocol) -> tuple[CountedRows, int]:
    if how.refuses_inside_out:
        for rows in (truth, found):
            wrong = _whether_inside_out(rows, flat_too=False)
            if wrong.any():
                first = rows.row_K[np.flatnonzero(wrong)[0]]
                video, time = rows.rows.keys[rows.rows.frame_N[first]]
                raise DataError(
                    f"{rows.rows.source}: {wrong.sum()} boxes are inside out (x1 > x2 or y1 > y2), the first in video "
                    f"{video!r} at {time / 1000:g} s: {rows.rows.box_N4[first].tolist()}; this protocol stops at them, the "
                    "others leave them out"
                )
        return found, 0
    wrong = _whether_inside_out(found, flat_too=True)
    return (found.of(~wrong) if wrong.any() else found), int(wrong.sum())


def _whether_inside_out(rows: CountedRows, *, flat_too: bool) -> Bools:
    wrong = np.zeros(len(rows), np.bool_)
    for some in pieces_of(len(rows)):
        box = rows.boxes_of(some)
        low, high = box[:, :2], box[:, 2:]
        wrong[some] = ((low >= high) if flat_too else (low > high)).any(axis=1)
    return wrong
