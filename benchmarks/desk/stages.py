"""The command line of each stage; a stage that has finished is not run again, one that was cut goes on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.desk.lists import CLASSES, UNION, Lists
from vmae2_ds.errors import ConfigError, Vmae2Error

SHAPE = (
    "--model.patch 8 --model.encoder.depth 4 --model.encoder.heads 6 --model.attention math "
    "--data.num-frames 8 --data.size 48 --data.workers 1 --data.reader decord --data.read-timeout-s 0 "
    "--train.no-tensorboard --train.log-every 50"
)
"""8 frames of 48x48 in cubes of 2x8x8: 144 tokens; an encoder of 192 x 4. Frames are spread over the clip."""
STUDENT = "--model.encoder.width 96 --model.encoder.heads 3 --model.encoder.mlp 384"
"""A fourth of the teacher's weights."""
BASE_LR = "--optim.base-lr 0.032"
"""The rate in RECIPE; others are multiples of it."""
RECIPE = (
    "--mask.encoder random --mask.encoder-ratio 0.6 --mask.decoder none --model.decoder.depth 2 --data.views 1 "
    f"--data.crop-scales 1 0.9 0.8 --data.flip 0.5 {BASE_LR} --train.global-batch 16 --train.micro-batch 16"
)
"""Of pre-training; the learning rate is 0.002. Without tubes: what a patch does is seen from step to step, and a tube mask
hides its path from start to end."""
STEPS = {"mixture": 8000, "real": 8000, "synthetic": 10_000, "posttrain": 2000, "distil": 1500}
FINETUNE_STEPS = {"ut": 400, "bg": 300, "synthetic": 1500}


class StageFailed(Vmae2Error):
    """A stage's command did not end with 0."""


def settle_recipe(out: Path, shrink: int) -> None:
    """Note in `out` how its runs are trained. Raises ConfigError where that is not how they would be trained now."""
    recipe = {"shape": SHAPE, "student": STUDENT, "pre-training": RECIPE, "supervised": _SUPERVISED, "shrink": shrink}
    text = json.dumps({**recipe, "steps": STEPS, "fine-tuning steps": FINETUNE_STEPS}, indent=1)
    noted = out / "recipe.json"
    found = noted.read_text(encoding="utf-8") if noted.is_file() else None
    if found != text and (found is not None or (out / "runs").is_dir()):
        raise ConfigError(
            f"{out} holds runs of another recipe than {noted.name} would say; name another folder with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    noted.write_text(text, encoding="utf-8")


class Stages:
    """Every stage of one seed, in run folders below `out`."""

    def __init__(self, out: Path, lists: Lists, seed: int, shrink: int = 1) -> None:
        """`shrink` divides the number of steps, to try the chain."""
        self.out, self.lists, self.seed, self.shrink = out, lists, seed, shrink

    def pretrained(self, target: str, data: str = "mixture") -> Path:
        """Masked pre-training; `target` is pixels or normalised, `data` mixture (all training clips of both sets and the
        synthetic videos), real or synthetic."""
        listed, warmup_epochs = {  # 150 steps or so
            "mixture": (self.lists.mixture, 0.4),
            "real": (self.lists.train, 8),
            "synthetic": (self.lists.synthetic, 0.4),
        }[data]
        words = f"{SHAPE} {RECIPE} --objective.target {target} --optim.warmup-epochs {warmup_epochs}"
        name = f"pretrain_{target}" if data == "mixture" else f"pretrain_{target}_{data}"
        return self._run("pretrain vit_ti_pretrain_desk", name, STEPS[data], listed, words)

    def posttrained(self, first: Path) -> Path:
        """Supervised on both sets' labels together."""
        return self._finetune("posttrain", STEPS["posttrain"], self.lists.train, UNION, first)

    def finetuned(self, of: str, first: Path | None, name: str) -> Path:
        """Fine-tuned on one set's training clips, from `first` or from scratch; what is called `student` has its shape."""
        shape = STUDENT if name == "student" else ""
        return self._finetune(
            f"finetune_{of}_{name}", FINETUNE_STEPS[of], self.lists.train_of[of], CLASSES[of], first, shape
        )

    def distilled(self, teacher: Path) -> Path:
        """A smaller student of a classifier on the union."""
        words = f"{SHAPE} {STUDENT} {_SUPERVISED} --model.num-classes {UNION} --teacher {teacher}"
        return self._run("distil vit_ti_distil_desk", "distil", STEPS["distil"], self.lists.train, words)

    def _finetune(self, name: str, steps: int, listed: Path, classes: int, first: Path | None, shape: str = "") -> Path:
        words = f"{SHAPE} {shape} {_SUPERVISED} --model.num-classes {classes}"
        return self._run("finetune vit_ti_finetune_desk", name, steps, listed, words, first)

    def _run(self, verb: str, name: str, steps: int, listed: Path, words: str, first: Path | None = None) -> Path:
        run = self.out / "runs" / f"{name}_seed{self.seed}"
        steps = max(2, steps // self.shrink)
        kind = "mixture" if listed.suffix == ".toml" else "manifest"
        command = [*f"{verb} {words}".split(), f"--data.{kind}", str(listed), "--train.run", str(run)]
        command += ["--train.seed", str(self.seed), "--train.max-steps", str(steps), "--train.save-every", "1000"]
        if first is not None:
            command += ["--train.init", str(first)]
        if (run / "finished.json").is_file():
            return run
        run.parent.mkdir(parents=True, exist_ok=True)
        run_vmae2(command, run.with_suffix(".log"))
        return run


def run_vmae2(words: Sequence[object], log: Path) -> None:
    """A command line in a process of its own, what it says added to `log`. Raises StageFailed where it does not end with 0."""
    command = list(map(str, words))
    print(shlex.join(["vmae2", *command]), flush=True)
    environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **os.environ}
    with log.open("a") as file:
        done = subprocess.run([sys.executable, "-m", "vmae2_ds", *command], env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise StageFailed(f"exit code {done.returncode}; see {log}; the same command goes on")


_SUPERVISED = (
    "--data.sampling spread --data.views 1 --data.crop-area 0.6 1 --data.flip 0 --augment.mixup 0 --augment.cutmix 0 "
    "--augment.mix-share 0 --augment.erase 0 --augment.label-smoothing 0 --model.drop-path 0 --optim.base-lr 0.016 "
    "--optim.warmup-epochs 3 --optim.layer-decay 0.9 --train.global-batch 16 --train.micro-batch 16"
)
"""Mirroring would turn `left` into `right`. With mixup, erasing and smoothing as the recipe has them, 296 clips were not
fitted in 1,500 steps (16 % of the training clips named right), from scratch or pre-trained."""
