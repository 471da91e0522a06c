"""The sample sequence: whole epochs, random access, and the same step contents for any split."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae2_ds.data.order import SampleOrder, Shuffle, positions_of
from vmae2_ds.data.seeding import Purpose, generator


def test_every_epoch_is_a_permutation_and_nothing_is_dropped() -> None:
    order = SampleOrder(10, seed=3)
    sequence = [order.index_at(position) for position in range(30)]
    assert [epoch for epoch, _ in sequence] == [0] * 10 + [1] * 10 + [2] * 10
    epochs = [[row for _, row in sequence[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(rows) == list(range(10)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_follows_from_the_seed_alone() -> None:
    order, again, other = SampleOrder(50, seed=1), SampleOrder(50, seed=1), SampleOrder(50, seed=2)
    forwards = [order.index_at(position) for position in range(150)]
    assert [again.index_at(position) for position in reversed(range(150))] == forwards[::-1]
    assert [other.index_at(position) for position in range(150)] != forwards


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_shuffle_is_a_permutation(size: int, seed: int) -> None:
    shuffle = Shuffle(size, np.random.default_rng(seed))
    assert sorted(shuffle) == list(range(size))  # iterating ends at the first IndexError
    with pytest.raises(IndexError):
        shuffle[-1]


@pytest.mark.parametrize(("size", "places"), [(5, 1), (12, 2), (1000, 1)])
def test_every_order_is_as_likely_as_another(size: int, places: int) -> None:
    """Chi-square over what stands at the first places of 24,000 keys: within 5 deviations of its mean."""
    keys = 24_000
    rng = np.random.default_rng(0)
    seen = Counter(
        tuple(shuffle[place] for place in range(places)) for shuffle in (Shuffle(size, rng) for _ in range(keys))
    )
    outcomes = list(permutations(range(size), places))
    assert seen.keys() <= set(outcomes)
    expected = keys / len(outcomes)
    chi_square = sum((seen[outcome] - expected) ** 2 / expected for outcome in outcomes)
    freedom = len(outcomes) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_are_strangers() -> None:
    """Rows next to each other in a list come from one folder or class; a batch must not."""
    shuffle = Shuffle(100_000, np.random.default_rng(0))
    rows = np.array([shuffle[place] for place in range(20_000)])
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 5 / len(rows) ** 0.5
    near = np.mean(np.abs(np.diff(rows)) <= 100)  # by chance 200 of 100,000
    assert near == pytest.approx(2e-3, abs=5 * (2e-3 / len(rows)) ** 0.5)


def test_a_hundred_million_rows_cost_no_memory() -> None:
    tracemalloc.start()
    order = SampleOrder(10**8, seed=0)
    found = {order.index_at(position) for position in (0, 1, 10**8 - 1, 10**8, 3 * 10**8 + 7)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 5
    assert peak < 100_000


@pytest.mark.parametrize(
    ("micro_batch", "accumulation", "world_size"), [(12, 1, 1), (6, 2, 1), (3, 2, 2), (1, 3, 4), (2, 1, 6), (1, 1, 12)]
)
def test_a_step_holds_the_same_positions_for_any_split(micro_batch: int, accumulation: int, world_size: int) -> None:
    for step in (0, 1, 7):
        found = [
            position
            for micro_step in range(accumulation)
            for rank in range(world_size)
            for position in positions_of(
                step, micro_step, rank, micro_batch=micro_batch, accumulation=accumulation, world_size=world_size
            )
        ]
        assert found == list(range(12 * step, 12 * (step + 1)))


def test_streams_do_not_share_draws() -> None:
    keys = [
        (purpose, 0, epoch, row, view) for purpose in Purpose for epoch in (0, 1) for row in (0, 1) for view in (0, 1)
    ]
    draws = {float(generator(*key).random()) for key in keys}
    assert len(draws) == len(keys)
    # why keys have a fixed length: SeedSequence pads with zeros
    assert np.random.default_rng((1, 2)).random() == np.random.default_rng((1, 2, 0)).random()
