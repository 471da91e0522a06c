"""The start of a run: types that keep its phases in order, and a loop that stays a page."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import get_type_hints

import pytest

from vmae2_ds.train.loop import train
from vmae2_ds.train.phases import Built, Met, Opened, Ready, build, make_ready, meet, open_run

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
