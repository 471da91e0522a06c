"""Forks a rank for every fault: it saves, or converts, and is killed; one more rank resumes from what each of them left.

`python -m tests.distributed.kill_points '{"work": "save" or "convert", ...}' OUT`.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.distributed.elastic_steps import (
    CUT,
    GLOBAL_BATCH,
    MICRO_BATCH,
    NUM_STEPS,
    groups_of,
    make_config,
    make_objective,
)
from tests.distributed.steps import make_clips
from vmae2_ds import disk
from vmae2_ds.checkpoint import hashed_files
from vmae2_ds.checkpoint import save as checkpoint
from vmae2_ds.checkpoint.elastic import fitting
from vmae2_ds.checkpoint.host_copies import HostCopies
from vmae2_ds.checkpoint.save import load_checkpoint
from vmae2_ds.checkpoint.whole import newest_sound, tag_of
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.train.ema import WeightAverage
from vmae2_ds.train.optim import learning_rate, make_optimizer, set_learning_rate
from vmae2_ds.train.saver import Saver

ALONE = Ranks()


class DiskEvents:
    """Counts what is done for the disk, and kills this process at number `fatal`: half-way through a write, else before it.

    "copy" is that of a file's content to host memory; before "put" a piece is hashed in its thread.
    """

    def __init__(self, fatal: int | None) -> None:
        self.names: list[str] = []
        self._fatal = fatal
        for module, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "unlink"),
            (os, "rmdir"),
            (os, "mkdir"),
        ):
            setattr(module, name, self._watched(name, getattr(module, name)))
        self._write = hashed_files._ReportingFile.write
        hashed_files._ReportingFile.write = self._watched_write()  # type: ignore[method-assign]
        disk.HASHED_APART = 1000  # the files are small: else no second thread would hash
        disk.HashedFile._put = self._watched("put", disk.HashedFile._put)  # type: ignore[method-assign]
        HostCopies.copy = self._watched("copy", HostCopies.copy)  # type: ignore[method-assign]

    def _happens(self, name: str) -> bool:
        self.names.append(name)
        return len(self.names) - 1 == self._fatal

    def _watched(self, name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(action)
        def watched(*args: Any, **options: Any) -> Any:
            if self._happens(name):
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*args, **options)

        return watched

    def _watched_write(self) -> Callable[..., Any]:
        def watched(file: Any, data: Any) -> int:
            if self._happens("write"):
                self._write(file, memoryview(data).cast("B")[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return self._write(file, data)

        return watched


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork of this process, as JSON has it; None where it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the child ended with {code}"
    return json.loads(said) if code == 0 else None


class Trial:
    """A rank of its own and its engine, in a child: collectives do not outlive a fork."""

    def __init__(self, policy: str, ranks: Ranks | None = None) -> None:
        from vmae2_ds.engine.ranks import start_ranks
        from vmae2_ds.engine.step import Engine

        torch.set_num_threads(1)
        self.ranks = ranks or start_ranks()
        self.config = make_config(policy, "fp32")
        self.plan = plan_run(self.config, GLOBAL_BATCH, self.ranks.size)
        self.engine = Engine(
            lambda: make_objective(self.config),
            lambda objective: make_optimizer(groups_of(objective, self.config), self.config.optim),
            resolve_ds_config(self.config, self.plan, on_cpu=True),
        )

    def resume(self, folder: Path, last: int = NUM_STEPS) -> int:
        """Load the newest sound checkpoint of at most `last` steps; the number of steps it has."""
        newest = newest_sound(folder / tag_of(last), self.ranks)
        assert newest is not None
        target = fitting(self.engine, newest, self.ranks)
        return load_checkpoint(self.engine, target, self.ranks)["step"]

    def steps(self, first: int, last: int) -> list[float]:
        """Losses of the steps first .. last - 1."""
        losses = []
        for step in range(first, last):
            set_learning_rate(self.engine.parameter_groups, learning_rate(step, self.plan))
            total = 0.0
            for micro_step in range(self.plan.accumulation):
                first_clip = (micro_step * self.ranks.size + self.ranks.rank) * MICRO_BATCH
                clips = make_clips(self.config, step, first_clip, MICRO_BATCH)
                total += self.engine.micro_step(clips).loss.item()
            self.engine.update()
            losses.append(total / self.plan.accumulation)
        return losses

    def saver(self, folder: Path, *, behind: bool, mean: WeightAverage | None = None) -> Saver:
        return Saver(self.engine, folder, self.config.train, self.ranks, mean, None, StopRequests(), behind=behind)

    def save(self, folder: Path, step: int) -> None:
        self.saver(folder, behind=False).save(step, {"step": step})

    def resume_and_finish(self, folder: Path) -> dict[str, Any]:
        first = self.resume(folder)
        return {"first": first, "losses": self.steps(first, NUM_STEPS)}


def kill_in_saves(policy: str, folder: Path, points: int) -> dict[str, Any]:
    """Saves after steps 2, 3 and 4, the last behind training; it also drops the first. Killed anywhere in that one."""

    def save_fourth(run: Path, fatal: int | None) -> list[str]:
        trial = Trial(policy)
        assert trial.resume(run) == CUT
        trial.steps(3, 4)
        events = DiskEvents(fatal)
        saver = trial.saver(run, behind=True)
        saver.save(4, {"step": 4})
        trial.steps(4, 5)
        saver.finish()
        return events.names

    in_child(lambda: _save_two(policy, folder / "before"))
    return _at_random_points(policy, folder, points, save_fourth)


def _save_two(policy: str, run: Path) -> None:
    trial = Trial(policy)
    for first, last in ((0, 2), (2, CUT)):
        trial.steps(first, last)
        trial.save(run, last)


def kill_in_conversions(policy: str, folder: Path, points: int) -> dict[str, Any]:
    """FOLDER/before holds a checkpoint of two ranks at stage 3: its conversion for one rank is killed anywhere."""

    def convert(run: Path, fatal: int | None) -> list[str]:
        trial = Trial(policy)
        events = DiskEvents(fatal)
        fitting(trial.engine, run / tag_of(CUT), ALONE)
        return events.names

    return _at_random_points(policy, folder, points, convert)


def _at_random_points(
    policy: str, folder: Path, points: int, work: Callable[[Path, int | None], list[str]]
) -> dict[str, Any]:
    names = in_child(lambda: work(Path(shutil.copytree(folder / "before", folder / "counted")), None))
    writes = [event for event, name in enumerate(names) if name in ("write", "put")]
    others = [
        event for event, name in enumerate(names) if name not in ("write", "put")
    ]  # far fewer: half of the points
    draw = random.Random(0)
    chosen = sorted(draw.sample(writes, points // 2) + draw.sample(others, points - points // 2))
    source = _content(folder / "before" / tag_of(CUT))
    runs = {fatal: Path(shutil.copytree(folder / "before", folder / f"killed_at_{fatal}")) for fatal in chosen}
    for fatal, run in runs.items():
        assert in_child(functools.partial(work, run, fatal)) is None, "it was to be killed"

    def resume_all() -> list[dict[str, Any]]:
        trial = Trial(policy)
        return [{"at": names[fatal], "event": fatal, **trial.resume_and_finish(run)} for fatal, run in runs.items()]

    results = in_child(resume_all)
    for result, run in zip(results, runs.values(), strict=True):
        result["untouched"] = _content(run / tag_of(CUT)) == source
        result["unfinished"] = len(list(run.glob("universal/.*")))
    return {"events": names, "results": results}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flip": lambda shard: _flip_bit(shard),
    "torn": lambda shard: os.truncate(shard, shard.stat().st_size // 2),
    "missing shard": lambda shard: shard.unlink(),
    "missing manifest": lambda shard: (shard.parent / checkpoint.WHOLE).unlink(),
    "latest points nowhere": lambda shard: (shard.parents[1] / checkpoint.LATEST).write_text("step99999999"),
}


def _flip_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def resume_after_damage(policy: str, folder: Path) -> dict[str, Any]:
    """Two whole checkpoints, after steps 2 and 3; the newer one is damaged."""
    in_child(lambda: _save_two(policy, folder / "before"))
    runs = {name: Path(shutil.copytree(folder / "before", folder / name)) for name in DAMAGES}
    for name, damage in DAMAGES.items():
        damage(next((runs[name] / tag_of(CUT)).glob("*optim_states.pt")))

    def resume_all() -> dict[str, Any]:
        trial = Trial(policy)
        return {name: trial.resume_and_finish(run) for name, run in runs.items()}

    return in_child(resume_all)


def main() -> None:
    """Do the work of argv[1] in the folder of argv[2], and write what came of it there."""
    asked, folder = json.loads(sys.argv[1]), Path(sys.argv[2]).parent
    policy = asked["policy"]
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "save": lambda: kill_in_saves(policy, folder, asked["points"]),
        "convert": lambda: kill_in_conversions(policy, folder, asked["points"]),
        "damage": lambda: resume_after_damage(policy, folder),
    }
    found = works[asked["work"]]()
    found["undisturbed"] = in_child(lambda: Trial(policy).steps(0, NUM_STEPS))
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
