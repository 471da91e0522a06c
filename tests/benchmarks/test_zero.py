"""The case `zero`: engines of all policies train alike, send and hold what the closed forms say, and go without a trace; a rank
that dies costs its variant alone."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import flight, run
from benchmarks.case import Bench, Options
from benchmarks.cases import CASES, zero
from benchmarks.cases.zero_engine import policies, run_config
from benchmarks.cases.zero_plan import Planner, residuals
from benchmarks.record import Row, read_rows
from tests.benchmarks.dying_ranks import MADE
from tests.distributed.ranks import rank_environment
from tests.distributed.zygote import Zygote, run_forked
from tests.tune.test_peak_memory import CPU
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.dist import Ranks
from vmae2_ds.host import free_port

DEVICE = torch.device("cpu")
ON_RANKS = {1: ["cpu", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]}
ON_RANKS[2] = [*ON_RANKS[1], "zeropp"]


pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> dict[int, dict[str, Any]]:
    """Ranks -> what tests.benchmarks.engine_ranks saw."""
    folder, wanted = tmp_path_factory.mktemp("engines"), {1: ["failure", "zero"], 2: ["agree", "zero"]}
    return {n: run_forked(zygote, "tests.benchmarks.engine_ranks", wanted[n], folder / f"w{n}.json", n) for n in wanted}


def rows_of(seen: dict[int, dict[str, Any]], ranks: int, scaling: str = "weak") -> dict[str, Row]:
    return {row["variant"]: row for row in seen[ranks]["zero"][scaling]}


@pytest.mark.slow
def test_all_policies_take_the_same_steps(seen: dict[int, dict[str, Any]]) -> None:
    agree = seen[2]["agree"]
    assert set(agree) == {"zero0", *ON_RANKS[2]}
    # Adam's first steps go by the sign of the gradient: where that is rounding noise, ways differ
    assert all(distance < 0.02 for distance in agree.values()), agree


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_say_what_ran(seen: dict[int, dict[str, Any]], ranks: int) -> None:
    rows = rows_of(seen, ranks)
    quick = [name for name in zero.QUICK if name in ON_RANKS[1]]
    assert sorted(rows) == sorted(ON_RANKS[2] if ranks == 2 else quick)
    for row in rows.values():
        config, values = row["config"], row["values"]
        assert row["error"] is None
        assert row["clock"] == "wall"
        assert len(row["samples_s"]) == row["rounds"] == row["passes"] == 2
        assert row["warmup"] == zero.UNLEARNED
        assert (config["ranks"], config["clips_per_rank"], config["global_batch"]) == (ranks, 1, ranks)
        assert values["clips_per_s"] == pytest.approx(ranks / row["time_s"]["median"])
        assert row["speedup"]["against"] == zero.BASE
        assert set(row["residual"]) == ({"time", "memory", "comm"} if ranks == 2 else {"time", "memory"})
        assert row["residual"]["time"] == pytest.approx(row["predicted"]["time_s"] / row["time_s"]["median"] - 1)
    offloads = [row["config"]["offload"] for name, row in rows.items() if name == "zero2_offload"]
    assert offloads == [["optimizer"]] * (ranks - 1)
    assert [row["config"]["hpz"] for name, row in rows.items() if name == "zeropp"] == [2] * (ranks - 1)


@pytest.mark.slow
def test_bytes_sent_are_those_of_the_closed_form(seen: dict[int, dict[str, Any]]) -> None:
    for name, row in rows_of(seen, 2).items():
        parameters = count_parameters(run_config("tiny", "bf16", name, "math", 1, 1).model).total
        assert row["values"]["comm_bytes"] == pytest.approx(row["predicted"]["comm_bytes"], rel=1e-3), name
        kind = "reduce_scatter_bytes" if row["config"]["stage"] == 3 else "all_reduce_bytes"
        assert row["values"][kind] == pytest.approx(2 * parameters, rel=1e-3), "one bf16 gradient"
        assert row["values"]["collectives"] > 1
    assert all(row["values"]["comm_bytes"] == 0 for row in rows_of(seen, 1).values())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_engines_hold_their_states_and_leave_nothing(seen: dict[int, dict[str, Any]], ranks: int) -> None:
    parameters = count_parameters(run_config("tiny", "bf16", "zero1", "math", 1, 1).model).total
    for name, row in rows_of(seen, ranks).items():
        # weights, and this rank's part of master weights and moments, which lie in the same memory under offload
        assert row["memory"]["peak_bytes"] > (2 + 12 / ranks) * parameters * (1 / ranks if "3" in name else 1), name
        # a stage 3 engine that stays would be 15 bytes a parameter; pages that some pool keeps are a part of that
        assert row["values"]["left_bytes"] < 5 * parameters, name


@pytest.mark.slow
def test_strong_scaling_accumulates_on_few_ranks(seen: dict[int, dict[str, Any]]) -> None:
    for row in rows_of(seen, 1, "strong").values():
        assert (row["config"]["micro_batch"], row["config"]["clips_per_rank"]) == (1, 2)
        assert row["flops"] == pytest.approx(2 * rows_of(seen, 1)[row["variant"]]["flops"])


@pytest.mark.slow
def test_an_engine_that_fails_is_let_go(seen: dict[int, dict[str, Any]]) -> None:
    found = seen[1]["failure"]
    assert found["failed"] == {"zero3": "OutOfMemoryError: made"}
    assert found["grown"] < 1 << 20


MADE_MODULE = "tests.benchmarks.dying_ranks"


def run_made(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Row]:
    """Run one of the made cases on two ranks, of which one error is told: group and variant -> row."""
    monkeypatch.setitem(CASES, name, MADE[name])
    monkeypatch.chdir(Path(__file__).parents[2])
    options = Options(device="cpu", ranks=(2,))
    assert run.run_cases([name], options, out, "typed", fresh=False, show=lambda *_: None) == 1
    assert flight.read_flight(out) is None
    return {(row["group"], row["variant"]): row for row in read_rows(out)}


@pytest.mark.slow
def test_a_rank_that_dies_costs_its_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under DeepSpeed's launcher, which ends the other rank and tells by its own exit code how the first one ended."""
    launchers = run._launchers
    monkeypatch.setattr(
        run, "_launchers", lambda *args: [[*launcher[:-1], MADE_MODULE] for launcher in launchers(*args)]
    )
    rows = run_made("dying_ranks", tmp_path, monkeypatch)
    assert {key: row["samples_s"] for key, row in rows.items()} == {
        ("first", "a"): [2.0], ("first", "dies"): [], ("first", "b"): [2.0], ("second", "c"): [2.0],
    }  # fmt: skip
    assert rows["first", "dies"]["error"] == "the process was ended by SIGKILL; the machine may be out of memory"


class ForkedLauncher:
    """Two forked ranks; the end of one that failed ends the other, as under a launcher."""

    def __init__(self, zygote: Zygote, job: str, folder: Path) -> None:
        port = free_port()
        self.ranks = [
            zygote.start([job], rank_environment(rank, 2, port), folder / f"{rank}.log", MADE_MODULE)
            for rank in range(2)
        ]

    def wait(self) -> int:
        while not any(codes := [rank.poll() for rank in self.ranks]):
            if codes == [0, 0]:
                return 0
            time.sleep(0.01)
        for rank in self.ranks:
            rank.kill()
        return next(filter(None, codes))


@pytest.mark.slow
def test_a_rank_that_fails_costs_its_variant_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zygote: Zygote
) -> None:
    def start(command: list[str], env: dict[str, str]) -> ForkedLauncher:
        del env
        return ForkedLauncher(zygote, command[-1], tmp_path)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(Popen=start))
    rows = run_made("failing_ranks", tmp_path, monkeypatch)
    assert {key: row["samples_s"] for key, row in rows.items()} == {
        ("first", "a"): [2.0], ("first", "fails"): [], ("first", "b"): [2.0], ("second", "c"): [2.0],
    }  # fmt: skip
    assert rows["first", "fails"]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 TiB"


def test_groups_name_ranks_and_share_out_the_same_clips() -> None:
    def names(ranks: int) -> list[str]:
        options = Options(device="cpu", sizes=("small",), precisions=("bf16",), ranks=(1, 4))
        return [group.name for group in zero.groups(Bench(options, ranks=Ranks(0, 0, ranks)))]

    assert names(1) == ["weak small bf16 1 ranks", "strong small bf16 of 8 clips 1 ranks"]
    assert names(2) == ["weak small bf16 2 ranks", "strong small bf16 of 8 clips 2 ranks"]
    assert names(3) == ["weak small bf16 3 ranks"], "8 clips do not divide over 3 ranks"
    assert names(8) == ["weak small bf16 8 ranks", "strong small bf16 of 16 clips 8 ranks"]


def test_policies_that_cannot_train_are_left_out() -> None:
    assert list(policies("bf16", DEVICE, 1)) == ON_RANKS[1]
    assert list(policies("fp32", DEVICE, 1)) == ["zero0", *ON_RANKS[1]]
    hpz = policies("bf16", DEVICE, 2)["zeropp"]["zero_optimization"]
    assert (hpz["zero_hpz_partition_size"], hpz["zero_quantized_weights"], hpz["zero_quantized_gradients"]) == (8, 0, 0)
    on_gpu = policies("bf16", torch.device("cuda"), 2)
    assert "cpu" not in on_gpu
    assert on_gpu["zeropp"]["zero_optimization"]["zero_quantized_weights"]


def test_the_plan_counts_what_the_case_measures() -> None:
    found = policies("bf16", DEVICE, 2)
    planner = Planner(Cluster(CPU, 2, 1, 24, 24), Assumptions(), "made")
    plans = {
        name: planner.predict(run_config("base", "bf16", name, "math", 2, 4), policy) for name, policy in found.items()
    }
    parameters = count_parameters(run_config("base", "bf16", "zero1", "math", 2, 4).model).total
    assert plans["zero1"]["comm_bytes"] == pytest.approx(3 * parameters, rel=1e-3)  # 2 bytes all-reduced, 1 gathered
    assert plans["zero3"]["peak_bytes"] < plans["zero2"]["peak_bytes"] <= plans["zero1"]["peak_bytes"]
    # on a CPU what is offloaded stays in the same memory: no less than half the states of 12 bytes
    assert plans["zero2_offload"]["peak_bytes"] > (2 + 6) * parameters


def test_residuals_leave_out_what_is_not_there() -> None:
    predicted = {"time_s": 3.0, "peak_bytes": 50, "comm_bytes": 0}
    measured = {"time_s": 2.0, "peak_bytes": None, "comm_bytes": 0}
    assert residuals(predicted, measured) == {"time": 0.5}


@pytest.mark.parametrize(("rounds", "expected"), [(1, (2, 1)), (3, (2, 2)), (9, (3, 3)), (10, (3, 4))])
def test_every_policy_gets_at_least_two_passes(rounds: int, expected: tuple[int, int]) -> None:
    assert zero.passes_of(rounds) == expected


def test_the_first_reason_of_a_lost_variant_stays(tmp_path: Path) -> None:
    flight.begin(tmp_path, "zero", "weak", "0")
    flight.enter(tmp_path, "zero3")
    flight.give_up(tmp_path, "zero3", "OutOfMemoryError: here")
    flight.give_up(tmp_path, "zero3", "RuntimeError: connection closed by peer")
    flight.begin(tmp_path, "zero", "weak", "0")
    again = flight.read_flight(tmp_path)
    assert again is not None
    assert (again.variant, again.lost) == (None, {"zero3": "OutOfMemoryError: here"})
    flight.begin(tmp_path, "zero", "strong", "0")
    other = flight.read_flight(tmp_path)
    assert other is not None
    assert other.lost == {}, "of another group"
    flight.end(tmp_path)
    assert flight.read_flight(tmp_path) is None


def test_exit_codes_of_the_launcher_name_the_signal() -> None:
    assert (
        run.how_it_ended(247)
        == run.how_it_ended(-9)
        == "the process was ended by SIGKILL; the machine may be out of memory"
    )
    assert run.how_it_ended(1) == "the process ended with exit code 1; its output says why"
