"""`vmae2 ava` and `vmae2 ava detect` on one and on two ranks, as their users start them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import rank_environment
from tests.distributed.zygote import Rank, Zygote
from tests.downstream.ava.made_up_set import MadeUpSet, write_made_up_set
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.downstream.ava.part_files import PartFolder
from vmae2_ds.host import free_port
from vmae2_ds.json_lines import rows_of
from vmae2_ds.runs.folder import find_checkpoint

STEPS = 3
WORDS = (
    "ava_desk --model.encoder.width 32 --model.encoder.depth 2 --model.encoder.heads 2 --model.encoder.mlp 64 "
    "--model.num-classes 4 --model.attention math --data.num-frames 4 --data.stride 1 --data.size 32 --data.short-side 32 36 "
    "--data.test-short-side 32 --data.workers 0 --train.global-batch 4 --train.micro-batch 1 --train.precision fp32 "
    f"--train.max-steps {STEPS} --train.log-every 1 --train.no-tensorboard --loss.mean-over boxes --optim.ema-decay 0.5"
)


class Job:
    """A set of 36 key frames to validate on, and ranks that are started on it."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote, self.folder = zygote, folder
        self.files: MadeUpSet = write_made_up_set(folder / "set", videos=4, validation=12)

    def start(self, words: list[str], ranks: int, module: str = "vmae2_ds") -> list[Rank]:
        port = free_port()
        return [
            self.zygote.start(words, rank_environment(rank, ranks, port), self.folder / f"{port}.{rank}.log", module)
            for rank in range(ranks)
        ]

    def end(self, words: list[str], ranks: int) -> None:
        codes = [rank.wait() for rank in self.start(words, ranks)]
        assert not any(codes), "\n".join(log.read_text()[-3000:] for log in self.folder.glob("*.log"))

    def train(self, run: Path, ranks: int, *more: str) -> Path:
        files = self.files
        named = [
            "--data.truth",
            str(files.truth),
            "--data.label-map",
            str(files.label_map),
            "--data.videos",
            str(files.videos),
        ]
        named += ["--data.val-truth", str(files.val_truth), "--data.val-boxes", str(files.boxes)]
        self.end(["ava", *WORDS.split(), *named, "--train.run", str(run), *more], ranks)
        return run


@pytest.fixture(scope="module")
def job(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(zygote, tmp_path_factory.mktemp("ava"))


@pytest.fixture(scope="module")
def run(job: Job) -> Path:
    return job.train(job.folder / "two", 2, "--train.ds-config", "zero3")


def detect(run: Path, out: Path) -> list[str]:
    return ["ava", "detect", str(run), "--out", str(out), "--batch", "1"]


@pytest.mark.slow
def test_two_ranks_at_stage_3_train_and_validate_as_one(job: Job, run: Path) -> None:
    """36 key frames to validate on, of which the ranks have as many; a rank's last pass may be blank."""
    one = job.train(job.folder / "one", 1, "--train.ds-config", "zero0")
    losses = [[row["loss"] for row in rows_of(folder / "metrics.jsonl")] for folder in (one, run)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6, rel=0)
    weights, expected = (read_weights(find_checkpoint(folder)[1]) for folder in (run, one))
    assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 1e-6
    found, wanted = (list(rows_of(folder / "validation.jsonl"))[-1] for folder in (run, one))
    assert found["val_frame_map"] == pytest.approx(wanted["val_frame_map"], abs=1e-3)
    assert {key: found[key] for key in ("step", "val_key_frames", "val_boxes", "val_unreadable")} == {
        "step": STEPS,
        "val_key_frames": 36,
        "val_boxes": len(job.files.boxes.read_text().splitlines()) - 1,
        "val_unreadable": 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("killed_on", [1, 2])
def test_killed_and_started_again_on_other_ranks_the_file_is_the_same(job: Job, run: Path, killed_on: int) -> None:
    """36 parts; the job is killed where one is whole, or one of each rank, and the next half there."""
    whole, out = job.folder / "whole.csv", job.folder / f"killed_on_{killed_on}.csv"
    if not whole.exists():
        job.end(detect(run, whole), 1)
    parts = PartFolder(out).folder
    slow = job.start(detect(run, out), killed_on, "tests.downstream.ava.slow_detect")
    limit = time.monotonic() + 120
    while (
        not (is_half_way := bool(list(parts.glob(".*.part*")) and list(parts.glob("part*"))))
        and time.monotonic() < limit
    ):
        time.sleep(0.02)
    for rank in slow:
        os.kill(rank.pid, signal.SIGKILL)
        rank.wait()
    assert is_half_way
    assert not out.exists()
    job.end(detect(run, out), 3 - killed_on)
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()
