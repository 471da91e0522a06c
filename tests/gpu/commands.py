"""Commands as a user types them, one after another in this process; `python -m tests.gpu.commands FILE` does so for a list.

What DeepSpeed leaves behind is put back between them, so that each is as it would be in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vmae2_ds.cli.verbs import VERBS

REPOSITORY = Path(__file__).parents[2]
CLIP = "--data.size 32 --data.num-frames 8 --data.workers 2 --model.attention math"
LOOP = "--train.max-steps 4 --train.log-every 1 --train.no-tensorboard --train.peak-flops 1e12"
PRETRAIN = f"pretrain vit_ti_pretrain_desk {CLIP} {LOOP} --data.views 2 --model.encoder.depth 2 --model.decoder.depth 2"
PRETRAIN += " --train.global-batch 8 --train.micro-batch 2"
FINETUNE = f"vit_ti_finetune_desk {CLIP} {LOOP} --data.views 1 --model.encoder.depth 2 --model.drop-path 0"
FINETUNE += " --train.global-batch 4 --train.micro-batch 4 --augment.mixup 0 --augment.cutmix 0"


def run(words: str) -> None:
    """Run one command; raises what it raises."""
    verb, *rest = words.split()
    linear, environment = F.linear, dict(os.environ)
    try:
        VERBS[verb](rest)
    finally:
        F.linear = linear  # stage 3 has one of its own
        os.environ.clear()
        os.environ.update(environment)


def run_on_cpu(lines: Iterable[str], file: Path) -> None:
    """The same commands on this host's CPU: beside a GPU in a process of their own that never sees it."""
    if not torch.cuda.is_available():
        for line in lines:
            run(line)
        return
    file.write_text(json.dumps(list(lines)))
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", "tests.gpu.commands", str(file)], env=env, cwd=REPOSITORY, check=True)


def rows_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a run's file."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.loads(Path(sys.argv[1]).read_text()):
        run(line)
