"""What counts as a spike, and what is left of a run that goes back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.ranks import tiny_pretraining
from vmae2_ds.cli.main import main
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.contracts import StepResult
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.sources.order import window_of
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import EXIT_DIVERGED, EXIT_OK, ConfigError
from vmae2_ds.guard.spikes import Recent, Spike, SpikeGuard, check_norm_is_taken, spike_limit
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train import session


def test_the_limit_is_a_number_of_deviations_above_the_median() -> None:
    """Against the deviation that the values were drawn with."""
    values = np.exp(np.random.default_rng(0).normal(1.0, 0.3, 20_001))
    assert math.log(spike_limit(values.tolist(), 10, 1.5)) == pytest.approx(1.0 + 10 * 0.3, abs=0.05)


def test_values_that_hardly_scatter_have_the_ratio_for_a_limit() -> None:
    assert spike_limit([2.0] * 20, 10, 1.5) == pytest.approx(3.0)
    assert spike_limit([0.0] * 20, 10, 1.5) < 1e-30


class Rank:
    """A guard and its memory, step by step."""

    def __init__(self, ranks: int = 1, **settings: object) -> None:
        self.guard = SpikeGuard(GuardConfig.model_validate(settings), Ranks(0, 0, ranks))
        self.recent: Recent = {}

    def step(self, *losses: float, norm: float = 1.0) -> Spike | None:
        spike = self.guard.look_at_losses(self.recent, losses)
        applied = math.isfinite(norm) and norm <= self.guard.largest_norm(self.recent, spike)
        result = StepResult(applied, norm)
        spike = spike or self.guard.look_at_norm(self.recent, result)
        self.recent = self.guard.remember(self.recent, losses, result, spike)
        return spike


def curve(step: int, rng: np.random.Generator) -> float:
    """A loss as they are: falling fast, then slowly, scattering by 3 %."""
    return (0.3 + math.exp(-step / 100)) * math.exp(rng.normal(0, 0.03))


def test_an_ordinary_run_has_no_spikes_and_an_extraordinary_step_is_one() -> None:
    rng, rank = np.random.default_rng(0), Rank(on_spike="skip")
    for step in range(3000):
        assert rank.step(curve(step, rng), norm=math.exp(rng.normal(0, 0.5))) is None, step
    assert str(rank.step(2 * curve(3000, rng))).startswith("the loss 0.5762 is a spike, above 0.4")
    assert str(rank.step(curve(3001, rng), norm=400)).startswith("the gradient norm 400 is a spike, above")
    assert rank.step(curve(3002, rng)) is None, "spikes are nothing to compare with"


def test_a_loss_that_rises_slowly_is_no_spike() -> None:
    rng, rank = np.random.default_rng(0), Rank(on_spike="skip")
    assert not any(rank.step((1 + step / 300) * math.exp(rng.normal(0, 0.03))) for step in range(1200))


def test_one_rank_among_many_is_found_and_named() -> None:
    rng, rank = np.random.default_rng(0), Rank(64, on_spike="skip")
    losses = [[curve(step, rng) for _ in range(64)] for step in range(200)]
    assert not any(rank.step(*of_step) for of_step in losses)
    losses[-1][37] *= 4  # the mean of all goes up by a twentieth
    assert str(rank.step(*losses[-1])).startswith("the loss of rank 37")
    losses[-1][5] = math.nan
    assert str(rank.step(*losses[-1], norm=math.nan)) == "the loss of rank 5 is not finite (nan)"


def test_nothing_is_a_spike_before_half_the_history() -> None:
    rank = Rank(on_spike="skip", history=20)
    assert not any(rank.step(loss) for loss in [1.0] * 9 + [50.0])
    assert rank.step(50.0) is not None


def test_with_warn_the_run_gets_used_to_a_new_level() -> None:
    told = [Rank(on_spike=on, history=20) for on in ("warn", "skip")]
    for rank in told:
        assert not any(rank.step(1.0) for _ in range(20))
    warned, skipped = ([rank.step(9.0) is not None for _ in range(20)] for rank in told)
    assert warned == [True] * 10 + [False] * 10  # the median's turn comes with half of them
    assert all(skipped)


def test_switched_off_it_sees_only_what_is_not_finite() -> None:
    rank = Rank(on_spike="off")
    assert rank.guard.own_place(torch.tensor(1.0)).tolist() == []
    assert not any(rank.step(norm=norm) for norm in [1.0] * 200 + [1e9])
    assert rank.step(norm=math.inf) == Spike("the gradient norm", math.inf, None)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("on_spike", ["warn", "skip", "rollback"])
def test_a_loss_that_is_not_finite_is_noticed_from_the_first_step_though_its_gradient_is(
    on_spike: str, loss: float
) -> None:
    """As of an overflow behind a clamp: nothing but the loss shows it. Only with `warn` its update is applied all the same."""
    rank = Rank(2, on_spike=on_spike)
    spike = rank.guard.look_at_losses(rank.recent, [1.0, loss])
    assert str(spike) == f"the loss of rank 1 is not finite ({loss})"
    assert rank.guard.largest_norm(rank.recent, spike) == (math.inf if on_spike == "warn" else 0.0)
    assert rank.step(1.0, loss, norm=1.0) is not None
    assert rank.recent == {}, "nothing later is compared with it"
    assert rank.step(1.0, 1.0) is None


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("on_spike", ["off", "warn", "skip", "rollback"])
def test_a_gradient_that_is_not_finite_is_noticed_whatever_is_switched_off(on_spike: str, norm: float) -> None:
    rank = Rank(on_spike=on_spike)
    spike = rank.step(1.0, norm=norm)
    assert str(spike) == f"the gradient norm is not finite ({norm})"
    assert rank.recent == {}


@pytest.mark.parametrize(
    ("loss", "norm", "what"), [(1.49, 9.9, None), (1.51, 1.0, "the loss"), (1.0, 10.1, "the gradient norm")]
)
def test_losses_and_norms_have_a_ratio_each(loss: float, norm: float, what: str | None) -> None:
    """Values that do not scatter: the defaults are 1.5 for losses, 10 for norms."""
    rank = Rank(on_spike="skip", history=8)
    assert not any(rank.step(1.0, norm=1.0) for _ in range(8))
    spike = rank.step(loss, norm=norm)
    assert (spike and spike.what) == what


def test_a_policy_without_norms_is_refused() -> None:
    policy = {"zero_optimization": {"stage": 1, "compute_grad_norm": False}}
    check_norm_is_taken(GuardConfig(on_spike="warn"), policy)
    with pytest.raises(ConfigError, match="on-spike skip needs the gradient's norm"):
        check_norm_is_taken(GuardConfig(on_spike="skip"), policy)


def test_steps_read_all_windows_but_those_left_out() -> None:
    windows = [window for window in range(100) if window not in (0, 7, 8, 30)]
    assert [window_of(step, [30, 8, 0, 7]) for step in range(90)] == windows[:90]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_set(
        SynthArguments(
            folder=tmp_path_factory.mktemp("videos"), train_videos=8, val_videos=1, seed=0, size=64, frames=16
        )
    ).train


def train(run: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, spikes: range, *options: str) -> int:
    """A run of one rank whose loss is 30 times too large in the steps `spikes`; its exit code."""
    forward, calls = Reconstruct.forward, 0

    def wrapped(self: Reconstruct, batch: object) -> object:
        nonlocal calls
        out = forward(self, batch)  # type: ignore[arg-type]
        calls += 1
        return out._replace(loss=30 * out.loss) if (calls - 1) // 4 in spikes else out

    monkeypatch.setattr(Reconstruct, "forward", wrapped)
    words = [
        *tiny_pretraining(videos, run, 12),
        "--train.save-every",
        "4",
        "--guard.history",
        "8",
        "--data.workers",
        "0",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*words, *options])
    return int(stop.value.code or 0)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_skipped_spike_is_counted_and_its_samples_are_listed(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert train(run, videos, monkeypatch, range(6, 7), "--guard.on-spike", "skip") == EXIT_OK
    last = rows_of(run / "metrics.jsonl")[-1]
    assert (last["step"], last["spikes"], last["skipped_steps"], last["rollbacks"]) == (12, 1, 1, 0)
    (event,) = rows_of(run / "guard.jsonl")
    assert (event["step"], event["window"], event["action"]) == (7, 6, "update left out")
    assert event["value"] > event["limit"] > 1
    samples = rows_of(run / "skipped_samples.jsonl")
    assert [sample["micro_step"] for sample in samples] == [0, 1, 2, 3]
    assert all(Path(sample["path"]).suffix == ".mp4" and sample["window"] == 6 for sample in samples)
    assert len({sample["row"] for sample in samples}) == 4
    page = (run / "report.html").read_text()
    assert "update left out" in page
    assert "the loss" in page


@pytest.mark.slow
def test_spikes_that_go_on_stop_the_run(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ("--guard.on-spike", "rollback", "--guard.max-rollbacks", "2", "--guard.rollback-skip", "2")
    loaders = []

    def recorded(*inputs: Any, **where: Any) -> Any:
        loaders.append((where["first_step"], list(where["skipped_windows"])))
        return make_loader(*inputs, **where)

    monkeypatch.setattr(session, "make_loader", recorded)
    assert train(run, videos, monkeypatch, range(9, 99), *options) == EXIT_DIVERGED
    assert "after 2 rollbacks (--guard.max-rollbacks 2)" in capsys.readouterr().err
    actions = [event["action"] for event in rows_of(run / "guard.jsonl")]
    assert actions == ["back to step 8, samples left out", "back to step 4, samples left out", "stopped"]
    assert [path.name for path in (run / "ckpt").glob("step*")] == ["step00000004"]
    assert json.loads((run / "rollbacks.json").read_text())["skipped_windows"] == [7, 8, 9, 10]
    # step 10 spikes, and so does the ninth, which then reads the window behind those left out
    assert loaders == [(0, []), (8, [8, 9]), (4, [7, 8, 9, 10])]
