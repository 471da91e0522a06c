"""On a machine with a GPU only `-m gpu` uses it: seen by a session in a child, where torch says that there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import asks_for_a_device

REPOSITORY = Path(__file__).parents[1]
PLUGIN = """
import torch
torch.cuda.is_available = lambda: True
"""
TESTS = """
import os
import pytest
from vmae2_ds.dist import default_device

def told():
    return default_device().type, os.environ.get("DS_ACCELERATOR"), os.environ.get("CUDA_VISIBLE_DEVICES")

def test_plain():
    assert told() == ("cpu", "cpu", "")

@pytest.mark.gpu
def test_marked():
    assert told() == ("cuda", None, None)
"""


@pytest.mark.parametrize(
    ("marks", "asks"), [("", 0), ("not gpu", 0), ("not slow", 0), ("slow", 0), ("gpu", 1), ("gpu and not slow", 1)]
)
def test_marks_that_choose_nothing_else_ask_for_a_gpu(marks: str, asks: bool) -> None:
    assert asks_for_a_device(marks) == asks


@pytest.mark.parametrize(("marks", "test"), [("not slow", "test_plain"), ("gpu", "test_marked")])
def test_only_a_session_that_asks_for_a_gpu_uses_it(tmp_path: Path, marks: str, test: str) -> None:
    (tmp_path / "stand_in_gpu.py").write_text(PLUGIN)
    (tmp_path / "test_where.py").write_text(TESTS)
    hidden = "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "CI"
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    words = ["-m", "pytest", "-q", "-p", "tests.conftest", "-p", "stand_in_gpu", "-p", "no:cacheprovider", "-c"]
    session = subprocess.run(
        [sys.executable, *words, str(REPOSITORY / "pyproject.toml"), "-m", marks, f"test_where.py::{test}"],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert session.returncode == 0, session.stdout + session.stderr
    assert "1 passed" in session.stdout
