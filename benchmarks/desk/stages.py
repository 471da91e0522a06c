"""The command line of each stage; a stage that has finished is not run again, one that was cut goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.desk.lists import CLASSES, UNION, Lists
from vmae2_ds.errors import Vmae2Error

SHAPE = (
    "--model.patch 6 --model.encoder.depth 6 --model.attention math "
    "--data.num-frames 8 --data.size 60 --data.workers 1 --train.no-tensorboard --train.log-every 50"
)
"""8 frames of 60x60 in cubes of 2x6x6: 400 tokens; an encoder of 192 x 6. Small cubes and frames spread over the clip."""
STUDENT = "--model.encoder.width 96 --model.encoder.heads 3 --model.encoder.mlp 384"
"""A fourth of the teacher's weights."""
STEPS = {"pretrain": 2000, "posttrain": 300, "distil": 300, "ut": 150, "bg": 150}


class StageFailed(Vmae2Error):
    """A stage's command did not end with 0."""


class Stages:
    """Every stage of one seed, in run folders below `out`."""

    def __init__(self, out: Path, lists: Lists, seed: int, shrink: int = 1) -> None:
        """`shrink` divides the number of steps, to try the chain."""
        self.out, self.lists, self.seed, self.shrink = out, lists, seed, shrink

    def pretrained(self, target: str) -> Path:
        """Dual-masked pre-training on all training clips of both sets; `target` is pixels or normalised."""
        words = f"{SHAPE} --model.decoder.depth 2 --objective.target {target} --mask.encoder-ratio 0.8 --data.views 1"
        words += (
            " --data.crop-scales 1 0.875 0.75 0.66 0.5 --data.flip 0.5 --train.global-batch 16 --train.micro-batch 16"
        )
        words += " --optim.base-lr 0.016 --optim.warmup-epochs 8"
        return self._run("pretrain vit_ti_pretrain_desk", f"pretrain_{target}", "pretrain", self.lists.train, words)

    def posttrained(self, first: Path | None) -> Path:
        """Supervised on both sets' labels together, from `first` or from scratch."""
        name = "posttrain" if first else "posttrain_scratch"
        return self._finetune(name, "posttrain", self.lists.train, UNION, first)

    def finetuned(self, of: str, first: Path | None, name: str) -> Path:
        """Fine-tuned on one set's training clips, from `first` or from scratch."""
        return self._finetune(f"finetune_{of}_{name}", of, self.lists.train_of[of], CLASSES[of], first)

    def distilled(self, teacher: Path, first: Path | None = None) -> Path:
        """A smaller student of a classifier on the union."""
        words = f"{SHAPE} {STUDENT} {_SUPERVISED} --model.num-classes {UNION} --teacher {teacher}"
        return self._run("distil vit_ti_distil_desk", "distil", "distil", self.lists.train, words, first)

    def _finetune(self, name: str, length: str, listed: Path, classes: int, first: Path | None) -> Path:
        words = f"{SHAPE} {_SUPERVISED} --model.num-classes {classes}"
        return self._run("finetune vit_ti_finetune_desk", name, length, listed, words, first)

    def _run(self, verb: str, name: str, length: str, listed: Path, words: str, first: Path | None = None) -> Path:
        run = self.out / "runs" / f"{name}_seed{self.seed}"
        steps = max(2, STEPS[length] // self.shrink)
        command = [*f"{verb} {words}".split(), "--data.manifest", str(listed), "--train.run", str(run)]
        command += ["--train.seed", str(self.seed), "--train.max-steps", str(steps), "--train.save-every", "1000"]
        if first is not None:
            command += ["--train.init", str(first)]
        if (run / "finished.json").is_file():
            return run
        run.parent.mkdir(parents=True, exist_ok=True)
        print(f"vmae2 {' '.join(command)}", flush=True)
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **os.environ}
        with run.with_suffix(".log").open("a") as log:
            done = subprocess.run([sys.executable, "-m", "vmae2_ds", *command], env=environment, stdout=log, stderr=log)
        if done.returncode:
            raise StageFailed(f"exit code {done.returncode}; see {run.with_suffix('.log')}; the same command goes on")
        return run


_SUPERVISED = (
    "--data.sampling spread --data.views 1 --data.crop-area 0.5 1 --data.flip 0 --augment.mixup 0.8 --augment.cutmix 0 "
    "--augment.mix-share 0.5 --optim.base-lr 0.016 --optim.warmup-epochs 3 --optim.layer-decay 0.75 "
    "--train.global-batch 16 --train.micro-batch 16"
)
"""Mirroring would turn `left` into `right`; erasing and label smoothing as the recipe has them."""
