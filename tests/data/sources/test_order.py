"""The sample sequence: whole epochs, random access, and the same step contents for any split."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae2_ds.data.seeding import Purpose, generator
from vmae2_ds.data.sources.order import SampleKey, SampleOrder, Shuffle, SourceTurns, _chairmen, positions_of


def test_every_epoch_is_a_permutation_and_nothing_is_dropped() -> None:
    order = SampleOrder([10], seed=3)
    sequence = [order.key_at(position) for position in range(30)]
    assert [draw.epoch for draw in sequence] == [0] * 10 + [1] * 10 + [2] * 10
    epochs = [[draw.row for draw in sequence[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(rows) == list(range(10)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.length is None


def test_order_follows_from_the_seed_alone() -> None:
    shares = {"sizes": [50, 7, 20], "shares": [0.5, 0.2, 0.3], "limits": [None, 9, 40]}
    order, again, other = (SampleOrder(seed=seed, **shares) for seed in (1, 1, 2))
    forwards = [order.key_at(position) for position in range(350)]
    assert [again.key_at(position) for position in reversed(range(350))] == forwards[::-1]
    assert [other.key_at(position) for position in range(350)] != forwards


MIXTURES = st.lists(
    st.tuples(st.integers(1, 60), st.floats(1e-3, 1), st.none() | st.integers(0, 300)), min_size=1, max_size=7
)


@given(mixture=MIXTURES, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_source_goes_through_its_own_epochs_up_to_its_limit(
    mixture: list[tuple[int, float, int | None]], seed: int
) -> None:
    sizes, shares, limits = zip(*mixture, strict=True)
    order = SampleOrder(sizes, seed, shares, limits)
    length = 2000 if order.length is None else order.length
    drawn: list[list[SampleKey]] = [[] for _ in sizes]
    for position in range(length):
        draw = order.key_at(position)
        drawn[draw.source].append(draw)
    for size, limit, draws in zip(sizes, limits, drawn, strict=True):
        assert limit is None or len(draws) <= limit
        for epoch in range(len(draws) // size):
            part = draws[epoch * size : (epoch + 1) * size]
            assert {draw.epoch for draw in part} == {epoch}
            assert sorted(draw.row for draw in part) == list(range(size))
        rest = draws[len(draws) // size * size :]
        assert len({draw.row for draw in rest}) == len(rest)
    if order.length is not None:
        assert [len(draws) for draws in drawn] == list(limits)
        with pytest.raises(IndexError, match=f"an order of {length} samples"):
            order.key_at(length)


@given(counts=st.lists(st.integers(1, 400), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_after_any_number_of_turns_each_source_had_its_share(counts: list[int]) -> None:
    """Tijdeman's bound, in whole numbers: |had - share| <= 1 - 1/(2n - 2)."""
    table, total = _chairmen(tuple(counts)), sum(counts)
    assert np.bincount(table, minlength=len(counts)).tolist() == counts
    if len(counts) > 1:
        had = np.cumsum(table[:, None] == np.arange(len(counts)), axis=0)
        off = np.abs(total * had - np.array(counts) * np.arange(1, total + 1)[:, None])
        assert (off * (2 * len(counts) - 2)).max() <= total * (2 * len(counts) - 3)


@given(shares=st.lists(st.floats(1e-4, 1), min_size=2, max_size=6), start=st.integers(0, 50_000))
@settings(max_examples=30, deadline=None)
def test_shares_hold_in_every_window_of_2000(shares: list[float], start: int) -> None:
    """Within 0.5 %: less than 2 samples of 2,000, and what the table's 10,000ths and smallest turn cost."""
    order = SampleOrder([1000] * len(shares), seed=0, shares=shares)
    seen = Counter(order.key_at(position).source for position in range(start, start + 2000))
    for source, share in enumerate(shares):
        assert seen[source] / 2000 == pytest.approx(share / sum(shares), abs=0.005)


@pytest.mark.parametrize(
    ("shares", "turns"),
    [
        ([1, 1e-9], [9999, 1]),  # the smallest source has its turn
        ([5, 4, 1e-9, 1e-9, 1e-9], [5554, 4443, 1, 1, 1]),  # 5555.6 and 4444.4 give them theirs
        (
            [0.50006, 0.24997, 0.24997],
            [5000, 2500, 2500],
        ),  # 5000.6, 2499.7, 2499.7: the largest remainders are rounded up
        (
            [658, 169, 21, 250, 250],
            [4881, 1254, 156, 1855, 1854],
        ),  # UnlabeledHybrid: 4881.3, 1253.7, 155.8, 1854.6, 1854.6
    ],
)
def test_shares_are_kept_to_a_ten_thousandth_and_no_source_is_forgotten(shares: list[float], turns: list[int]) -> None:
    order = SampleOrder([1000] * len(shares), seed=0, shares=shares)
    seen = Counter(order.key_at(position).source for position in range(10_000))
    assert [seen[source] for source in range(len(shares))] == turns


def test_turns_can_be_counted_from_both_sides() -> None:
    turns = SourceTurns({4: 0.7, 7: 0.2, 9: 0.1})
    seen: Counter[int] = Counter()
    for turn in range(2 * SourceTurns.TABLE + 100):
        assert turns.count_before(4, turn) == seen[4]
        source, before = turns.at(turn)
        assert before == seen[source]
        assert turns.position_of(source, before) == turn
        seen[source] += 1


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
    order = SampleOrder([10**8], seed=0)
    found = {order.key_at(position) for position in (0, 1, 10**8 - 1, 10**8, 3 * 10**8 + 7)}
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
        (purpose, 0, epoch, row, view, 0, source)
        for purpose in Purpose
        for epoch, row, view, source in product((0, 1), repeat=4)
    ]
    draws = {float(generator(*key).random()) for key in keys}
    assert len(draws) == len(keys)
    # why keys have a fixed length: SeedSequence pads with zeros
    assert np.random.default_rng((1, 2)).random() == np.random.default_rng((1, 2, 0)).random()


@pytest.mark.parametrize("limits", [None, [7, None]])
def test_samples_before_a_position_are_those_that_were_there(limits: list[int | None] | None) -> None:
    order = SampleOrder([5, 12], seed=3, shares=[0.5, 0.5], limits=limits)
    keys = [order.key_at(at) for at in range(60)]
    for position in (0, 1, 13, 14, 15, 60):
        counted = tuple(sum(key.source == source for key in keys[:position]) for source in (0, 1))
        assert order.used_before(position) == counted
