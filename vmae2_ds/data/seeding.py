"""Random streams by purpose and sample: the same draws on any number of workers, ranks or resumes."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Streams that must not share draws. The numbers are part of every run's identity: never change or reuse one."""

    ORDER = 1
    FRAMES = 2
    CROP = 3
    MASK = 4
    REPLACEMENT = 5
    AUGMENT = 6
    ERASE = 7
    MIX = 8
    STRETCH = 9
    BOXES = 10
    HELD_BACK = 11


def generator(
    purpose: Purpose, seed: int, epoch: int, row: int = 0, view: int = 0, attempt: int = 0, source: int = 0
) -> np.random.Generator:
    """The numpy Generator of one draw.

    The key has a fixed length because SeedSequence pads with zeros: (1, 2) and (1, 2, 0) give the same stream. That is
    also why `source`, which came last, stands last: the first source draws what a single manifest always drew.
    """
    return np.random.default_rng((int(purpose), seed, epoch, row, view, attempt, source))
