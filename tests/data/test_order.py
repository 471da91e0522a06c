"""The sample sequence: whole epochs, random access, and the same step contents for any split."""

from __future__ import annotations

import numpy as np
import pytest

from vmae2_ds.data.order import SampleOrder, positions_of
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
