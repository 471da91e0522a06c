"""Contact sheets of key frames: which boxes, labels and words stand in them, beside the truth where there is one.

`key_frame_picture` draws one key frame of which nothing but boxes and actions is known; `vmae2 ava check` uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vmae2_ds.console.progress import counted
from vmae2_ds.downstream.ava.compared import (
    FOUND,
    KINDS_OF_DETECTIONS,
    LOWEST_IOU,
    MISSED,
    NOT_ASKED,
    NOT_COMPARED,
    Compared,
    overlaps_between,
)
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.people import Person, ShownFrame
from vmae2_ds.draw.frames import BoxLabel, FrameBox, FramePicture, Panel, sheet_of_frames
from vmae2_ds.draw.pictures import spread
from vmae2_ds.draw.sheet import Sheet


class Look(NamedTuple):
    """What is drawn of people."""

    label_map: LabelMap | None
    top_k: int
    """Labels of a predicted box, those of the best scores."""

    def name(self, action: int) -> str:
        """What an action is called."""
        if self.label_map is None:
            return f"action {action}"
        column = self.label_map.class_of.get(action)
        return f"action {action}, not in the label map" if column is None else self.label_map.names[column]


def key_frame_picture(
    title: str,
    pixels_HWC: np.ndarray | None,
    box_G4: np.ndarray,
    action_ids: Sequence[Sequence[int]],
    label_map: LabelMap | None,
    about: str = "",
) -> FramePicture:
    """One key frame and people in it, for `sheet_of_frames`.

    Args:
        title: What stands above, such as the video and the time.
        pixels_HWC: uint8; None: there is no such frame, and boxes lie on grey.
        box_G4: x1, y1, x2, y2 in shares of the frame.
        action_ids: Of each box.
        label_map: Names of the actions.
        about: A line under the title.
    """
    look = Look(label_map, 0)
    boxes = [
        FrameBox((float(box[0]), float(box[1]), float(box[2]), float(box[3])), NOT_ASKED, str(number),
                 tuple(BoxLabel(look.name(action), NOT_ASKED) for action in actions))
        for number, (box, actions) in enumerate(zip(box_G4, action_ids, strict=True), 1)
    ]  # fmt: skip
    return FramePicture(title, (Panel(about, pixels_HWC, tuple(boxes)),))


def picture_of(compared: Compared, frame: ShownFrame, pixels_HWC: np.ndarray | None, look: Look) -> FramePicture:
    """A key frame with its truth, and beside it with what was predicted; one of both where there is no other."""
    mistakes = mistakes_in(compared, frame)
    said = f"{frame.time_s:g} s" + (f": {counted(mistakes, 'mistake')}" if compared.is_compared else "")
    return FramePicture(said, panels_of(compared, frame, pixels_HWC, look))


def panels_of(compared: Compared, frame: ShownFrame, pixels_HWC: np.ndarray | None, look: Look) -> tuple[Panel, ...]:
    """The panels of a key frame: truth first."""
    panels = []
    if compared.has_truth:
        boxes = tuple(_truth_box(compared, one, look) for one in frame.truth)
        panels.append(Panel(_said_of_truth(compared, frame), pixels_HWC, boxes))
    if compared.has_detections:
        boxes = tuple(_found_box(compared, one, frame.truth, look) for one in frame.found)
        panels.append(Panel(_said_of_found(compared, frame), pixels_HWC, boxes))
    return tuple(panels)


def mistakes_in(compared: Compared, frame: ShownFrame) -> int:
    """How many truths are missed and detections false."""
    missed = sum(bool(compared.is_missed[row]) for one in frame.truth for row in one.rows)
    return missed + sum(bool(compared.is_false[row]) for one in frame.found for row in one.rows)


def choose_frames(compared: Compared, frames: Sequence[ShownFrame], most: int, *, worst: bool) -> list[ShownFrame]:
    """Up to `most` key frames in the order of time: those with most mistakes, or some at even distances."""
    mistakes = [mistakes_in(compared, frame) for frame in frames]
    if worst and any(mistakes):
        places = sorted(range(len(frames)), key=lambda place: -mistakes[place])[:most]
    else:
        places = spread(len(frames), most) if frames else []
    return [frames[place] for place in sorted(places)]


def video_notes(compared: Compared, frames: Sequence[ShownFrame], chosen: Sequence[ShownFrame]) -> list[str]:
    """What is said of a video: how many key frames of it are drawn, what was missed and what is false in all of them."""
    said = [f"{len(chosen)} of {counted(len(frames), 'key frame')}"]
    true = [row for frame in frames for one in frame.truth for row in one.rows]
    found = [row for frame in frames for one in frame.found for row in one.rows]
    if compared.is_compared:
        said.append(
            f"{int(compared.is_missed[true].sum())} of {counted(int(compared.asked_G[true].sum()), 'true label')} missed"
        )
    elif compared.has_truth:
        said.append(counted(len(true), "true label"))
    if compared.has_detections:
        least = (
            f" with a score of at least {score_text(compared.threshold)}" if math.isfinite(compared.threshold) else ""
        )
        wrong = f", {int(compared.is_false[found].sum())} of them wrong" if compared.is_compared else ""
        judged = int(compared.is_judged[found].sum()) if compared.is_compared else len(found)
        said.append(f"{counted(judged, 'predicted label')}{least}{wrong}")
        if judged < len(found):
            said.append(f"{len(found) - judged} more of actions or key frames that are not scored")
    return ["; ".join(said) + "."]


def video_sheet(
    title: str,
    notes: Sequence[str],
    compared: Compared,
    pictures: Sequence[FramePicture],
    width: float,
    *,
    titled: bool,
) -> Sheet:
    """The contact sheet of a video."""
    kinds = {kind for picture in pictures for kind in picture.kinds()}
    return sheet_of_frames(title, [*notes, *key_of(compared, kinds)], pictures, width, titled=titled)


def key_of(compared: Compared, kinds: Iterable[str]) -> list[str]:
    """What names, numbers and marks mean."""
    said = []
    if compared.has_truth and compared.has_detections:
        said.append(
            f"Numbers name people of the truth, letters predicted boxes. On: overlaps that person by at least "
            f"{compared.iou:g} (intersection over union); near: by at least {LOWEST_IOU:g}. Beside a label: its score."
        )
    about = [
        f"{kind}: {words}" for kind, words in KINDS_OF_DETECTIONS.items() if kind in kinds and kind != NOT_COMPARED
    ]
    return [*said, *(["; ".join(about) + "."] if about else [])]


def score_text(score: float) -> str:
    """A score in few digits."""
    return f"{score:.2f}" if score >= 0.0995 or score == 0 else f"{score:.2g}"


def _truth_box(compared: Compared, one: Person, look: Look) -> FrameBox:
    kinds = [compared.kind_of_truth(row) for row in one.rows]
    kind = next((kind for kind in (FOUND, MISSED) if kind in kinds), NOT_ASKED)
    actions = [int(compared.truth.label_N[row]) for row in one.rows]
    labels = tuple(BoxLabel(look.name(action), own) for action, own in zip(actions, kinds, strict=True) if action >= 0)
    return FrameBox(one.box, kind, one.name, labels)


def _found_box(compared: Compared, one: Person, truth: Sequence[Person], look: Look) -> FrameBox:
    rows = compared.detections
    kinds = [compared.kind_of(row) for row in one.rows]
    kind = min(kinds, key=list(KINDS_OF_DETECTIONS).index)
    labels = [
        BoxLabel(look.name(int(rows.label_N[row])), own, score_text(float(rows.score_N[row])))
        for row, own in zip(one.rows, kinds, strict=True)
        if rows.label_N[row] >= 0
    ]
    notes = [] if labels else [score_text(float(rows.score_N[one.rows[0]]))]
    if truth:
        overlap_A = overlaps_between(np.array([other.box for other in truth]), np.array([one.box]))[:, 0]
        best = int(overlap_A.argmax())
        if overlap_A[best] >= LOWEST_IOU:
            notes.append(f"{'on' if overlap_A[best] >= compared.iou else 'near'} {truth[best].name}")
    if len(labels) > look.top_k:
        notes.append(f"+{len(labels) - look.top_k}")
    return FrameBox(one.box, kind, one.name, tuple(labels[: look.top_k]), ", ".join(notes))


def _said_of_truth(compared: Compared, frame: ShownFrame) -> str:
    rows = [row for one in frame.truth for row in one.rows]
    missed = sum(bool(compared.is_missed[row]) for row in rows) if compared.is_compared else 0
    labels = sum(int(compared.truth.label_N[row]) >= 0 for row in rows)
    said = f"truth: {counted(len(frame.truth), 'person', 'people')}, {counted(labels, 'label')}"
    return said + (f", {missed} missed" if compared.is_compared else "")


def _said_of_found(compared: Compared, frame: ShownFrame) -> str:
    rows = [row for one in frame.found for row in one.rows]
    false = sum(bool(compared.is_false[row]) for row in rows)
    labels = sum(int(compared.detections.label_N[row]) >= 0 for row in rows)
    said = f"predicted: {counted(len(frame.found), 'box', 'boxes')}, {counted(labels, 'label')}"
    unscored = len(rows) - int(compared.is_judged[rows].sum())
    said += f", {false} wrong" if compared.is_compared else ""
    return said + (f", {unscored} unscored" if compared.is_compared and unscored else "")
