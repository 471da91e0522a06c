"""A run that diverges, or meets too many unreadable videos, stops with its own exit code and a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.ranks import tiny_pretraining
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.cli.main import main
from vmae2_ds.errors import EXIT_BAD_DATA, EXIT_DIVERGED

pytestmark = pytest.mark.slow


def stop_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


def test_divergence(tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = tiny_pretraining(manifest, run, 12)
    arguments += ["--optim.base-lr", "1e9", "--optim.warmup-epochs", "0", "--train.max-nonfinite-steps", "2"]
    assert stop_code(arguments) == EXIT_DIVERGED
    assert "more than --train.max-nonfinite-steps 2" in capsys.readouterr().err
    newest = find_newest_whole(run / "ckpt")
    assert newest is not None
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] is None
    assert last["skipped_steps"] == 3


def test_too_many_bad_videos(tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [str(path) for path in sorted((manifest.parent / "train").glob("*.mp4"))[:4]]
    for number in range(8):
        (tmp_path / f"bad{number}.mp4").write_text("not a video")
    listed = tmp_path / "list.csv"
    bad = [f"bad{number}.mp4" for number in range(8)]
    listed.write_text("\n".join(["path", *good, *bad]) + "\n")
    run = tmp_path / "run"
    assert stop_code([*tiny_pretraining(listed, run, 40), "--train.seed", "3"]) == EXIT_BAD_DATA
    assert "videos tried could not be used" in capsys.readouterr().err
    assert find_newest_whole(run / "ckpt") is not None
    named = [json.loads(line)["path"] for line in (run / "bad_files.jsonl").read_text().splitlines()]
    assert len(named) == len(set(named)) > 0
    assert all("bad" in Path(path).name for path in named)
