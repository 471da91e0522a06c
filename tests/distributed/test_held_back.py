"""Validation of pre-training: the same on other ranks and after a cut, no part of what is learnt, and the best is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import rank_environment, tiny_pretraining
from tests.distributed.zygote import Zygote
from vmae2_ds.errors import EXIT_OK
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow
STEPS = 6


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_validation_is_the_same_on_other_ranks_and_after_a_cut_and_the_lowest_loss_is_kept(
    zygote: Zygote, manifest: Path, tmp_path: Path
) -> None:
    """Three of five videos on one rank and two on the other; a step is half a pass. Its rate makes the model worse."""
    lists = tmp_path / "val.csv"
    lists.write_text("path\n" + "".join(f"{manifest.parent}/train/{number:05d}.mp4\n" for number in range(5)))

    def run(name: str, ranks: int, *options: object) -> tuple[Path, str]:
        folder, port = tmp_path / name, free_port()
        words = [*tiny_pretraining(manifest, folder, STEPS), "--train.precision", "fp32", "--data.workers", "0"]
        words += ["--optim.base-lr", "2", "--optim.warmup-epochs", "1", "--train.save-every", "1", *map(str, options)]
        logs = [tmp_path / f"{name}{ranks}.rank{rank}" for rank in range(ranks)]
        started = [zygote.start(words, rank_environment(rank, ranks, port), log) for rank, log in enumerate(logs)]
        assert [rank.wait() for rank in started] == [EXIT_OK] * ranks, logs[0].read_text()[-3000:]
        return folder, logs[0].read_text()

    validated = ("--data.val-manifest", lists, "--train.keep-best", "val_loss")
    plain, _ = run("plain", 1)
    one, _ = run("one", 1, *validated)
    run("cut", 2, *validated, "--train.stop-after-steps", 2)
    cut, log = run("cut", 1, *validated)
    rows, again = rows_of(one / "validation.jsonl"), rows_of(cut / "validation.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in again] == [0, 2, 4, 6]
    assert "step 0:" not in log, "what stands before the first step was looked at before the cut"
    for row, other in zip(rows, again, strict=True):
        assert row["val_videos"] == other["val_videos"] == 5
        for name in ("val_loss", "seen_loss"):
            assert other[name] == pytest.approx(row[name], rel=1e-6 if row["step"] == 0 else 1e-4), (row, other)
    learnt = [
        [(row["step"], row["loss"], row["grad_norm"]) for row in rows_of(run / "metrics.jsonl")] for run in (plain, one)
    ]
    assert learnt[0] == learnt[1]
    assert min(rows[1:], key=lambda row: row["val_loss"])["step"] == 2
    for folder in (one, cut):  # step 1 was saved before there were figures of it
        assert sorted(path.name for path in (folder / "ckpt").glob("step*")) == [
            f"step{step:08d}" for step in (2, 5, 6)
        ]
