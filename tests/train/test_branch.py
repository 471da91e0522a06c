"""A cooldown branches off a run that goes on: its steps against a run's planned so from the start, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import tiny_pretraining
from vmae2_ds.checkpoint.whole import WHOLE, why_torn
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.cli.main import main
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import EXIT_OK, ConfigError
from vmae2_ds.guard.rollback import ROLLBACKS
from vmae2_ds.recipes import get_recipe
from vmae2_ds.runs.folder import open_run_folder
from vmae2_ds.train.branch import has_other_clips, take_over

WSD = ("--optim.schedule", "wsd", "--optim.warmup-epochs", "0.25", "--train.save-every", "2", "--train.keep", "9")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branch")
    return write_synthetic_set(SynthArguments(folder=folder, train_videos=8, val_videos=1, size=64, frames=16)).train


def run(videos: Path, folder: Path, steps: int, *more: str) -> list[dict[str, Any]]:
    words = [word.replace("zero3", "zero1") for word in tiny_pretraining(videos, folder, steps)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--data.workers", "0", "--train.log-every", "1", *more])
    assert ended.value.code == EXIT_OK
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def bits(rows: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns or ("step", "loss", "grad_norm", "lr", "epoch")) for row in rows]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], videos: Path, folder: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*tiny_pretraining(videos, folder, 6), "--data.workers", "0", *more])
    assert ended.value.code == 2
    assert not folder.exists()
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_cooldown_is_the_end_of_a_run_planned_so_from_the_start(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stable, planned, cooled, longer = (tmp_path / name for name in ("stable", "planned", "cooled", "longer"))
    rows = run(videos, stable, 6, *WSD)
    pace = rows[0]["epoch"]  # passes a step
    decay = ("--optim.decay", repr(2 * pace))
    before = files_of(stable)
    branch = ("--train.branch", str(stable / "ckpt/step00000004"), *decay)
    found = run(videos, cooled, 99, *WSD, *branch, "--train.stop-after-steps", "5")
    assert files_of(stable) == before
    assert bits(found[:1], "step", "loss", "grad_norm") == bits(rows[4:5], "step", "loss", "grad_norm")
    shutil.rmtree(stable)  # the cooldown has what it needs
    found = run(videos, cooled, 99, *WSD, *branch)
    end = run(videos, planned, 6, *WSD, *decay)
    assert bits(found) == bits(end[4:])
    assert found[1]["lr"] < found[0]["lr"] == end[3]["lr"]
    assert (cooled / "finished.json").is_file()
    ours, theirs = (read_weights(folder / "ckpt/step00000006") for folder in (cooled, planned))
    assert all(ours[name].equal(theirs[name]) for name in theirs)

    clips = ("--data.num-frames", "16", "--mask.visible", "16", "--model.attention", "sdpa")
    constant = str(planned / "ckpt/step00000004")
    other = run(videos, longer, 99, *WSD, "--train.branch", constant, *decay, *clips)
    assert bits(other, "step", "lr") == bits(end[4:], "step", "lr")
    assert other[0]["loss"] != end[4]["loss"]
    assert has_other_clips(longer / "ckpt/step00000004")  # wherever the other run is by then

    def says(*more: str) -> str:
        return refused(capsys, videos, tmp_path / "none", *WSD, *decay, *more)

    branch = ("--train.branch", constant)
    assert "is no whole checkpoint: it was never finished" in says(
        "--train.branch", constant.replace("p00000004", "p00000003")
    )
    assert "falls from step 4 on" in says("--train.branch", constant.replace("p00000004", "p00000006"))
    assert "these differ: model.encoder" in says(*branch, "--model.encoder.mlp", "96")
    assert "both say what to start from" in says(*branch, "--train.init", constant)
    assert "is no checkpoint of a run" in says("--train.branch", str(planned))
    config = json.loads((planned / "run.json").read_text())
    config["optim"]["freeze_encoder_steps"] = 5
    (planned / "run.json").write_text(json.dumps(config))
    assert "rises up to step 5" in says(*branch, "--optim.freeze-encoder-steps", "5")
    config["optim"] |= {"freeze_encoder_steps": 0, "schedule": "cosine", "decay": 0}
    (planned / "run.json").write_text(json.dumps(config))
    assert "falls all along" in says(*branch)


FILES = ("mp_rank_00_model_states.pt", "rank_1_optim_states.pt", "mean.safetensors")


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
@pytest.mark.parametrize("gone_after", range(len(FILES) + 1))
def test_what_its_run_removes_meanwhile_is_taken_over_whole_or_not_at_all(
    gone_after: int, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run drops an old checkpoint, its list first, between any two of the files that are taken over."""
    source, new = tmp_path / "stable/ckpt/step00000004", tmp_path / "cooled"
    for place in (source, source.with_name("step00000006")):
        place.mkdir(parents=True)
        for name in FILES:
            (place / name).write_text(f"what {name} holds")
        sizes = {name: len(f"what {name} holds") for name in FILES}
        (place / WHOLE).write_text(json.dumps({"files": sizes, "step": 4, "figures": {"val_loss": 1}}))
    (tmp_path / "stable" / ROLLBACKS).write_text("[]")
    taken = iter(range(99))

    def link(one: Path, other: Path) -> None:
        if next(taken) == gone_after:
            (source / WHOLE).unlink()
            shutil.rmtree(source)
        if not links and one.exists():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real_link(one, other)

    real_link = os.link
    monkeypatch.setattr(os, "link", link)
    desk = get_recipe("pretrain", "vit_ti_pretrain_desk")
    config = desk.changed(train={"run": new, "branch": source})
    begin = partial(take_over, config, desk)
    if gone_after < len(FILES):
        with pytest.raises(ConfigError, match=r"its run may have removed it: .*ckpt has step00000006$"):
            open_run_folder(config, {}, begin=begin)
        assert not new.exists()
        return
    first = open_run_folder(config, {}, begin=begin).checkpoint
    assert first is not None
    if links:
        shutil.rmtree(source)
    assert why_torn(first) is None
    assert {name: (first / name).read_text() for name in FILES} == {name: f"what {name} holds" for name in FILES}
    assert not has_other_clips(first)
