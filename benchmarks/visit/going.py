"""A visit from its start to its report: what fits is measured in order of worth, all else is named with the reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from benchmarks import flight
from benchmarks.cases.real_run import LEFT
from benchmarks.devices import find_device
from benchmarks.family import end_family
from benchmarks.harness import has_failed
from benchmarks.record import Row, append_rows, current, read_rows
from benchmarks.report import write_report
from benchmarks.run import environment_for, record_death
from benchmarks.visit.budget import Budget, age_s
from benchmarks.visit.hired import HasDied, Hired, TookTooLong
from benchmarks.visit.missing import missing
from benchmarks.visit.parts import DOCTOR, Asked, Part, parts_of
from benchmarks.visit.predict import STEPS
from benchmarks.worker import Job, row_origin
from vmae2_ds.disk import write_whole
from vmae2_ds.errors import EXIT_OK, EXIT_PREEMPTED, ConfigError, Vmae2Error
from vmae2_ds.host import signals_handled

CASE = "visit"
"""The case of the rows that tell what became of each group."""
MISSING = "missing"
"""The group of the rows that name what this machine lacks."""
EXIT_FAILED = 1
DOCTOR_COMMAND = (sys.executable, "-m", "vmae2_ds", "doctor", "--json")
DOCTOR_LIMIT_S, START_LIMIT_S = 40.0, 180.0
REPORT_SHARE = 0.25
"""Most of the budget that is kept for the report."""


class Stopped(Vmae2Error):
    """A signal asks the visit to end."""


class Planned(NamedTuple):
    """A group of a part, before it is measured."""

    part: Part
    name: str
    mark: str
    done: bool
    tried: bool
    """Whether it failed before: what was never tried comes first."""
    predicted_s: float


class Visit:
    """One run of the command."""

    def __init__(self, asked: Asked, command: str, spent_s: float) -> None:
        self.asked, self.command, self.began = asked, command, time.time() - spent_s
        self.out = asked.out.resolve()
        _check_folder(self.out)
        if asked.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        self.budget = Budget(asked.minutes, spent_s)
        self.device = find_device(asked.device).type
        self.parts = parts_of(asked, self.device)
        self.worker = Hired(environment_for(self.device), self.out / "worker.log")
        self.called = "?"
        self.failures = 0
        self.start_s = 0.0
        """What the worker took to start."""
        self._doctor: subprocess.Popen[str] | None = None
        self._origin = row_origin(Job.model_validate(self.job(self.parts[0])))

    def go(self) -> int:
        """Measure, then write the report, whatever ended the measuring; the exit code."""
        code = EXIT_OK
        try:
            with _signals_stop():
                self._measure()
        except (Stopped, KeyboardInterrupt):
            self.say("stopped by a signal; the report is of what there is, and the same command goes on")
            code = EXIT_PREEMPTED
        except (TookTooLong, HasDied) as error:
            why = f"the process that measures could not start: {error}; worker.log beside the rows says why"
            self.say("the time was over before anything could be measured" if self.budget.left_s <= 0 else why)
            code = EXIT_FAILED
        finally:
            self.worker.end()
            if self._doctor is not None:
                end_family(self._doctor)
            self._clear()
        self._report()
        return code or (EXIT_FAILED if self.failures else EXIT_OK)

    def say(self, line: str) -> None:
        """One line on standard error and in visit.log, with the time that has passed and what is left."""
        told = f"[{self.budget.elapsed_s:5.0f} s, {max(0.0, self.budget.left_s):4.0f} s left] {line}"
        with (self.out / "visit.log").open("a") as log:
            print(told, file=log)
        with suppress(OSError):  # a terminal that is gone
            print(told, file=sys.stderr, flush=True)

    def _measure(self) -> None:
        flight.end(self.out)  # of a visit that was killed
        self._clear()
        self._learn_from_before()
        self.worker.start()  # its imports run beside the doctor and the first report
        self._doctor = subprocess.Popen(
            DOCTOR_COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._report()
        self._hear_doctor()
        self._start_worker()
        sizes = dict.fromkeys(size for part in self.parts for size in part.options.sizes)
        self.say(f"measures {self.called}; sizes by worth: {', '.join(sizes)}")
        for what, so in missing():
            self.note(MISSING, what, state="missing", reason=so)
        planned = list(self._plan())
        for each in sorted(planned, key=lambda each: each.tried):
            self._measure_group(each)

    def _clear(self) -> None:
        """Remove what a real run that was cut off has left: its videos and checkpoints."""
        for left in self.out.glob(f"{LEFT}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _ask(self, limit_s: float, **question: Any) -> Any:
        return self.worker.ask(max(1.0, min(limit_s, self.budget.left_s)), **question)

    def _learn_from_before(self) -> None:
        """Earlier visits to the folder say as well what predictions are worth here: none is cut off twice for one of them."""
        mine = [row for row in read_rows(self.out) if row["case"] == CASE and row.get("of") in STEPS]
        for row in mine:
            values = row["values"]
            if row["state"] == "measured" or (row["state"] == "cut off" and values["took_s"] > values["expected_s"]):
                self.budget.learn(row["of"], values["predicted_s"], values["took_s"])

    def _start_worker(self) -> None:
        """Have it import everything, which no group's time is to hold; after it was ended, again."""
        start = time.monotonic()
        self.called = self._ask(START_LIMIT_S, ask="look", device=self.device)["device"]
        self.start_s = time.monotonic() - start

    def job(self, part: Part) -> dict[str, Any]:
        """What the worker is told of a part."""
        return Job(
            case=part.case, options=part.options, out=self.out, command=self.command, since=self.began,
            fresh=self.asked.fresh,
        ).model_dump(mode="json")  # fmt: skip

    def _plan(self) -> Iterator[Planned]:
        """Every group of every part; until something else becomes of it, it was not reached."""
        for part in self.parts:
            try:
                groups = self._ask(START_LIMIT_S, ask="groups", job=self.job(part))
            except Vmae2Error as error:
                if isinstance(error, Stopped):
                    raise
                self.note(part.name, part.name, state="failed", reason=str(error))
                self.failures += 1
                continue
            for group in filter(lambda group: part.takes(group["name"]), groups):
                each = Planned(part, group["name"], group["mark"], group["done"], group["tried"], group["predicted_s"])
                state, reason = "not reached", "the visit ended before it"
                if each.done:
                    state, reason, _ = self._became(each, "measured before")
                self.note_group(each, state, reason)
                yield each

    def _measure_group(self, each: Planned) -> None:
        if each.done:
            return
        by_rates = each.part.case in STEPS  # the time of other cases says nothing of rates, nor rates of theirs
        expected_s = self.budget.expected_s(each.part.case, each.predicted_s) if by_rates else each.predicted_s
        title = f"{each.part.case}: {each.name}"
        if expected_s + self.start_s * (not self.worker.runs) > self.budget.left_s:
            reason = f"it needs {expected_s:.0f} s, {max(0.0, self.budget.left_s):.0f} s were left"
            self.note_group(each, "left out", reason, expected_s)
            self.say(f"{title}: left out, {reason}")
            return
        state, start = "measured", time.monotonic()
        try:
            if not self.worker.runs:
                self._start_worker()
            start = time.monotonic()
            self._ask(self.budget.limit_s(expected_s), ask="measure", job=self.job(each.part), group=each.name)
            state, reason, failed = self._became(each, state)
        except (TookTooLong, HasDied) as error:
            state, reason, failed = "failed", str(error), True
            if self.budget.left_s <= 0:
                state, reason, failed = "cut off", "the time of the visit was over", False
            else:
                died = flight.Flight(case=each.part.case, group=each.name, fingerprint=each.mark)
                record_death(Job.model_validate(self.job(each.part)), died, reason)
            flight.end(self.out)
            self._clear()
        took_s = time.monotonic() - start
        if by_rates and (state == "measured" or took_s > expected_s):
            self.budget.learn(each.part.case, each.predicted_s, took_s)
        self.failures += failed
        self.note_group(each, state, reason, expected_s, took_s)
        self.say(f"{title}: {state} in {took_s:.1f} s, {expected_s:.1f} s expected" + f"; {reason}" * bool(reason))

    def _became(self, each: Planned, state: str) -> tuple[str, str, bool]:
        """`state`, or that none of a group's rows has a figure; what its rows say of errors; whether any is a failure."""
        mine = [row for row in read_rows(self.out) if (row["case"], row["group"]) == (each.part.case, each.name)]
        rows = [row for row in current(mine) if row["fingerprint"] == each.mark]
        errors = list(dict.fromkeys(f"{row['variant']}: {row['error']}" for row in rows if row["error"]))
        failed = any(map(has_failed, rows))
        if rows and all(row["error"] for row in rows):
            state = "failed" if failed else "not possible"
        return state, "; ".join(errors), failed

    def note_group(
        self, each: Planned, state: str, reason: str = "", expected_s: float | None = None, took_s: float | None = None
    ) -> None:
        """A row of what became of a group."""
        expected_s = each.predicted_s if expected_s is None else expected_s
        values = {"predicted_s": each.predicted_s, "expected_s": expected_s, "took_s": took_s}
        self.note(each.part.name, each.name, state=state, reason=reason, values=values, of=each.part.case)

    def note(self, group: str, variant: str, **told: Any) -> None:
        """A row of the visit itself; those of the last visit to a folder count."""
        values = {name: value for name, value in told.pop("values", {}).items() if value is not None}
        row: Row = {
            "case": CASE, "group": group, "variant": variant, "fingerprint": f"visit {self.began:.0f}", "config": {},
            "error": None, "samples_s": [], "device": self.called, "kind": "measured", "values": values, **told,
        }  # fmt: skip
        append_rows(self.out / f"{CASE}.jsonl", [{**self._origin, "unix_time": time.time(), **row}])

    def _hear_doctor(self) -> None:
        """Its page as doctor.json, and a row of how that went."""
        assert self._doctor is not None, "it was called"
        try:
            limit_s = max(1.0, min(DOCTOR_LIMIT_S, self.budget.left_s))
            said, complaint = self._doctor.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            end_family(self._doctor)
            said, complaint = "", f"no answer within {limit_s:.0f} s"
        try:
            findings: dict[str, dict[str, str | None]] = json.loads(said)["findings"]
        except (json.JSONDecodeError, KeyError):
            self._note_doctor("failed", (complaint.strip() or "it said nothing").splitlines()[-1])
            return
        write_whole(self.out / "doctor.json", said)
        for name, found in findings.items():
            if found["light"] == "red":
                self.say(f"doctor: {name}: {found['value']}" + f"; {found['remedy']}" * bool(found["remedy"]))
            if found["light"] != "green":
                remedy = found["remedy"]
                self.note(DOCTOR, name, state=found["light"], reason=f"{found['value']}" + f"; {remedy}" * bool(remedy))
        self._note_doctor("measured", "")

    def _note_doctor(self, state: str, reason: str) -> None:
        self.note(DOCTOR, "vmae2 doctor --json", state=state, reason=reason)
        self.say(f"doctor: {state}" + f"; {reason}" * bool(reason))

    def _report(self) -> None:
        start = time.monotonic()
        pages = write_report([self.out], self.out)
        took_s = time.monotonic() - start
        self.budget.kept_s = min(REPORT_SHARE * self.budget.seconds, 2.0 + 3 * took_s)
        self.say(f"report: {', '.join(map(str, pages))}")


def _check_folder(out: Path) -> None:
    """Make it, and write into it once: a visit that finds out at its end has measured for nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "visit.log").open("a"):
            pass
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name a folder that can be written") from None


@contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM and a terminal that is gone, as Ctrl-C, end what is measured and not the visit."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise Stopped(signal.Signals(number).name)

    with signals_handled(stop, signal.SIGTERM, signal.SIGHUP):
        yield


def visit(asked: Asked, command: str) -> int:
    """Go on with the visit to `asked.out`; exit code 0 when all went well, 1 when a group failed, 75 after a signal.

    Raises:
        ConfigError: a device that is not there, or a size that is not known.
    """
    return Visit(asked, command, age_s()).go()
