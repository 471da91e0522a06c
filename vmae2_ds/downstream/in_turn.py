"""The greedy choice of detection: detections take truths, or tubes take boxes, one after the other, each its best that is left.

P pairs of a chooser and what it may choose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def choose_in_turn(chooser_P: Ints, chosen_P: Ints, num_choosers: int, num_chosen: int) -> Ints:
    """What each chooser gets when they choose one after the other, each the first of its list that is free; -1: nothing.

    All choose at once instead: what several want goes to the first of them, the others go on along their lists. This ends
    in the same choice (deferred acceptance, where all that is chosen prefers choosers alike) after a few rounds of array work.

    Args:
        chooser_P: Pairs sorted by their chooser, which choose in that order, and in a chooser's list by its liking.
        chosen_P: What they would choose.
        num_choosers: All of them.
        num_chosen: All that may be chosen.
    """
    place = np.searchsorted(chooser_P, np.arange(num_choosers), "left")
    stop = np.searchsorted(chooser_P, np.arange(num_choosers), "right")
    nobody = num_choosers
    holder = np.full(num_chosen, nobody)
    active = np.flatnonzero(place < stop)
    while len(active):
        wanted = chosen_P[place[active]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, active)
        has_won = holder[wanted] == active
        moved_out = before[has_won]
        on = np.concatenate((active[~has_won], moved_out[moved_out < nobody]))
        place[on] += 1
        active = on[place[on] < stop[on]]
    got = np.full(num_choosers, -1)
    held = np.flatnonzero(holder < nobody)
    got[holder[held]] = held
    return got
