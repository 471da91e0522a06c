"""Two trainings under `train.deterministic` compute the same bits on a CUDA device, with every kernel that can run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def same_bits_steps(out: Path, size: str, frames: int, pixels: int, clips: int) -> dict[str, list[str]]:
    """Digests of both times by kernel."""
    words = [sys.executable, "-m", "tests.gpu.same_bits_steps", size, *map(str, (frames, pixels, clips)), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.mark.gpu
def test_two_trainings_of_small_have_the_same_bits(tmp_path: Path) -> None:
    """At 160 and 944 tokens, which backward passes split over blocks that would add in any order."""
    found = same_bits_steps(tmp_path / "found.json", "small", 16, 224, 8)
    assert {"math", "sdpa", "efficient"} <= set(found)
    assert "cudnn" not in found
    assert {kernel: first == second for kernel, (first, second) in found.items()} == dict.fromkeys(found, True)


@pytest.mark.slow
def test_the_same_check_on_a_cpu(tmp_path: Path) -> None:
    found = same_bits_steps(tmp_path / "found.json", "tiny", 4, 32, 2)
    assert set(found) == {"math", "by_head", "sdpa"}
    assert all(first == second for first, second in found.values())
