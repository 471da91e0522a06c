"""The start of a run: types that keep its phases in order, and a loop that stays a page."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.train.loop import train
from vmae2_ds.train.phases import Built, Met, Opened, Ready, build, make_ready, meet, not_given, open_run
from vmae2_ds.train.pretrain import pretrain_stage

PHASES = {Met: meet, Opened: open_run, Built: build, Ready: make_ready}


def test_each_phase_is_made_from_the_one_before() -> None:
    """A type checker then finds two that have changed places; none is a kind of another, which would let one be left out."""
    for before, phase in pairwise(PHASES):
        taken = get_type_hints(PHASES[phase])
        assert taken.pop("return") is phase
        assert [kind for kind in taken.values() if kind in PHASES] == [before]
        assert phase.__mro__ == (phase, object)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_that_is_over_does_not_change(phase: type) -> None:
    value = object.__new__(phase)
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(phase)[0].name, None)


def test_the_loop_is_a_page() -> None:
    """It can be read aloud."""
    lines, _ = inspect.getsourcelines(train)
    assert len(lines) < 60
    assert len(inspect.signature(train).parameters) <= 6


@pytest.mark.parametrize(
    ("settings", "validates", "step", "expected"),
    [
        ({}, False, 0, []),
        ({"optim": {"freeze_encoder_steps": 3}}, False, 0, ["no --train.init: from random weights"]),
        ({"optim": {"layer_decay": 0.5}}, False, 0, ["no --train.init: from random weights"]),
        ({"optim": {"freeze_encoder_steps": 3}}, False, 2, []),
        ({"optim": {"freeze_encoder_steps": 3}, "train": {"init": "a.pth"}}, False, 0, []),
        (
            {"train": {"keep_best": "val_loss"}},
            False,
            2,
            ["--train.keep-best val_loss needs validation videos, and this run has none: no checkpoint is kept as the best"],
        ),
        ({"train": {"keep_best": "val_loss"}}, True, 0, []),
        ({"train": {"keep_best": "loss"}}, False, 0, []),
    ],
)  # fmt: skip
def test_what_is_hardly_ever_left_out_on_purpose_is_told(
    settings: dict[str, Any], validates: bool, step: int, expected: list[str]
) -> None:
    config = PretrainConfig(model=ModelConfig.of_size("tiny"), **settings)
    met = SimpleNamespace(config=config, stage=pretrain_stage(config))
    opened: Any = SimpleNamespace(met=met, validate=print if validates else None)
    assert not_given(opened, step) == expected
