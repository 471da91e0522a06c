"""The loop around real arithmetic, against the same steps in numpy: what is applied, averaged, counted and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.little_ranks import LittleEngine, LittleRanks, Meeting
from tests.train.quiet_hooks import QuietHooks
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.contracts import LoadedBatch, ReadFailure, StepResult
from vmae2_ds.errors import Diverged
from vmae2_ds.guard.spikes import SpikeGuard
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.train.ema import WeightAverage
from vmae2_ds.train.loop import LoopSetup, train
from vmae2_ds.train.row import Interval, ModelFlops, Row

STEPS, MICRO_BATCHES, CLIPS, WIDTH, DECAY = 9, 4, 4, 3, 0.7
FIRST = np.array([0.5, -1.0, 2.0])
POISON = {(3, 1): math.nan, (5, 3): math.inf, (6, 0): -math.inf}
"""(step, micro batch of the global batch) -> a target that makes its loss and gradient not finite."""
FAILURES = {(2, 0): 1, (4, 3): 2}
"""Videos that were replaced in a micro batch."""
RATES = [0.0, 0.05, 0.1, 0.1, *(0.02 + 0.04 * (1 + math.cos(math.pi * k / 6)) for k in range(1, 6))]
"""A warm-up of three steps from nothing to 0.1, whose last is the peak, and half a cosine over six down to 0.02."""
RANKS = [1, 2, 4]


def clips_of(step: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Micro batch `number` of the global batch of `step`: the same however many ranks share it."""
    rng = np.random.default_rng((step, number))
    x_BD, y_B = rng.normal(size=(CLIPS, WIDTH)), rng.normal(size=CLIPS)
    if (step, number) in POISON:
        y_B[1] = POISON[step, number]
    return x_BD, y_B


@dataclass
class Rank:
    """What one rank was told and did."""

    weights: list[np.ndarray] = field(default_factory=list)
    means: list[np.ndarray] = field(default_factory=list)
    """Of the weights, after each step."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    tried: list[tuple[int, int]] = field(default_factory=list)
    draws: dict[tuple[int, int], float] = field(default_factory=dict)
    state: TrainState = field(default_factory=TrainState)


def plan_of(ranks: int) -> RunPlan:
    """Eight videos with two views each in a step, of a list of twenty."""
    return RunPlan(
        global_batch=16, micro_batch=2, views=2, accumulation=MICRO_BATCHES // ranks, world_size=ranks, num_videos=20,
        steps_per_epoch=2.5, num_steps=STEPS, warmup_steps=3, base_lr=0.1, lr_batch=8, peak_lr=0.1, min_lr=0.02,
    )  # fmt: skip


def run(ranks: int, guard: GuardConfig | None = None, **changes: Any) -> list[Rank]:
    """Nine steps on `ranks` ranks."""
    accumulation, meeting, found = MICRO_BATCHES // ranks, Meeting(ranks), [Rank() for _ in range(ranks)]
    config = TrainConfig.model_validate({"seed": 5, "log_every": 3, "save_every": 4, **changes})

    def batches(rank: int) -> Iterator[LoadedBatch]:
        for step in range(STEPS):
            for micro_step in range(accumulation):
                number = micro_step * ranks + rank
                failures = [ReadFailure("bad.mp4", "no video")] * FAILURES.get((step, number), 0)
                batch: Any = tuple(map(torch.from_numpy, clips_of(step, number)))
                yield LoadedBatch(batch, failures, {"a": 1, "b": number})

    def rank_of(rank: int) -> None:
        mine, among = found[rank], LittleRanks(rank, rank, ranks, meeting=meeting)
        engine: Any = LittleEngine(torch.from_numpy(FIRST), accumulation, rank, meeting)
        mean = WeightAverage(engine, DECAY)

        class Hooks(QuietHooks):
            def updated(self) -> None:
                mean.update()

            def check_bad_share(self, bad: int, tried: int) -> None:
                mine.tried.append((bad, tried))

            def stepped(self, step: int) -> None:
                mine.weights.append(engine.weights.detach().numpy().copy())
                mine.means.append(mean._mean[0].numpy().copy())

            def worker_memory_gib(self) -> tuple[float, float]:
                return 1.0 + rank, 2.0

            def save(self, state: TrainState) -> None:
                mine.saved.append(state.step)

        hooks = Hooks()
        mine.rows = hooks.rows
        setup = LoopSetup(
            plan=plan_of(ranks), config=config, sources=("a", "b"), stop=StopRequests(), flops=ModelFlops(0, None), reseed=True,
            guard=SpikeGuard(guard or GuardConfig(on_spike="off"), among),
        )  # fmt: skip
        train(engine, batches(rank), setup, mine.state, hooks, among)
        for place, value in enumerate(engine.draws):
            step, micro_step = divmod(place, accumulation)
            mine.draws[step, micro_step * ranks + rank] = value

    meeting.run(rank_of)
    return found


@pytest.fixture(scope="module")
def runs() -> dict[int, list[Rank]]:
    return {ranks: run(ranks) for ranks in RANKS}


@dataclass
class Plain:
    """The same nine steps in numpy, the whole batch at once."""

    weights: list[np.ndarray]
    means: list[np.ndarray]
    losses: list[list[float]]
    flat: list[list[float]]
    norms: list[float]


@pytest.fixture(scope="module")
def plain() -> Plain:
    w = mean = FIRST
    found = Plain([], [], [], [], [])
    for step in range(STEPS):
        losses, flat, gradient = [], [], np.zeros(WIDTH)
        for number in range(MICRO_BATCHES):
            x_BD, y_B = clips_of(step, number)
            difference_B = x_BD @ w - y_B
            losses.append(float(np.mean(difference_B**2)))
            flat.append(float(np.mean(y_B**2)))
            gradient = gradient + 2 * x_BD.T @ difference_B / CLIPS / MICRO_BATCHES
        norm = float(np.sqrt(np.sum(gradient**2)))
        if np.isfinite(norm):
            w = w - RATES[step] * gradient
            mean = DECAY * mean + (1 - DECAY) * w
        found.weights.append(w)
        found.means.append(mean)
        found.losses.append(losses)
        found.flat.append(flat)
        found.norms.append(norm)
    return found


@pytest.mark.parametrize("ranks", RANKS)
def test_weights_are_those_of_the_whole_batch_and_a_refused_step_changes_none(
    ranks: int, runs: dict[int, list[Rank]], plain: Plain
) -> None:
    for rank in runs[ranks]:
        np.testing.assert_allclose(rank.weights, plain.weights, rtol=1e-12)
        for step, _ in POISON:
            assert np.array_equal(rank.weights[step], rank.weights[step - 1])


@pytest.mark.parametrize("ranks", RANKS)
def test_the_mean_of_the_weights_stands_still_where_an_update_is_refused(
    ranks: int, runs: dict[int, list[Rank]], plain: Plain
) -> None:
    """Else a refused step would pull it towards the same weights once more."""
    for rank in runs[ranks]:
        np.testing.assert_allclose(rank.means, plain.means, rtol=1e-12)
        for step, _ in POISON:
            assert np.array_equal(rank.means[step], rank.means[step - 1])


@pytest.mark.parametrize("ranks", RANKS)
def test_rows_average_what_is_finite_over_steps_micro_steps_and_ranks(
    ranks: int, runs: dict[int, list[Rank]], plain: Plain
) -> None:
    for rank in runs[ranks]:
        assert [row["step"] for row in rank.rows] == [3, 6, 9]
        for row in rank.rows:
            of_row = slice(row["step"] - 3, row["step"])
            losses, flat = np.array(plain.losses[of_row]), np.array(plain.flat[of_row])
            finite = np.isfinite(losses)
            assert row["loss"] == pytest.approx(losses[finite].mean(), rel=1e-6)
            assert row["flat_loss"] == pytest.approx(flat[finite].mean(), rel=1e-6)
            assert row["lr"] == pytest.approx(RATES[row["step"] - 1])
            assert row["grad_norm"] == pytest.approx(plain.norms[row["step"] - 1], rel=1e-6)
        assert [row["skipped_steps"] for row in rank.rows] == [0, 2, 3]
        assert [row["worker_mem_max_gib"] for row in rank.rows] == [ranks, ranks, ranks]


@pytest.mark.parametrize("ranks", RANKS)
def test_epochs_and_shares_are_of_videos_not_of_views(ranks: int, runs: dict[int, list[Rank]]) -> None:
    """8 videos a step: 24 of 20 after three. One was unreadable in the third step, two in the fifth, and all were tried."""
    for rank in runs[ranks]:
        assert [row["epoch"] for row in rank.rows] == pytest.approx([1.2, 2.4, 3.6])
        assert rank.tried == [
            (0, 8), (0, 16), (1, 25), (1, 33), (3, 43), (3, 51), (3, 59), (3, 67), (3, 75),
        ]  # fmt: skip
        assert (rank.state.bad_videos, rank.state.videos_tried) == (3, 75)
        assert [row["new_bad_videos"] for row in rank.rows] == [1, 2, 0]
        assert rank.state.source_videos == {"a": 4 * STEPS, "b": (0 + 1 + 2 + 3) * STEPS}


@pytest.mark.parametrize("ranks", RANKS)
def test_every_micro_batch_has_draws_of_its_own_whichever_rank_it_is_on(
    ranks: int, runs: dict[int, list[Rank]]
) -> None:
    draws = {place: value for rank in runs[ranks] for place, value in rank.draws.items()}
    assert draws == runs[1][0].draws
    assert len(set(draws.values())) == len(draws) == STEPS * MICRO_BATCHES


def test_draws_follow_the_seed() -> None:
    (rank,) = run(1, seed=6)
    assert not set(rank.draws.values()) & set(run(1)[0].draws.values())


@pytest.mark.parametrize("ranks", RANKS)
def test_it_saves_and_counts_alike_on_all_ranks(ranks: int, runs: dict[int, list[Rank]]) -> None:
    for rank in runs[ranks]:
        assert rank.saved == [4, 8, 9]
        assert (rank.state.step, rank.state.skipped_steps, rank.state.skipped_in_a_row) == (9, 3, 0)


def test_as_many_refused_steps_in_a_row_as_are_allowed_do_not_stop_a_run() -> None:
    """Steps 4, 6 and 7 are refused: two in a row at most."""
    assert run(2, max_nonfinite_steps=2)[0].state.step == STEPS
    with pytest.raises(Diverged, match="2 steps in a row"):
        run(2, max_nonfinite_steps=1)


@pytest.mark.parametrize("on_spike", ["skip", "warn"])
def test_a_loss_that_is_not_finite_is_noticed_before_its_update(on_spike: str, plain: Plain) -> None:
    """Of one rank of two, which take two micro steps each."""
    found = run(2, GuardConfig.model_validate({"on_spike": on_spike}))
    for rank in found:
        assert rank.state.skipped_steps == 3
        assert rank.state.spikes == 0, "what is not finite is counted as skipped, not as a spike"
        good = [step for step in range(STEPS) if np.isfinite(plain.losses[step]).all()]
        assert good == [0, 1, 2, 4, 7, 8]
        assert rank.state.recent["grad_norm"] == pytest.approx([plain.norms[step] for step in good])
        assert rank.state.recent["loss"] == pytest.approx([np.mean(plain.losses[step]) for step in good])
        of_ranks = [np.reshape(plain.losses[step], (2, 2)).mean(axis=0) for step in good]  # of micro steps, then ranks
        assert rank.state.recent["rank_loss"] == pytest.approx([max(of_step) for of_step in of_ranks])


def test_the_wait_for_data_is_the_mean_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten seconds one rank waits for one and another for three: a fifth of the time."""
    clock = SimpleNamespace(perf_counter=lambda: 100.0, time=lambda: 0.0)
    monkeypatch.setattr("vmae2_ds.train.row.time", clock)
    state, meeting, rows = TrainState(), Meeting(2), list[Row]()
    interval = Interval(torch.device("cpu"), plan_of(2), ModelFlops(0, None), state)
    state.step = 4
    with interval.paused():
        clock.perf_counter = lambda: 102.0
    clock.perf_counter = lambda: 112.0

    def row_of(rank: int) -> None:
        among, result = LittleRanks(rank, rank, 2, meeting=meeting), StepResult(True, 1.0)
        rows.append(interval.row(among, 0.1, result, (1.0, 3.0)[rank], lambda: (0.0, 0.0)))

    meeting.run(row_of)
    assert [row.data_wait_share for row in rows] == [0.2, 0.2]
    assert [row.step_time_s for row in rows] == [2.5, 2.5], "what was left out is no training"
    assert [row.loss for row in rows] == [None, None], "nothing was finite"
