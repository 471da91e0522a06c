"""What a run sees of its data: real batches of two sources through the loop, with an engine that only counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.train.quiet_hooks import QuietHooks
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import LossOutput, StepResult
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.sources.mixture import Mixture, open_mixture
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import DataError, LoaderFailed
from vmae2_ds.guard.spikes import LOSS, NORM, SpikeGuard
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.train.loop import LoopSetup, hold_encoder_at, train
from vmae2_ds.train.row import ModelFlops, source_shares
from vmae2_ds.train.tally import MOST_SOURCES, OTHERS, add_counts, count_vector, counted_names

STEPS = 6


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of `big`, one of `small`, and one of `small` that cannot be read."""
    folder = tmp_path_factory.mktemp("two")
    write_synthetic_set(SynthArguments(folder=folder, train_videos=7, val_videos=1, size=64, frames=16))
    (folder / "text.mp4").write_text("no video\n")
    lines = [f"train/{number:05d}.mp4,{'big' if number else 'small'}" for number in range(7)]
    (folder / "list.csv").write_text("\n".join(["path,source", "text.mp4,small", *lines]) + "\n")
    return folder / "list.csv"


class Run(QuietHooks):
    """The loop around an engine without a model, and its hooks."""

    def __init__(self, manifest: Path, log_every: int = 2) -> None:
        super().__init__()
        data = {"manifest": manifest, "num_frames": 8, "size": 32, "stride": 1, "views": 1, "workers": 0}
        self.config = PretrainConfig(
            model=ModelConfig.of_size("tiny"),
            mask=MaskConfig(encoder_ratio=0.75),
            data=PretrainDataConfig.model_validate(data),
            train=TrainConfig(global_batch=4, micro_batch=2, max_steps=STEPS, log_every=log_every, save_every=100),
        )
        self.mixture: Mixture = open_mixture(self.config.data)
        self.plan = plan_run(self.config, self.mixture.num_videos, 1)
        self.saved: list[dict[str, Any]] = []
        self.seen: list[tuple[Counter[str], int]] = []
        """For each micro batch: the videos used, by source, and the failures."""

    def save(self, state: TrainState) -> None:
        self.saved.append(json.loads(json.dumps(state.to_dict())))

    def batches(self, first_step: int) -> Iterator[Any]:
        where = {"rank": 0, "world_size": 1, "accumulation": self.plan.accumulation}
        loader = make_loader(
            self.config, PretrainDataset(self.config, self.mixture), **where, first_step=first_step, num_steps=STEPS
        )
        for loaded in loader:
            self.seen.append((Counter(loaded.sources), len(loaded.failures)))
            yield loaded

    def train(
        self, state: TrainState, batches: Iterator[Any] | None = None, stop_after: int | None = None
    ) -> TrainState:
        out = LossOutput(torch.tensor(1.0), torch.tensor(1), torch.tensor(1.0))
        engine: Any = SimpleNamespace(
            device=torch.device("cpu"),
            parameter_groups=[{"lr": 0.0}],
            micro_step=lambda batch: out,
            update=lambda largest_norm, told: StepResult(largest_norm(told.tolist()) > 1, 1.0),
        )
        ranks = Ranks()
        setup = LoopSetup(
            plan=self.plan,
            config=self.config.train.model_copy(update={"stop_after_steps": stop_after}),
            sources=self.mixture.names,
            guard=SpikeGuard(GuardConfig(on_spike="off"), ranks),
            stop=StopRequests(),
            flops=ModelFlops(0, None),
            reseed=False,
        )
        train(engine, self.batches(state.step) if batches is None else batches, setup, state, self, ranks)
        return state


def test_rows_hold_what_the_loader_gave(two_sources: Path) -> None:
    run = Run(two_sources)
    state = run.train(TrainState())
    total: Counter[str] = Counter()
    failed = 0
    for number, row in enumerate(run.rows):
        of_row = run.seen[4 * number : 4 * number + 4]  # two steps of two micro batches
        used = sum((sources for sources, _ in of_row), Counter[str]())
        total += used
        assert row["step"] == 2 * number + 2
        for name in ("big", "small"):
            assert row[f"source_share/{name}"] == used[name] / 8
            assert row[f"source_videos/{name}"] == total[name]
        assert row["new_bad_videos"] == sum(failures for _, failures in of_row)
        failed += row["new_bad_videos"]
        assert row["bad_videos"] == failed
        assert (row["worker_mem_max_gib"], row["worker_mem_sum_gib"]) == (0.25, 0.5)
        assert 0 <= row["data_wait_share"] <= 1
    assert len(run.rows) == STEPS // 2
    assert failed > 0
    assert state.source_videos == dict(total)
    assert sum(total.values()) == 4 * STEPS


def test_counts_go_on_after_a_resume_between_rows(two_sources: Path) -> None:
    whole = Run(two_sources, log_every=4).train(TrainState())
    run = Run(two_sources, log_every=4)
    run.train(TrainState(), stop_after=3)
    resumed = run.train(TrainState(**run.saved[-1]))
    assert resumed.source_videos == whole.source_videos
    assert sum(resumed.source_videos.values()) == 4 * STEPS
    assert run.rows[-1]["source_videos/big"] == whole.source_videos["big"]


def test_a_checkpoint_of_before_sources_were_counted(two_sources: Path) -> None:
    run = Run(two_sources)
    run.train(TrainState(), stop_after=3)
    old = {key: value for key, value in run.saved[-1].items() if key != "source_videos"}
    assert old.keys() == {field.name for field in fields(TrainState)} - {"source_videos"}
    state = run.train(TrainState(**old))
    assert sum(state.source_videos.values()) == 4 * (STEPS - 3)


def test_an_error_stops_before_the_update_and_counts_nothing(two_sources: Path) -> None:
    run = Run(two_sources)

    def broken() -> Iterator[Any]:
        good = run.batches(0)
        yield from (next(good) for _ in range(3))  # a step and a half
        raise DataError("the storage is gone")

    state = TrainState()
    with pytest.raises(LoaderFailed, match="the storage is gone"):
        run.train(state, broken())
    assert state.step == run.saved[-1]["step"] == 1
    assert sum(state.source_videos.values()) == 4


def test_a_loader_that_fails_at_once_leaves_the_checkpoint_that_the_run_goes_on_from(two_sources: Path) -> None:
    """To write it again, a whole one would be removed first, when the storage is sick."""
    run = Run(two_sources)
    run.train(TrainState(), stop_after=1)

    def broken(batches: int) -> Iterator[Any]:
        good = run.batches(1)
        yield from (next(good) for _ in range(batches))
        raise DataError("the storage is gone")

    for batches, steps in ((1, []), (3, [2])):  # a step has two
        before = len(run.saved)
        with pytest.raises(LoaderFailed):
            run.train(TrainState(**run.saved[0]), broken(batches))
        assert [state["step"] for state in run.saved[before:]] == steps


def test_very_many_sources_are_counted_together() -> None:
    sources = tuple(f"s{number}" for number in range(MOST_SOURCES + 50))
    names = counted_names(sources)
    assert (len(names), names[-1]) == (MOST_SOURCES, OTHERS)
    assert counted_names(sources[:MOST_SOURCES]) == sources[:MOST_SOURCES]
    counts = count_vector(Counter({"s0": 2, "s98": 1, "s99": 3, "s149": 4}), names)
    assert dict(zip(names, counts, strict=True)).items() >= {"s0": 2, "s98": 1, OTHERS: 7}.items()
    assert sum(counts) == 10
    with pytest.raises(AssertionError, match="unheard"):
        count_vector(Counter({"unheard": 1}), ("a", "b"))


def test_shares_are_of_the_videos_since_the_last_row() -> None:
    before = add_counts({}, {"a": 90, "b": 10})
    now = add_counts(before, {"a": 1, "b": 3})
    assert now == {"a": 91, "b": 13}
    assert source_shares(now, before) == {"a": 0.25, "b": 0.75}
    assert source_shares(now, now)["a"] == 0


def test_an_encoder_s_first_gradient_is_no_spike_beside_those_of_a_decoder_alone() -> None:
    """Refused, it would be refused in every step that follows: norms of before are forgotten once, losses are not."""
    config = PretrainConfig(
        model=ModelConfig.of_size("tiny", encoder={"width": 32, "depth": 1, "heads": 2, "mlp": 64}),
        data={"num_frames": 8, "size": 32},
    ).changed(optim={"freeze_encoder_steps": 20}, train={"max_steps": 40, "global_batch": 4, "micro_batch": 1})
    plan, guard = plan_run(config, 40, 1), SpikeGuard(GuardConfig(on_spike="skip", history=8), Ranks())
    model = MaskedAutoencoder(config.model, config.geometry, seed=None)
    held: list[bool] = []
    engine: Any = SimpleNamespace(objective=SimpleNamespace(model=model), hold=held.append, parameter_groups=[])
    norms = [1.0 if step < 20 else 30.0 for step in range(30)]
    state = TrainState()
    for step, norm in enumerate(norms):
        state.step = step
        hold_encoder_at(engine, state, plan)
        assert norm <= guard.largest_norm(state.recent, None), f"step {step} is refused"
        state.recent = guard.remember(state.recent, [1.0], StepResult(True, norm), None)
    assert held == [step < 20 for step in range(30)]
    assert state.recent[NORM] == norms[-8:]
    assert state.recent[LOSS] == [1.0] * 8
    assert guard.largest_norm(state.recent, None) < 1000, "it is watched again"
