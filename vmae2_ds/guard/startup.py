"""The start-up check: do all ranks have the same code, settings, lists and libraries, and see one run folder?

It goes through the store at which the ranks meet, before there is a process group: what differs between hosts may well be
what keeps collectives from working. Rank 0 compares; a difference ends every rank with one line that names the hosts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import time
import uuid
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed

from vmae2_ds.config.run import RunConfig
from vmae2_ds.data.sources.inputs import Inputs, read_inputs
from vmae2_ds.engine.ranks import Meeting
from vmae2_ds.errors import ConfigError, RankLost, Vmae2Error
from vmae2_ds.guard.rank_report import RankReport, describe_host, host_table, problems_of, report_of, warnings_of

log = logging.getLogger(__name__)

TABLES = ("code", "versions", "settings", "lists")
"""Fields of a report that ranks should have alike."""
SEEN_WITHIN_S = 10.0
"""How long a file of rank 0 may take to show up on another host: network file systems keep what they know for a while."""
GRACE_S = 60.0
"""How much longer than rank 0 the others wait: its verdict says more than their own time-out."""
GOODBYE_S = 30.0
"""How long rank 0, which holds the store, waits for the others to have read why all end."""


class StartVerdict(NamedTuple):
    """What rank 0 tells all."""

    problem: str | None
    """Why no rank may go on."""
    lost: bool
    """The reason is a rank that did not report."""


def check_start(
    config: RunConfig, meeting: Meeting, inputs: Inputs | None = None
) -> tuple[Inputs, list[dict[str, Any]]]:
    """Compare all ranks; returns the run's files, read unless given, and, on rank 0, the table of hosts (`host_table`).

    Raises the same ConfigError on every rank where they differ or some cannot go on; a rank's own error where all fail
    alike; RankLost where one does not report within the meeting's time.
    """
    if meeting.store is None:
        inputs = inputs or read_inputs(config)
        return inputs, host_table([report_of(config, inputs, sees_folder=True)], [0.0])
    try:
        return _check(config, meeting, meeting.store, inputs)
    except torch.distributed.DistError as error:
        raise RankLost(
            f"rank {meeting.ranks.rank} on {platform.node()} lost rank 0 during the start-up check "
            f"({str(error).splitlines()[0]}); the log of rank 0 says why; start the same command again"
        ) from None


def _check(
    config: RunConfig, meeting: Meeting, store: torch.distributed.Store, inputs: Inputs | None
) -> tuple[Inputs, list[dict[str, Any]]]:
    rank, deadline = meeting.ranks.rank, time.monotonic() + meeting.timeout_s
    store.set_timeout(timedelta(seconds=meeting.timeout_s + (GRACE_S if rank else 0)))
    if store.add(f"starts/{rank}", 1) > 1:
        other = _text(store, f"host/{rank}")
        raise ConfigError(
            f"two processes are rank {rank} of {meeting.ranks.size}: on {other} and on {platform.node()}; give each its own"
        )
    store.set(f"host/{rank}", platform.node())
    failure: Vmae2Error | None = None
    with contextlib.ExitStack() as stack:
        try:
            if rank == 0:
                store.set("file", stack.enter_context(_file_beside(_run_folder(config))))
            inputs = inputs or read_inputs(config)
        except Vmae2Error as error:
            failure = error
            if rank == 0:
                store.set("file", "")
        sees_folder = rank == 0 or _sees(_run_folder(config), _text(store, "file"))
        report = report_of(config, inputs, sees_folder=sees_folder, error=None if failure is None else str(failure))
        put_report(store, rank, report)
        hosts: list[dict[str, Any]] = []
        if rank == 0:
            verdict, hosts = _judge(meeting, store, deadline)
            store.set("verdict", json.dumps(verdict))
        else:
            _text(store, "call")
            store.set(f"clock/{rank}", str(time.time()))
            verdict = StartVerdict(*json.loads(_text(store, "verdict")))
    if verdict.problem is None:
        assert inputs is not None, "a rank without videos reports an error"
        return inputs, hosts
    _say_goodbye(meeting, store)
    if failure is not None and str(failure) == verdict.problem:
        raise failure
    raise (RankLost if verdict.lost else ConfigError)(verdict.problem)


def _judge(
    meeting: Meeting, store: torch.distributed.Store, deadline: float
) -> tuple[StartVerdict, list[dict[str, Any]]]:
    """Rank 0: take all reports, ask for the time, compare, and log what is worth it."""
    ranks = range(meeting.ranks.size)
    try:
        store.wait([f"report/{rank}" for rank in ranks], timedelta(seconds=max(deadline - time.monotonic(), 1)))
    except torch.distributed.DistStoreError:
        missing = [rank for rank in ranks if not store.check([f"report/{rank}"])]
        where = {_text(store, f"host/{rank}") for rank in missing if store.check([f"host/{rank}"])} or {
            "an unknown host"
        }
        store.set("call", "")
        return StartVerdict(
            f"{len(missing)} of {len(ranks)} ranks did not report within --train.collective-timeout-s {meeting.timeout_s:g}: "
            f"rank {missing[0]}{' and others' if missing[1:] else ''} on {', '.join(sorted(where)[:4])}; look there at what "
            "blocks reading the lists and the run folder, then start the same command again",
            lost=True,
        ), []
    reports = take_reports(store, ranks)
    called = time.time()
    store.set("call", "")
    offsets_s = [0.0, *(float(clock) - called for clock in store.multi_get([f"clock/{rank}" for rank in ranks[1:]]))]
    problems = problems_of(reports)
    hosts = host_table(reports, offsets_s)
    if not problems:
        for row in hosts:
            log.info("%s", describe_host(row))
        for warning in warnings_of(reports, offsets_s):
            log.warning("%s", warning)
    return StartVerdict("; also ".join(problems) or None, lost=False), hosts


def put_report(store: torch.distributed.Store, rank: int, report: RankReport) -> None:
    """What most ranks have alike, nearly all of a report, is written by the first to say it; the others name its digest."""
    said = asdict(report)
    for table in TABLES:
        text = json.dumps(said[table])
        said[table] = digest = hashlib.sha256(text.encode()).hexdigest()
        if store.add(f"sayers/{digest}", 1) == 1:
            store.set(f"said/{digest}", text)
    store.set(f"report/{rank}", json.dumps(said))


def take_reports(store: torch.distributed.Store, ranks: range) -> list[RankReport]:
    """All reports, once they are there; what ranks have alike is one object."""
    told = [json.loads(text) for text in store.multi_get([f"report/{rank}" for rank in ranks])]
    digests = list(dict.fromkeys(report[table] for report in told for table in TABLES))
    tables = dict(zip(digests, map(json.loads, store.multi_get([f"said/{each}" for each in digests])), strict=True))
    return [RankReport(**{**report, **{table: tables[report[table]] for table in TABLES}}) for report in told]


def _say_goodbye(meeting: Meeting, store: torch.distributed.Store) -> None:
    """Rank 0 holds the store, so it leaves last."""
    store.set(f"bye/{meeting.ranks.rank}", "")
    if meeting.ranks.rank == 0:
        there = [rank for rank in range(meeting.ranks.size) if store.check([f"report/{rank}"])]
        with contextlib.suppress(torch.distributed.DistStoreError):
            store.wait([f"bye/{rank}" for rank in there], timedelta(seconds=GOODBYE_S))


def _text(store: torch.distributed.Store, key: str) -> str:
    return store.get(key).decode()


def _run_folder(config: RunConfig) -> Path:
    return (config.train.run or config.train.runs / config.recipe).absolute()


@contextlib.contextmanager
def _file_beside(folder: Path) -> Any:
    """A file in the run folder, or in what exists of its path, for others to see; yields its name."""
    above = next(path for path in (folder, *folder.parents) if path.is_dir())
    file = above / f".start-{uuid.uuid4().hex}"
    try:
        file.touch()
    except OSError as error:
        raise ConfigError(
            f"{above} cannot be written ({error.strerror}); set --train.run or --train.runs to a folder that can"
        ) from None
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


def _sees(folder: Path, name: str) -> bool:
    """True once a file of that name shows up in the run folder or above it; at once where rank 0 has none to show."""
    until = time.monotonic() + SEEN_WITHIN_S
    while name and not any((path / name).exists() for path in (folder, *folder.parents)):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
