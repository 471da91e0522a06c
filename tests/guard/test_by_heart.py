"""When a run is said to learn its videos by heart, over made rows."""

from __future__ import annotations

import math

import pytest

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.guard.by_heart import ByHeartWatch

FALLING = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def said_after(val: list[float | None], seen: list[float], **data: object) -> tuple[list[int], str]:
    config = PretrainConfig(model=ModelConfig.of_size("tiny"), data=data)
    watch = ByHeartWatch(config)
    rows = [
        {"step": step, "epoch": step / 4, "val_loss": loss, "seen_loss": beside}
        for step, (loss, beside) in enumerate(zip(val, seen, strict=True))
    ]
    found = [watch.row(row) for row in rows]
    return [step for step, warning in enumerate(found) if warning], "".join(warning or "" for warning in found)


@pytest.mark.parametrize(
    ("val", "seen", "steps"),
    [
        ([1.0, 0.9, 0.95, 0.96, 0.97, 0.98], FALLING, [3]),  # once
        ([1.0, 0.9, 0.908, 0.908, 0.908, 0.908], FALLING, []),  # by less than 1 %
        ([1.0, 0.9, 0.95, 0.905, 0.95, 0.905], FALLING, []),  # never twice in a row
        ([1.0, 0.9, 0.95, 0.89, 0.95, 0.95], FALLING, [5]),  # a new best between
        ([1.0, 0.9, 0.95, 0.96, 0.97, 0.98], [0.9, 0.8, 0.8, 0.81, 0.82, 0.83], []),  # both rise: something else
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], FALLING, [2]),  # from the start
        ([1.0, 0.9, None, math.nan, 0.95, 0.96], FALLING, [5]),  # what could not be measured is no row
        ([math.nan, 0.9, 0.95, 0.96, 0.9, 0.9], FALLING, [3]),
    ],
)
def test_twice_a_hundredth_above_the_best_while_trained_videos_get_better(
    val: list[float | None], seen: list[float], steps: list[int]
) -> None:
    assert said_after(val, seen)[0] == steps


def test_the_line_names_the_best_and_what_has_not_been_tried() -> None:
    val, seen = [1.0, 0.9, 0.95, 0.99, 1.0, 1.0], FALLING
    line = said_after(val, seen)[1]
    assert line == (
        "the videos are learned by heart: at step 3 val_loss is 0.99, 10.0% above its best, 0.9 at step 1 (0.25 passes over "
        "the data), while seen_loss fell from 0.8 to 0.6: keep the best (--train.keep-best val_loss), and take fewer passes "
        "(--train.epochs 1), clips that are mirrored (--data.flip 0.5), more varied crops (--data.crop-scales 1 0.875 0.75 "
        "0.66 0.5), or more videos"
    )
    tried = said_after(val, seen, flip=0.5, crop_scales=(1.0, 0.5))[1]
    assert tried.endswith("and take fewer passes (--train.epochs 1), or more videos")
    from_the_start = said_after([0.5, 0.6, 0.7], FALLING[:3])[1]
    assert "0.5 at step 0 (0 passes over the data)" in from_the_start
    assert "--train.epochs" not in from_the_start
