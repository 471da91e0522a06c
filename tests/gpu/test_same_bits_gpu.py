"""Two runs under `train.deterministic` compute the same bits on CUDA; each has a process, as cuBLAS reads its variable once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import tiny_finetuning, tiny_pretraining
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.model.kernel_support import why_not

pytestmark = pytest.mark.gpu
STEPS = 6


def losses(words: list[str], run: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    words = [*words, "--train.deterministic", "--train.log-every", "1", "--train.precision", "bf16"]
    done = subprocess.run([sys.executable, "-m", "vmae2_ds", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    return [(row["loss"], row["grad_norm"]) for row in rows]


@pytest.mark.parametrize("kernel", ["math", "sdpa", "torch_flash", "efficient", "flash", "flash3"])
def test_two_pretrainings_have_the_same_bits(kernel: str, tmp_path: Path) -> None:
    if why := why_not(kernel, torch.bfloat16, 64, torch.device("cuda")):
        pytest.skip(f"{kernel} {why}")
    clips = write_synthetic_set(
        SynthArguments(folder=tmp_path / "clips", train_videos=8, val_videos=1, size=64, frames=16)
    )
    found = []
    for name in ("one", "two"):
        words = tiny_pretraining(clips.train, tmp_path / name, STEPS)
        found.append(losses([*words, "--model.attention", kernel], tmp_path / name))
    assert found[0] == found[1]


def test_two_fine_tunings_have_the_same_bits(tmp_path: Path) -> None:
    clips = write_synthetic_set(
        SynthArguments(folder=tmp_path / "clips", train_videos=12, val_videos=3, size=48, frames=8)
    )
    found = []
    for name in ("one", "two"):
        words = tiny_finetuning(clips.train, tmp_path / name, STEPS)
        found.append(losses([*words, "--model.attention", "sdpa"], tmp_path / name))
    assert found[0] == found[1]
