"""A distillation run from end to end: teacher in, student out, cut and gone on with, tested, exported, started from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import rank_environment, tiny_finetuning
from tests.distributed.zygote import Zygote
from tests.train.taken_encoder import assert_pretraining_takes_the_encoder_of
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.cost.flops import classifier_macs
from vmae2_ds.errors import EXIT_OK, EXIT_USER_ERROR
from vmae2_ds.host import free_port
from vmae2_ds.weights.about import read_about
from vmae2_ds.weights.layouts import our_shapes, to_layout

pytestmark = pytest.mark.slow

Vmae2 = Callable[..., tuple[int, str]]
UNMEASURED = ("--train.peak-flops", 1e12)
"""Saves every rank the second in which it times a matrix product."""


@pytest.fixture(scope="module")
def vmae2(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Vmae2:
    """Runs a verb on some ranks: the worst exit code, and what rank 0 said."""
    folder, count = tmp_path_factory.mktemp("logs"), 0

    def run(*words: object, ranks: int = 1) -> tuple[int, str]:
        nonlocal count
        count += 1
        port, logs = free_port(), [folder / f"{count}.rank{rank}.log" for rank in range(ranks)]
        started = [
            zygote.start([str(word) for word in words], rank_environment(rank, ranks, port), log)
            for rank, log in enumerate(logs)
        ]
        return max(rank.wait() for rank in started), logs[0].read_text()

    return run


def distilling(manifest: Path, run: Path, teacher: Path, steps: int, *options: object) -> list[object]:
    """A student of another shape than the teacher of `tiny_finetuning`, which is what it starts from."""
    words = tiny_finetuning(manifest, run, steps)[2:]
    shape = "--model.encoder.depth 2 --model.encoder.width 48 --model.encoder.mlp 96"
    words = f"distil vit_ti_distil_desk {' '.join(words)} {shape} --train.log-every 1 --teacher {teacher}".split()
    return [*words, *UNMEASURED, *options]


@pytest.fixture(scope="module")
def teacher(vmae2: Vmae2, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    code, text = vmae2(*tiny_finetuning(manifest, run, steps=20), *UNMEASURED)
    assert code == EXIT_OK, text
    return run


@pytest.fixture(scope="module")
def student(vmae2: Vmae2, manifest: Path, teacher: Path) -> Path:
    """Two ranks under ZeRO-3 with all that draws, averages and matches on; validated twice."""
    run = teacher.with_name("student")
    code, text = vmae2(*distilling(manifest, run, teacher, 6, *everything(manifest)), ranks=2)
    assert code == EXIT_OK, text
    assert f"teacher {teacher}: encoder 96x3, 12 classes, bf16, clip 8x32x32" in text
    return run


def everything(manifest: Path) -> list[object]:
    options = "--train.ds-config zero3 --train.micro-batch 3 --optim.ema-decay 0.9 --model.drop-path 0.2"
    options += " --model.head-dropout 0.1 --augment.mixup 0.8 --augment.cutmix 1 --distil.alpha 0.7"
    options += " --distil.temperature 2 --distil.feature-weight 0.5"
    return [*options.split(), "--data.val-manifest", manifest, "--train.validate-every", 4]


def test_a_cut_run_goes_on_to_the_same_bits_but_not_with_another_teacher(
    vmae2: Vmae2, manifest: Path, teacher: Path, student: Path
) -> None:
    cut, options = student.with_name("cut"), everything(manifest)
    code, text = vmae2(*distilling(manifest, cut, teacher, 6, *options, "--train.stop-after-steps", 3), ranks=2)
    assert code == EXIT_OK, text
    code, text = vmae2(*distilling(manifest, cut, student / "ema.safetensors", 6, *options), ranks=1)
    assert code == EXIT_USER_ERROR
    assert "cut was started with other settings: --teacher: the model that answers has changed" in text
    elsewhere = teacher.with_name("teacher.safetensors")  # the same weights: it is not the path that counts
    code, text = vmae2("export", teacher, "--out", elsewhere)
    assert code == EXIT_OK, text
    code, text = vmae2(*distilling(manifest, cut, elsewhere, 6, *options), ranks=2)
    assert code == EXIT_OK, text
    assert "going on from step 3" in text
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (student, cut)]
    whole, gone_on = ([(row["step"], row["loss"], row["grad_norm"]) for row in found] for found in rows)
    assert [step for step, *_ in whole] == [1, 2, 3, 4, 5, 6]
    assert whole == gone_on
    assert (student / "validation.jsonl").read_bytes() == (cut / "validation.jsonl").read_bytes()
    one, two = (load_file(run / "ema.safetensors") for run in (student, cut))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_the_student_is_a_classifier_like_any_other(vmae2: Vmae2, manifest: Path, student: Path) -> None:
    """Tested, exported, started from, and taught by, without a trace of the projection or the teacher."""
    config = read_run_config(student)
    assert isinstance(config, DistilConfig)
    checkpoint = find_newest_whole(student / "ckpt")
    assert checkpoint is not None
    weights = read_weights(checkpoint)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == our_shapes(config.model)
    assert set(load_file(student / "ema.safetensors")) == set(to_layout(weights, config.model))
    clip = read_about(student / "ema.safetensors").clip or {}
    assert (clip["num_frames"], clip["size"]) == (config.data.num_frames, config.data.size)
    assert_pretraining_takes_the_encoder_of(student)
    out = student / "tested"
    code, text = vmae2("evaluate", student, "--manifest", manifest, "--clips", 1, "--crops", 1, "--out", out)
    assert code == EXIT_OK, text
    assert json.loads((out / "result.json").read_text())["videos"] == 8
    exported = student / "student.safetensors"
    code, text = vmae2("export", student, "--out", exported)
    assert code == EXIT_OK, text
    assert set(load_file(exported)) == set(to_layout(weights, config.model))
    options = ["--train.init", student, "--distil.teacher-frames", 4, "--data.num-frames", 8]
    again = student.with_name("again")
    code, text = vmae2(*distilling(manifest, again, exported, 1, *options))
    assert code == EXIT_OK, text
    assert f"{student}: {len(weights)} tensors used, 0 newly drawn, 0 dropped" in text


def test_the_teacher_s_forward_pass_counts_as_work(teacher: Path, student: Path) -> None:
    """FLOPs per clip as the rows have them: 6 per MAC of the student, 2 per MAC of the teacher."""
    pupil, master = read_run_config(student), read_run_config(teacher)
    assert isinstance(pupil, DistilConfig)
    assert isinstance(master, FinetuneConfig)
    row = json.loads((student / "metrics.jsonl").read_text().splitlines()[0])
    macs = classifier_macs(pupil.model, pupil.geometry), classifier_macs(master.model, master.geometry)
    assert 2 * row["flops_per_s"] / row["clips_per_s"] == pytest.approx(6 * macs[0] + 2 * macs[1])  # of 2 ranks


def test_videos_without_labels_will_do_and_a_checkpoint_is_no_larger_than_fine_tuning_s(
    vmae2: Vmae2, manifest: Path, teacher: Path
) -> None:
    bare = teacher.with_name("bare.csv")
    lines = [line.split(",")[0] for line in manifest.read_text().splitlines()]
    bare.write_text("\n".join(lines) + "\n")
    # of the teacher's own shape, so that its checkpoint can be compared with the teacher's
    shape = ["--model.encoder.depth", 3, "--model.encoder.width", 96, "--model.encoder.mlp", 192]
    words = distilling(bare, teacher.with_name("bare"), teacher, 2, "--data.root", manifest.parent, *shape)
    code, text = vmae2(*words)
    assert code == EXIT_OK, text
    sizes = []
    for run in (teacher, teacher.with_name("bare")):
        checkpoint = find_newest_whole(run / "ckpt")
        assert checkpoint is not None
        sizes.append(json.loads((checkpoint / "whole.json").read_text())["files"])
    assert sizes[0].keys() == sizes[1].keys()
    assert sum(sizes[1].values()) == pytest.approx(sum(sizes[0].values()), rel=0.01)
    words = distilling(
        bare, teacher.with_name("half"), teacher, 2, "--data.root", manifest.parent, "--distil.alpha", 0.5
    )
    code, text = vmae2(*words)
    assert code == EXIT_USER_ERROR
    assert "has no label; every video needs one here" in text


def test_a_run_on_cached_answers_equals_one_with_the_teacher(vmae2: Vmae2, manifest: Path, teacher: Path) -> None:
    """Asked by two ranks, learned from by one; sums are made in another order, hence 1e-5."""
    options = ["--distil.teacher-precision", "fp32", "--distil.cache-dtype", "float32", "--distil.feature-weight", 0.5]
    cache = ["--distil.cache", teacher.with_name("cache")]
    asked = distilling(manifest, teacher.with_name("none"), teacher, 3, *options, *cache)
    code, text = vmae2("distil-cache", *asked[1:], ranks=2)
    assert code == EXIT_OK, text
    assert "cache: answers for 5 epochs, 5 shards written now" in text
    losses = []
    for name, more in (("online", []), ("cached", cache)):
        run = teacher.with_name(name)
        code, text = vmae2(*distilling(manifest, run, teacher, 3, *options, *more))
        assert code == EXIT_OK, text
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(set(losses[0])) == 3
    code, text = vmae2(*distilling(manifest, teacher.with_name("online"), teacher, 3, *options, *cache))
    assert code == EXIT_USER_ERROR
    assert (
        "online was started with other settings: --distil.cache: where the teacher's answers come from has changed"
        in text
    )
