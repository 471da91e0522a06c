"""Stages chain by name, a handful of clips is learned by heart, and an evaluation gives the same numbers on any ranks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.distributed.ranks import rank_environment, tiny_finetuning, tiny_pretraining
from tests.distributed.zygote import Zygote
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.data.tools.synthetic import SynthArguments, SyntheticSet, write_synthetic_set
from vmae2_ds.errors import EXIT_OK, EXIT_USER_ERROR
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("clips"), train_videos=24, val_videos=11, size=64, frames=16)
    )


Vmae2 = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def vmae2(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Vmae2:
    """A command line on some ranks, each with the launcher's variables -> exit code and output of rank 0."""
    folder, calls = tmp_path_factory.mktemp("said"), count()

    def run(*words: object, ranks: int = 1) -> tuple[int, str]:
        port, call = free_port(), next(calls)
        logs = [folder / f"{call}.rank{rank}" for rank in range(ranks)]
        asked = list(map(str, words))
        processes = [zygote.start(asked, rank_environment(rank, ranks, port), log) for rank, log in enumerate(logs)]
        codes = [process.wait(300) for process in processes]
        return max(codes), logs[0].read_text()

    return run


@pytest.fixture(scope="module")
def by_heart(vmae2: Vmae2, clips: SyntheticSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saw 24 clips of 12 classes 75 times."""
    run = tmp_path_factory.mktemp("runs") / "by_heart"
    code, text = vmae2(*tiny_finetuning(clips.train, run, steps=150))
    assert code == EXIT_OK, text
    assert "no --train.init: from random weights" in text
    return run


def test_a_handful_of_clips_is_learned_by_heart(vmae2: Vmae2, by_heart: Path, clips: SyntheticSet) -> None:
    code, text = vmae2("evaluate", by_heart, "--manifest", clips.train, "--clips", 1, "--labels", clips.labels)
    assert code == EXIT_OK, text
    assert "top-1 100.00 %, top-5 100.00 %, mean over classes 100.00 % (24 videos, 1x1 views, 0 unreadable)" in text
    with (by_heart / "eval" / "train_step00000150_1x1" / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == clips.labels.read_text().splitlines()
    assert {(row["videos"], row["correct"], row["accuracy"]) for row in table} == {("2", "2", "1.0000")}
    with Image.open(by_heart / "eval" / "train_step00000150_1x1" / "confusion.png") as picture:
        assert min(picture.size) > 400


def test_uneven_shards_give_the_same_numbers_to_the_last_digit(
    vmae2: Vmae2, by_heart: Path, clips: SyntheticSet, tmp_path: Path
) -> None:
    """Eleven videos and one that cannot be read: 12 rows on 1 rank, 6 and 6 on 2, of which one lacks a score."""
    listed = tmp_path / "list.csv"
    rows = [f"{clips.val.parent}/val/{number:05d}.mp4,{number % 12}" for number in range(11)]
    (tmp_path / "text.mp4").write_text("no video\n")
    listed.write_text("\n".join(["path,label", *rows[:4], "text.mp4,3", *rows[4:]]) + "\n")
    found = {}
    for ranks in (1, 2):
        out = tmp_path / f"ranks{ranks}"
        words = ["evaluate", by_heart, "--manifest", listed, "--out", out, "--clips", 3, "--crops", 2]
        code, text = vmae2(*words, "--max-bad-share", 0.1, ranks=ranks)
        assert code == EXIT_OK, text
        with np.load(out / "scores.npz") as scores:
            found[ranks] = {name: scores[name] for name in scores.files}
        assert json.loads((out / "result.json").read_text())["unreadable"] == 1
        assert (out / "unreadable.txt").read_text().startswith(str(tmp_path / "text.mp4"))
    assert found[1]["row"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert found[1]["score"].shape == (11, 12)
    np.testing.assert_allclose(found[1]["score"].sum(axis=1), 1, rtol=1e-6)
    for name, array in found[1].items():
        assert np.array_equal(array, found[2][name]), name
    one, two = ((tmp_path / f"ranks{ranks}" / "result.json").read_bytes() for ranks in (1, 2))
    assert one == two
    code, text = vmae2("evaluate", by_heart, "--manifest", listed, "--out", tmp_path / "strict", "--clips", 1)
    assert code == EXIT_USER_ERROR
    assert "1 of 12 videos could not be read, more than --max-bad-share 0" in text


@pytest.mark.parametrize("policy", ["zero1", "zero3"])
def test_a_stopped_run_goes_on_with_its_mean_and_validates_the_same(
    vmae2: Vmae2, clips: SyntheticSet, tmp_path: Path, policy: str
) -> None:
    """Two ranks, eleven validation videos, and a draw of dropout and stochastic depth at every step."""
    options = ["--optim.ema-decay", 0.9, "--train.ds-config", policy, "--data.val-manifest", clips.val]
    options += ["--train.micro-batch", 3, "--model.drop-path", 0.2, "--model.head-dropout", 0.1, "--data.views", 2]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs = [(whole, []), (cut, ["--train.stop-after-steps", 3]), (cut, [])]
    for run, more in runs:
        code, text = vmae2(*tiny_finetuning(clips.train, run, steps=8), *options, *more, ranks=2)
        assert code == EXIT_OK, text
    rows = [json.loads(line) for line in (whole / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8]
    assert all((row["val_videos"], row["val_unreadable"]) == (11, 0) for row in rows)
    assert (whole / "validation.jsonl").read_bytes() == (cut / "validation.jsonl").read_bytes()
    one, two = (load_file(run / "ema.safetensors") for run in (whole, cut))  # their notes stand in any order
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    results = {}
    elsewhere = tmp_path / "copy.safetensors"  # without a run beside it: what is not the model's has to be said
    elsewhere.write_bytes((whole / "ema.safetensors").read_bytes())
    clip = {elsewhere: ["--num-frames", 8, "--size", 32, "--precision", "bf16"]}
    for number, source in enumerate((whole, whole / "ema.safetensors", elsewhere)):
        out = tmp_path / f"out{number}"
        code, text = vmae2(
            "evaluate", source, "--manifest", clips.val, "--clips", 1, "--crops", 1, "--out", out,
            *clip.get(source, []),
        )  # fmt: skip
        assert code == EXIT_OK, text
        with np.load(out / "scores.npz") as scores:
            results[source] = scores["score"]
    difference = np.abs(results[whole] - results[whole / "ema.safetensors"]).max()
    assert 0 < difference < 0.2
    assert np.array_equal(results[whole / "ema.safetensors"], results[elsewhere])


def test_a_run_starts_from_a_run_and_tells_what_it_took(vmae2: Vmae2, clips: SyntheticSet, tmp_path: Path) -> None:
    code, text = vmae2(*tiny_pretraining(clips.train, tmp_path / "pre", steps=2))
    assert code == EXIT_OK, text
    words = tiny_finetuning(clips.train, tmp_path / "fine", steps=2)
    shape = ["--model.encoder.depth", "2", "--model.encoder.width", "192", "--model.encoder.mlp", "768"]
    code, text = vmae2(*words, *shape, "--train.init", tmp_path / "pre")
    assert code == EXIT_OK, text
    assert "28 tensors used, 4 newly drawn (fc_norm.weight, fc_norm.bias, head.weight, head.bias)" in text
    assert "no --train.init" not in text
    code, text = vmae2(*words, "--train.init", tmp_path / "pre", "--train.run", tmp_path / "other")
    assert code == EXIT_USER_ERROR
    assert "does not fit this model" in text
    assert "of another shape" in text
    code, text = vmae2("evaluate", tmp_path / "pre", "--manifest", clips.val)
    assert code == EXIT_USER_ERROR
    assert "is a pretrain run, which has no classes" in text


def test_a_cooldown_on_other_ranks_and_at_another_stage_goes_on_with_weights_moments_and_mean(
    vmae2: Vmae2, clips: SyntheticSet, tmp_path: Path
) -> None:
    """Its first step has the constant run's rate, so that whatever is lost on the way shows in its loss, weights or mean."""
    stable, cooled = tmp_path / "stable", tmp_path / "cooled"
    options = "--optim.schedule wsd --optim.warmup-epochs 0.5 --optim.ema-decay 0.5 --train.save-every 1 --train.keep 9"
    options += " --train.log-every 1 --train.precision fp32"
    code, text = vmae2(*tiny_finetuning(clips.train, stable, 3), *options.split(), "--train.ds-config", "zero1")
    assert code == EXIT_OK, text
    branch = (
        f"--train.branch {stable}/ckpt/step00000002 --optim.decay 1 --train.stop-after-steps 3 --train.ds-config zero3"
    )
    words = [*tiny_finetuning(clips.train, cooled, 99), *options.split(), *branch.split(), "--train.micro-batch", 6]
    code, text = vmae2(*words, ranks=2)
    assert code == EXIT_OK, text
    (expected, first) = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (stable, cooled)
    )
    assert [row["step"] for row in first] == [3]
    for column, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5), ("lr", 0)):
        assert first[0][column] == pytest.approx(expected[2][column], rel=tolerance), column
    for mean in (False, True):
        was, before, now = (
            read_weights(run / f"ckpt/step0000000{step}", mean=mean)
            for run, step in ((stable, 3), (stable, 2), (cooled, 3))
        )
        moved = max(float((was[name] - before[name]).abs().max()) for name in was)
        apart = max(float((was[name] - now[name]).abs().max()) for name in was)
        assert apart < 1e-3 * moved, f"{apart:g} of {moved:g}, mean {mean}"
