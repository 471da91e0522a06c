"""A visit keeps its time, measures what is worth most first, names what it left out, and goes on after any end."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch

from benchmarks import run
from benchmarks.__main__ import main
from benchmarks.case import Options
from benchmarks.cases.real_run import LEFT
from benchmarks.cases.step_parts import Stamps, stamped_step
from benchmarks.record import WHOLE_GROUP, Row, current, read_rows
from benchmarks.report import plots, write_report
from benchmarks.steps import MASKS, let_workbench_go, workbench_of
from benchmarks.visit import going
from benchmarks.visit.budget import LEAST_LIMIT_S, Budget, age_s
from benchmarks.visit.parts import Asked, parts_of
from benchmarks.visit.predict import predicted_s, rates_at
from tests.benchmarks.made_cases import HOLD
from tests.benchmarks.made_rows import made_results, write_rows
from tests.benchmarks.made_visit import CHILD
from tests.benchmarks.test_run import send_in_second_group, wait_for
from tests.distributed.zygote import Rank, Zygote
from vmae2_ds.errors import ConfigError
from vmae2_ds.host import Cores

ROOT = Path(__file__).parents[2]
H100 = rates_at(8e14, 3e12, 6e-6)


def test_the_order_is_that_of_worth_and_other_sizes_come_after_every_way_of_the_first_two() -> None:
    names = [part.name for part in parts_of(Asked(), "cuda")]
    assert names[:3] == ["ceilings", "dual_masking base", "dual_masking giant"]
    every_way = [name for name in names if not name.startswith(("dual_masking", "ceilings"))][:4]
    others = [names.index(f"dual_masking {size}") for size in ("small", "large", "huge")]
    assert max(map(names.index, every_way)) < min(others)
    assert len(set(names)) == len(names)
    with pytest.raises(ConfigError, match="no size colossal"):
        parts_of(Asked(sizes=("colossal",)), "cpu")


def test_a_budget_counts_what_was_spent_before_it_and_keeps_time_for_the_report() -> None:
    now = [100.0]
    budget = Budget(minutes=1, spent_s=10, clock=lambda: now[0])
    budget.kept_s = 5
    assert budget.left_s == 45
    now[0] += 44
    assert budget.left_s == pytest.approx(1)
    assert budget.limit_s(expected_s=30) == pytest.approx(1), "no group may run past the end of the visit"


def test_predictions_follow_what_was_measured_on_this_machine() -> None:
    budget = Budget(minutes=100)
    assert budget.expected_s("attention", 7) == 7
    budget.learn("dual_masking", predicted_s=10, took_s=20)
    assert budget.expected_s("attention", 7) == 14, "of a case that was not measured yet: all that were"
    budget.learn("attention", predicted_s=10, took_s=5)
    assert budget.expected_s("attention", 7) == 3.5
    assert budget.expected_s("dual_masking", 7) == 14
    assert budget.limit_s(0.1) == LEAST_LIMIT_S
    assert budget.limit_s(100) > 100


def test_age_counts_from_the_start_of_the_process() -> None:
    code = "import time; time.sleep(0.5); from benchmarks.visit.budget import age_s; print(age_s())"
    start = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5 <= float(told.stdout) <= time.monotonic() - start + 0.02
    assert age_s() > 0


def test_a_group_of_vit_g_is_predicted_from_work_and_rates() -> None:
    """An H100 does 8e14 bf16 FLOP/s of a large product, of which the planner's prior keeps half. A dual step of 64 clips is
    9.16e13 FLOP by the closed form, so at least 0.229 s; with 9 + 2 rounds and 3 calls beside, of three masks of which dual is
    not the cheapest by more than a tenth, the group takes 10 to 20 s beside drawing a billion weights.
    """

    def of(clips: int) -> float:
        options = Options(sizes=("giant",), precisions=("bf16",), batch_sizes=(clips,), rounds=9, warmup=2)
        return predicted_s("dual_masking", "giant bf16 sdpa", options, H100, free_bytes=8e10)

    assert 14 * 3 * 0.229 * 0.9 < of(64) < 2 * 14 * 3 * 0.229 + 10
    assert of(256) - of(128) == pytest.approx(2 * (of(128) - of(64))), "the rest is work on clips"


def test_peers_are_predicted_beside_the_states_of_all_of_them() -> None:
    """In 80 GB the states of four ViT-g leave no room, and a row that says so takes no time; in 160 GB steps are taken."""
    options = Options(sizes=("giant",), precisions=("bf16",), rounds=9, warmup=2)
    left_out, measured = (predicted_s("peers", "giant bf16", options, H100, free_bytes=room) for room in (8e10, 1.6e11))
    assert left_out < 5
    assert measured > 20
    asked = options.model_copy(update={"batch_sizes": (1,)})
    assert predicted_s("peers", "giant bf16", asked, H100, free_bytes=8e10) > left_out


def test_parts_leave_out_kernels_that_are_not_worth_their_time_and_groups_that_change_the_process() -> None:
    part = next(part for part in parts_of(Asked(), "cuda") if part.name == "checkpointing giant")
    names = [
        "giant bf16 sdpa batch auto",
        "giant bf16 cudnn batch auto",
        "giant bf16 encoder, 160 tokens",
        "g math kept",
    ]
    assert [part.takes(name) for name in names] == [True, False, True, False]


def test_a_report_is_made_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows", made_results())
    for name, drawings in (("with", True), ("without", False)):
        if not drawings:
            monkeypatch.setitem(sys.modules, "matplotlib", None)
            monkeypatch.setattr(plots, "find_spec", lambda name: None)
        page, _ = write_report([rows], tmp_path / name)
        assert ("<svg" in page.read_text()) is drawings
        assert "1.61x" in page.read_text()


def test_a_process_that_measures_a_gpu_has_its_share_of_the_hosts_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "cores", lambda: Cores(machine=64, bound=12, quota=None))
    threads = [run.environment_for(*of)["OMP_NUM_THREADS"] for of in (("cpu",), ("cuda",), ("cuda", 4), ("cuda", 16))]
    assert threads == ["1", "12", "3", "1"]


def test_a_kept_model_recomputes_nothing_that_the_step_before_it_did() -> None:
    bench = workbench_of("tiny", "fp32", torch.device("cpu"))
    assert workbench_of("tiny", "fp32", torch.device("cpu")) is bench
    bench.set_up(("math", "math"), "all")
    assert bench.model.encoder.blocks.recomputed
    stamped_step(bench, MASKS["dual"], 1, ("math", "math"), Stamps(bench.device))()
    assert not bench.model.encoder.blocks.recomputed
    let_workbench_go()
    assert workbench_of("tiny", "fp32", torch.device("cpu")) is not bench


class Visiting(NamedTuple):
    """The made visit, in a process that a test may end."""

    process: Rank
    log: Path

    def wait(self, timeout: float) -> tuple[int, str]:
        """Its exit code, and what it said."""
        return self.process.wait(timeout), self.log.read_text()


@pytest.fixture
def visiting(zygote: Zygote, tmp_path: Path) -> Callable[..., Visiting]:
    """Start it as a fork with its imports behind it; the process that measures for it is started as a user's is."""

    def start(out: Path, minutes: float, order: str, **environment: str) -> Visiting:
        log = tmp_path / f"{time.monotonic_ns()}.log"
        words, everything = [str(out), str(minutes)], {**os.environ, "MADE_VISIT": order, **environment}
        return Visiting(zygote.start(words, everything, log, "tests.benchmarks.made_visit"), log)

    return start


def states(rows: list[Row]) -> dict[tuple[str, str], str]:
    """What became of each group, by part and group."""
    return {
        (row["group"], row["variant"]): row["state"]
        for row in current(rows)
        if row["case"] == "visit" and row["group"] not in ("doctor", "missing")
    }


@pytest.mark.slow
def test_a_killed_visit_has_a_report_and_the_same_command_goes_on_past_what_hangs_dies_or_is_too_long(
    tmp_path: Path, visiting: Callable[..., Visiting]
) -> None:
    hold, child, out = tmp_path / "hold", tmp_path / "child", tmp_path / "out"
    files = {HOLD: str(hold), CHILD: str(child)}
    hold.touch()
    running = visiting(out, 5, "last held", **files)
    workers = send_in_second_group(running.process, signal.SIGKILL, out)
    running.wait(60)
    wait_for(lambda: not any(each.is_running() for each in workers))
    killed = {("last", "only"): "measured", ("held", "first"): "measured"}
    assert states(read_rows(out)) == {**killed, ("held", "second"): "not reached", ("held", "third"): "not reached"}
    _, page = write_report([out], tmp_path / "page")
    assert "not reached" in page.read_text()

    hold.unlink()
    before = measured(out)
    running = visiting(out, 5, "last held lengthy hanging deadly lacking", **files)
    code, log = running.wait(280)
    assert code == 1, log
    assert states(read_rows(out)) == {
        ("last", "only"): "measured before",
        ("held", "first"): "measured before",
        ("held", "second"): "measured",
        ("held", "third"): "measured",
        ("lengthy", "only"): "left out",
        ("hanging", "only"): "failed",
        ("deadly", "first"): "measured",
        ("deadly", "second"): "failed",
        ("deadly", "third"): "measured",
        ("lacking", "only"): "not possible",
    }
    after = measured(out)
    assert after[: len(before)] == before, "nothing is measured twice"
    reasons = {row["case"]: row["error"] for row in after if row["variant"] == WHOLE_GROUP}
    assert reasons["hanging"] == "ended: no answer after 4 s"
    assert reasons["deadly"].startswith("the process was ended by SIGKILL")
    assert not psutil.pid_exists(int(child.read_text())), "what the hung group had started goes with it"
    text = (out / "report.md").read_text()
    assert re.search(r"lengthy: only.*left out.*it needs \d+ s, \d+ s were left", text)
    assert "no answer after 4 s" in text
    assert re.search("lacking: only.*not possible.*No module named 'nowhere'", text)
    assert re.search("doctor: shm.*red.*too little; more", text)
    assert "driver" not in text
    assert log.endswith("".join((out / "visit.log").read_text().splitlines(keepends=True)[-3:]))


def measured(out: Path) -> list[Row]:
    """Rows of cases, without those of the visit itself, in the order of the cases' files."""
    return sorted((row for row in read_rows(out) if row["case"] != "visit"), key=lambda row: row["unix_time"])


@pytest.mark.slow
def test_a_signal_ends_the_measuring_and_not_the_report(tmp_path: Path, visiting: Callable[..., Visiting]) -> None:
    hold, out = tmp_path / "hold", tmp_path / "out"
    hold.touch()
    running = visiting(out, 5, "held last", **{HOLD: str(hold)})
    workers = send_in_second_group(running.process, signal.SIGTERM, out)
    code, log = running.wait(60)
    assert code == 75, log
    assert "not reached" in (out / "report.md").read_text()
    assert not any(child.is_running() for child in workers)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--minutes", "0"], "benchmarks: --minutes 0.0: Input should be greater than 0"),
        (["--rounds", "-1"], "benchmarks: --rounds -1: Input should be greater than 0"),
        (["--out", "FILE"], "FILE: File exists; name a folder that can be written"),
        (["--out", "FILE/below"], "below: Not a directory; name a folder that can be written"),
        (["--sizes", "nonsense"], "benchmarks: no size nonsense: choose from tiny"),
    ],
)
def test_what_cannot_be_visited_is_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").touch()
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    asked = [word.replace("FILE", str(tmp_path / "FILE")) for word in words]
    assert main(["visit", "--device", "cpu", *asked, *out]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert line in said, said
    assert "http" not in said


class Gone(io.StringIO):
    """A terminal that was closed."""

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_is_gone_ends_no_visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said there fails; the log has it all the same. What a real run left behind goes."""
    made = going.Visit(Asked(device="cpu", out=tmp_path), "made", 0.0)
    (tmp_path / f"{LEFT}abc" / "run").mkdir(parents=True)
    (tmp_path / "real_run.jsonl").touch()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Gone())
        made.say("a line")
    assert "a line" in (tmp_path / "visit.log").read_text()
    made._clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real_run.jsonl", "visit.log"]
