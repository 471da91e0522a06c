"""What one test may do to the next: `-m gpu` alone uses a GPU, and no environment is left behind. Sessions in children."""

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
    session = run_session(tmp_path, "-p", "stand_in_gpu", "-m", marks, f"test_where.py::{test}")
    assert session.returncode == 0, session.stdout + session.stderr
    assert "1 passed" in session.stdout


LEAVES = """
import os
import pytest

@pytest.fixture(scope="module")
def ran():
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}

def test_is_a_rank(ran):
    assert os.environ["RANK"] == "0"
"""
FINDS = """
import os

def test_is_no_rank():
    assert "RANK" not in os.environ
"""


def test_what_a_fixture_of_a_file_puts_into_the_environment_goes_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(LEAVES)
    (tmp_path / "test_b.py").write_text(FINDS)
    session = run_session(tmp_path, "test_a.py", "test_b.py")
    assert "2 passed" in session.stdout, session.stdout + session.stderr


def run_session(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A session of its own in a folder of tests, with this project's conftest and settings."""
    hidden = "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "CI", "RANK", "WORLD_SIZE"
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    settings = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(REPOSITORY / "pyproject.toml")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *settings, *words],
        cwd=folder,
        env={**env, "PYTHONPATH": f"{REPOSITORY}:{folder}"},
        capture_output=True,
        text=True,
    )
