"""The verb `vmae2 ava boxes`: persons' boxes from one form into another, from a detector's results, or from videos."""

from __future__ import annotations

import numpy as np

from vmae2_ds.downstream.ava.box_arguments import AvaBoxesArguments, Boxed, check_written, written
from vmae2_ds.downstream.ava.person_boxes import PersonBoxes, read_person_boxes
from vmae2_ds.downstream.ava.rows import BoxRows, read_truth, seconds_of
from vmae2_ds.errors import DataError


def ava_boxes(asked: AvaBoxesArguments) -> Boxed:
    """Write the file; raises ConfigError or DataError where files are of no use, and with --videos as `boxes_of_videos`."""
    if asked.videos is not None:
        from vmae2_ds.downstream.ava.find_persons import boxes_of_videos

        return boxes_of_videos(asked)
    check_written(asked)
    source = asked.from_coco if asked.convert is None else asked.convert[0]
    assert source is not None, "checked"
    boxes = read_person_boxes(source, asked.images, category=asked.category)
    truth = None if asked.truth is None else read_truth(asked.truth)
    if asked.from_coco is not None and truth is not None:
        boxes = of_key_frames(boxes, truth, asked.threshold)
    return written(asked, boxes, truth)


def of_key_frames(boxes: PersonBoxes, truth: BoxRows, threshold: float) -> PersonBoxes:
    """The boxes at key frames of the truth that score enough. Raises DataError where none is left."""
    named = set(truth.keys)
    is_named_F = np.array([key in named for key in boxes], bool)
    if len(boxes) and not is_named_F.any():
        (video, time), (other, at) = next(iter(boxes)), next(iter(named), ("none", 0))
        raise DataError(
            f"{boxes.file} and {truth.source} have no key frame in common (video {video!r} at {seconds_of(time)} s, ... and "
            f"{other!r} at {seconds_of(at)} s, ...): the boxes are of another set, or their times count from another moment"
        )
    return boxes.of((boxes.box_N5[:, 4] >= threshold) & is_named_F[boxes.frame_N])
