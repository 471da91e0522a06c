"""A real run under the launcher, from videos to checkpoints, killed on the way and gone on with: what of its time is training.

Loader, collectives (nccl on a GPU, gloo on a CPU), ZeRO-1 and ZeRO-3, saving and resuming are those of `vmae2 pretrain`; the
videos are drawn, which needs the package av.
"""

from __future__ import annotations

import gc
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.case import Bench, Case, Group
from benchmarks.family import end_family
from benchmarks.filling import planned_batch
from benchmarks.harness import measured_row
from benchmarks.record import Row
from benchmarks.steps import MASKS
from vmae2_ds.checkpoint.whole import why_torn
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import Vmae2Error
from vmae2_ds.host import cores, free_port
from vmae2_ds.json_lines import rows_of
from vmae2_ds.recipes import get_recipe

POLICIES = ("zero1", "zero3")
RECIPES = {
    "tiny": "vit_ti_pretrain_desk",
    "small": "vit_s_pretrain_hybrid",
    "base": "vit_b_pretrain_hybrid",
    "large": "vit_l_pretrain_hybrid",
    "huge": "vit_h_pretrain_hybrid",
    "giant": "vit_g_pretrain_hybrid",
}
LEFT = "real_run-"
"""How the name of a run's folder begins, by which one that was left behind is found: it may hold gigabytes."""
STARTUP = 2
"""Steps at each start that do not count: they allocate, and the loader fills its queue."""
START_LIMIT_S, STEP_LIMIT_S = 180.0, 30.0
"""What a start and a step may take before the run is ended."""
LEFT_FREE = 0.75
"""Of the GPU's memory that the planned batch is given: the engine has buckets besides."""


class Asked(NamedTuple):
    """The run of one group."""

    recipe: str
    policy: str
    steps: int
    save_at: int
    """And every so many steps; the run is killed two steps behind the first save."""
    videos: int
    size: int
    """Pixels of the drawn videos."""
    options: tuple[str, ...]


def groups(bench: Bench) -> Iterator[Group]:
    """By size and ZeRO policy; on a CPU ViT-Ti on small clips, whatever the sizes asked for."""
    on_cpu = bench.device.type == "cpu"
    for size in ("tiny",) if on_cpu else bench.options.sizes:
        if size in RECIPES:
            for policy in POLICIES:
                yield Group(f"{size} {policy}", partial(measure, bench, size, policy))


def measure(bench: Bench, size: str, policy: str) -> list[Row]:
    """Two starts of one run, a row each: until it is killed, and from its newest checkpoint to its end.

    Raises:
        ImportError: av is not installed.
        Vmae2Error: the run ended otherwise, or hung; the text has the end of its log.
    """
    importlib.import_module("av")
    asked = run_of(bench, size, policy)
    with TemporaryDirectory(dir=bench.folder, prefix=LEFT) as name:
        folder = Path(name)
        drawn = SynthArguments(folder=folder / "videos", train_videos=asked.videos, val_videos=0, size=asked.size)
        manifest = write_synthetic_set(drawn).train
        run = Run(bench, asked, manifest, folder)
        bench.tell("until it is killed")
        first = run.until(lambda rows: _last_step(rows) >= asked.save_at + 2 and run.saved() >= asked.save_at)
        saved, held = run.saved(), run.checkpoint_bytes()
        bench.tell("from its checkpoint to the end")
        second = run.until(None)
    described = described_of(asked, bench)
    return [
        row_of("from the start", described, first, asked, held),
        row_of("resumed", described, second, asked, held) | {"resumed": compare(first.rows, second.rows, saved)},
    ]


def run_of(bench: Bench, size: str, policy: str) -> Asked:
    """Enough steps to see a save and what follows it; on a GPU as many clips as fit, with workers on all cores but one."""
    if bench.device.type == "cpu":
        small = "--data.size 32 --data.num-frames 8 --data.views 2 --model.attention math"
        small += " --train.global-batch 4 --train.micro-batch 1"
        return Asked(RECIPES[size], policy, 8, 3, 6, 48, tuple(small.split()))
    config = get_recipe("pretrain", RECIPES[size])
    gc.collect()
    torch.cuda.empty_cache()  # the run is another process
    free_bytes = LEFT_FREE * torch.cuda.mem_get_info(bench.device)[0]
    recomputed = config.model.checkpointing
    clips = planned_batch(size, "bf16", "sdpa", (MASKS["dual"],), free_bytes, checkpointing=recomputed, most=64)
    views = min(config.data.views, clips)
    videos = clips // views
    options = (
        f"--data.views {views} --train.micro-batch {videos} --train.global-batch {videos * views} "
        f"--data.workers {max(1, min(14, cores().usable - 1))} --data.reader pyav"
    )
    return Asked(RECIPES[size], policy, 20, 8, max(64, 2 * videos), 256, tuple(options.split()))


def described_of(asked: Asked, bench: Bench) -> dict[str, Any]:
    """What a row says about the run."""
    return {
        "recipe": asked.recipe, "zero": asked.policy, "steps": asked.steps, "save_every": asked.save_at, "videos": asked.videos,
        "backend": "gloo" if bench.device.type == "cpu" else "nccl", "launcher": "deepspeed", "options": list(asked.options),
    }  # fmt: skip


class Start(NamedTuple):
    """What one start of the run gave."""

    rows: list[dict[str, Any]]
    """Of metrics.jsonl, those that this start wrote."""
    first_row_s: float
    """Wall seconds from the command to the first step's row."""


class Run:
    """A run in its folder, started again and again by the same line."""

    def __init__(self, bench: Bench, asked: Asked, manifest: Path, folder: Path) -> None:
        self.bench, self.asked, self.folder = bench, asked, folder / "run"
        self.log = folder / "log.txt"
        self.command = [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "1", "--master_port", str(free_port()),
            "--no_local_rank", "--module", "vmae2_ds", "pretrain", asked.recipe, "--data.manifest", str(manifest),
            "--train.run", str(self.folder), "--train.ds-config", asked.policy, "--train.max-steps", str(asked.steps),
            "--train.save-every", str(asked.save_at), "--train.log-every", "1", "--train.no-tensorboard", *asked.options,
        ]  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """What the run has told so far."""
        path = self.folder / "metrics.jsonl"
        return list(rows_of(path)) if path.exists() else []

    def newest(self) -> Path | None:
        """The newest whole checkpoint; one that is being written is none yet."""
        found = sorted((self.folder / "ckpt").glob("step*"), reverse=True)
        return next((each for each in found if why_torn(each) is None), None)

    def saved(self) -> int:
        """Its step, 0 without one."""
        found = self.newest()
        return int(found.name.removeprefix("step")) if found else 0

    def checkpoint_bytes(self) -> int:
        """Of all its files."""
        found = self.newest()
        return sum(file.stat().st_size for file in found.rglob("*") if file.is_file()) if found else 0

    def until(self, seen: Callable[[list[dict[str, Any]]], bool] | None) -> Start:
        """Start the run and wait for its end; or kill it once `seen` of its rows. Leaves no process behind."""
        began, wall = time.time(), time.monotonic()
        first_row_s: float | None = None
        with self.log.open("ab") as log:
            launcher = subprocess.Popen(self.command, stdout=log, stderr=log, env=self._environment())
        try:
            while launcher.poll() is None:
                mine = [row for row in self.rows() if row["time"] >= began]
                if mine and first_row_s is None:
                    first_row_s = time.monotonic() - wall
                if seen is not None and seen(mine):
                    return Start(mine, first_row_s or 0.0)
                if time.monotonic() - wall > START_LIMIT_S + STEP_LIMIT_S * self.asked.steps:
                    raise Vmae2Error(f"the run took too long: {self._end_of_log()}")
                time.sleep(0.1)
        finally:
            end_family(launcher)
        mine = [row for row in self.rows() if row["time"] >= began]
        if launcher.returncode or not mine or seen is not None:
            raise Vmae2Error(f"the run ended with exit code {launcher.returncode}: {self._end_of_log()}")
        return Start(mine, first_row_s or time.monotonic() - wall)

    def _environment(self) -> dict[str, str]:
        strange = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        env = {name: value for name, value in os.environ.items() if name not in strange}
        if self.bench.device.type == "cpu":
            env["DS_ACCELERATOR"] = "cpu"
        return env

    def _end_of_log(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])


def _last_step(rows: Sequence[dict[str, Any]]) -> int:
    return rows[-1]["step"] if rows else 0


def row_of(variant: str, described: dict[str, Any], start: Start, asked: Asked, held: int) -> Row:
    """Wall times of the steps behind STARTUP that nothing was saved in, as the run itself tells them."""
    times = {row["step"]: row["step_time_s"] for row in start.rows}
    steps = sorted(times)[STARTUP:]
    plain = [step for step in steps if step % asked.save_at and (step - 1) % asked.save_at]
    row = measured_row(variant, described, [times[step] for step in plain])
    usual = statistics.median(times[step] for step in plain)
    # the row of a step holds what came before it: a save lies in that of its step or of the next
    saves = [max(times[step], times.get(step + 1, 0.0)) for step in steps if step % asked.save_at == 0]
    told = [each for each in start.rows if each["step"] in plain]
    values: dict[str, float] = {
        "data_wait_share": statistics.mean(each["data_wait_share"] for each in told),
        "clips_per_s": statistics.median(each["clips_per_s"] for each in told),
        "first_row_s": start.first_row_s,
        "checkpoint_bytes": held,
    }
    if saves:
        values["save_s"] = max(0.0, statistics.median(saves) - usual)
    if all(each.get("mfu") is not None for each in told):
        values["mfu_share"] = statistics.median(each["mfu"] for each in told)
    return row | {"clock": "wall", "rounds": len(plain), "warmup": STARTUP, "values": values, "kind": "measured"}


def compare(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], saved: int) -> dict[str, Any]:
    """From which step a run went on, and how far its losses are from those that it had before it was killed."""
    old, new = ({row["step"]: row["loss"] for row in rows} for rows in (before, after))
    both = sorted(old.keys() & new.keys())
    return {
        "from_step": min(new) - 1,
        "newest_checkpoint": saved,
        "steps_in_both": both,
        "largest_difference": max((abs(old[step] - new[step]) for step in both), default=None),
        "equal": bool(both) and all(old[step] == new[step] for step in both),
    }


CASE = Case(groups, "a real run under the launcher, from videos to checkpoints: data wait, saves, killed and resumed")
