"""Trains runs by `vmae2 pretrain` and `vmae2 finetune`, several at once; what is trained stays, what was cut goes on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases.science.grid import (
    BASE,
    BATCH,
    GEOMETRY,
    LABELLED_STEPS,
    MODEL,
    OF_NAME,
    STEPS,
    WARMUP_STEPS,
    Cell,
    Data,
    run_flops,
    steps_of,
)
from benchmarks.cases.science.sets import READER, Sets
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.cost.flops import classifier_macs, training_flops
from vmae2_ds.disk import write_whole
from vmae2_ds.errors import Vmae2Error
from vmae2_ds.host import die_with

PROGRAM = (sys.executable, "-m", "vmae2_ds")
LOOK_EVERY_S = 0.2
SAVE_EVERY = 200
"""Steps that a run which is cut loses at most."""
COST, FINISHED = "science_cost.json", "finished.json"
"""In a run's folder: what its processes took; and that it is trained to its end."""


class TrainingFailed(Vmae2Error):
    """A run did not end with 0."""


class Training(NamedTuple):
    """One run of a cell and a seed."""

    name: str
    words: tuple[str, ...]
    """Of the command line, without lists and folders."""
    data: Data
    flops: float
    """Of the whole run."""
    steps: int
    after: Training | None = None
    """The run whose weights it starts from."""


class Cost(NamedTuple):
    """What the last start of a run took, which is all of it unless it was cut."""

    cpu_s: float
    """Processor seconds of its processes, their start included."""
    wall_s: float
    flops: float


class Going(NamedTuple):
    """A run that is being trained."""

    process: subprocess.Popen[bytes]
    began: float
    flops: float


def training_of(cell: Cell, seed: int, sets: Sets, usual: int = STEPS) -> Training:
    """How a cell is trained with a seed. With labels: on from the run of BASE, which is the same until then."""
    name = f"{cell.name.replace(' ', '_').replace(',', '').replace('%', 'pc')}_seed{seed}".replace("'", "")
    if cell.labels:
        steps = max(2, round(usual * LABELLED_STEPS / STEPS))
        words = f"finetune vit_ti_finetune_desk {_SHARED} {_tower('encoder', MODEL.encoder)} {_SUPERVISED}"
        words += (
            f" --model.num-classes {sets.classes} --optim.warmup-epochs {_passes(steps // 10, sets.videos[sets.main])}"
        )
        first = run_flops(OF_NAME[BASE], usual)
        return Training(name, _ended(words, steps, seed), sets.main, first + labelled_flops(steps, sets.classes), steps,
                        after=training_of(OF_NAME[BASE], seed, sets, usual))  # fmt: skip
    data, steps = cell.data or sets.main, steps_of(cell, usual)
    warmup = _passes(min(WARMUP_STEPS, steps // 5), sets.videos[data])
    words = f"pretrain vit_ti_pretrain_desk {_SHARED} {_tower('encoder', MODEL.encoder)} {_tower('decoder', MODEL.decoder)} "
    words += f"{_RECIPE} {mask_words(cell.mask)} --objective.context-weight {cell.context_weight:g} "
    words += f"--optim.warmup-epochs {warmup}"
    return Training(name, _ended(words, steps, seed), data, run_flops(cell, usual), steps)


def labelled_flops(steps: int, classes: int) -> float:
    """Of supervised training: every cube is seen."""
    model = ClassifierConfig(encoder=MODEL.encoder, patch=MODEL.patch, num_classes=classes)
    return steps * BATCH * training_flops(classifier_macs(model, GEOMETRY))


def mask_words(mask: MaskConfig) -> str:
    """The command line of a mask."""
    words = f"--mask.encoder {mask.encoder} --mask.encoder-ratio {mask.encoder_ratio:g} --mask.decoder {mask.decoder}"
    if mask.decoder == "none":
        return words
    return f"{words} --mask.decoder-ratio {mask.decoder_ratio:g} --mask.decoder-tokens {mask.decoder_tokens}"


def _passes(steps: int, videos: int) -> str:
    return f"{steps * BATCH / videos:.4g}"


def _ended(words: str, steps: int, seed: int) -> tuple[str, ...]:
    return (*words.split(), "--train.max-steps", str(steps), "--train.seed", str(seed))


def _tower(name: str, tower: TowerConfig) -> str:
    return " ".join(f"--model.{name}.{key} {value}" for key, value in tower.model_dump().items())


_SHARED = (
    f"--model.patch {GEOMETRY.patch} --model.attention {MODEL.attention} --data.num-frames {GEOMETRY.num_frames} "
    f"--data.size {GEOMETRY.height} --data.sampling stride --data.stride 1 --data.reader {READER} --data.read-timeout-s 0 "
    f"--data.workers 0 --data.views 1 --train.no-tensorboard --train.log-every 50 "
    f"--train.global-batch {BATCH} --train.micro-batch {BATCH} --train.precision bf16"
)
_RECIPE = (
    "--objective.target pixels --data.crop-scales 1 --data.flip 0.5 --optim.optimizer muon --optim.muon-rate 4 "
    "--optim.base-lr 0.128 --optim.min-lr 0.00256"
)
"""Muon leaves the plateau of each cube's colour within these steps, AdamW does not. The peak rate is 0.008."""
_SUPERVISED = (
    "--data.crop-area 1 1 --data.flip 0 --augment.mixup 0 --augment.cutmix 0 --augment.mix-share 0 --augment.erase 0 "
    "--augment.label-smoothing 0 --model.drop-path 0 --optim.base-lr 0.016 --optim.layer-decay 0.9"
)


class Trainer:
    """Runs below one folder, at most `jobs` at once; none begins that would not end by `until`, a time of the wall clock."""

    def __init__(self, folder: Path, sets: Sets, jobs: int, until: float) -> None:
        self.folder, self.sets, self.jobs, self.until = folder, sets, jobs, until
        self.going: dict[str, Going] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def finish(self, wanted: Training, ahead: Sequence[Training] = ()) -> Cost | None:
        """Train `wanted`, and beside it what comes next; None where there is no time left for it.

        Raises TrainingFailed.
        """
        if wanted.after is not None and self.finish(wanted.after) is None:
            return None
        while not self.is_finished(wanted):
            if wanted.name not in self.going and not self.fits(wanted):
                return None
            for each in (wanted, *ahead):
                self._begin(each)
            time.sleep(LOOK_EVERY_S)
            self._look(wanted.name)
        for each in ahead:
            self._begin(each)
        return self._cost(wanted.name)

    def is_finished(self, training: Training) -> bool:
        """Trained to its end."""
        run = self.folder / training.name
        return training.name not in self.going and (run / FINISHED).is_file() and (run / COST).is_file()

    def fits(self, training: Training) -> bool:
        """Whether it would end in time, by the least FLOPs a second of the runs that have ended; the first one is tried."""
        costs = [self._cost(path.parent.name) for path in self.folder.glob(f"*/{COST}")]
        slowest = max((cost.wall_s / cost.flops for cost in costs), default=0.0)
        return time.time() + slowest * training.flops < self.until

    def _begin(self, training: Training) -> None:
        """Start it, unless it is going or done, others take all places, what it starts from is not there, or time is short."""
        first = training.after is None or self.is_finished(training.after)
        if training.name in self.going or self.is_finished(training) or len(self.going) >= self.jobs or not first:
            return
        if not self.fits(training):
            return
        listed = self.sets.lists[training.data]
        words = [*training.words, "--data.mixture" if listed.suffix == ".toml" else "--data.manifest", str(listed)]
        words += ["--train.run", str(self.folder / training.name), "--train.save-every", str(SAVE_EVERY)]
        words += ["--train.init", str(self.folder / training.after.name)] if training.after else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with (self.folder / f"{training.name}.log").open("ab") as log:
            log.write(f"{shlex.join(['vmae2', *words])}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [*PROGRAM, *words],
                env=environment, stdout=log, stderr=log, preexec_fn=partial(die_with, os.getpid()),
            )  # fmt: skip
        self.going[training.name] = Going(process, time.time(), training.flops)

    def _look(self, wanted: str) -> None:
        """Note the cost of what has ended. Raises TrainingFailed where that is `wanted` and it did not end well."""
        for name, going in list(self.going.items()):
            pid, status, used = os.wait4(going.process.pid, os.WNOHANG)
            if pid == 0:
                continue
            code = going.process.returncode = os.waitstatus_to_exitcode(status)
            del self.going[name]
            if code == 0:
                cost = Cost(used.ru_utime + used.ru_stime, time.time() - going.began, going.flops)
                write_whole(self.folder / name / COST, json.dumps(cost._asdict()))
            elif name == wanted:
                raise TrainingFailed(f"{name} ended with exit code {code}; its log beside the run folder says why")

    def _cost(self, name: str) -> Cost:
        return Cost(**json.loads((self.folder / name / COST).read_text()))
