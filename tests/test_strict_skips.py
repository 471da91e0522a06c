"""A test that is skipped for an unknown reason fails a strict run, wherever the skip comes from; a known one is printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.strict_skips import ALLOWED, read_allowed

REPOSITORY = Path(__file__).parents[1]
CONFTEST = """
from pathlib import Path
import tests.strict_skips
from tests.strict_skips import StrictSkips, read_allowed
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(StrictSkips(read_allowed(Path(__file__).with_name("allowed.txt"))))
"""
PASSES = "def test_passes(): pass\n"
SKIPS = {
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no gramophone')\ndef test_a(): pass\n",
    "call": "import pytest\ndef test_a(): pytest.skip('no gramophone')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('no gramophone')\ndef test_a(f): pass\n",
    "file": "import pytest\npytest.importorskip('gramophone_', reason='no gramophone')\ndef test_a(): pass\n",
}


def run(folder: Path, bodies: dict[str, str], allowed: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "allowed.txt").write_text(allowed)
    for name, body in {**bodies, "other": PASSES}.items():
        (folder / f"test_{name}.py").write_text(body)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={folder}",
        *options,
        str(folder),
    ]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_an_unknown_skip_fails_the_run_and_is_named(options: tuple[str, ...], tmp_path: Path) -> None:
    done = run(tmp_path, SKIPS, "no cylinder -- we have discs\n", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    named = re.search(r"\d NOT ALLOWED: .*no gramophone\n((?:  test_.*\n)+)", done.stdout)
    assert named, done.stdout
    assert re.findall(r"test_([a-z]+)\.py", named[1]) == sorted(SKIPS)


def test_a_known_skip_is_printed_with_why_and_passes(tmp_path: Path) -> None:
    done = run(tmp_path, {"here": SKIPS["mark"]}, "# mine\nno \\S+phone -- we have discs\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 allowed: no gramophone (we have discs)\n  test_here.py::test_a" in done.stdout


def test_a_reason_is_known_as_a_whole_and_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    xfail = "import pytest\n@pytest.mark.xfail(reason='no cylinder')\ndef test_b(): raise ValueError\n"
    done = run(tmp_path, {"here": SKIPS["mark"] + xfail}, "gramophone -- part of it\n")
    assert done.returncode == 1
    assert "1 NOT ALLOWED: no gramophone" in done.stdout
    assert "cylinder" not in done.stdout


def test_each_line_of_the_list_says_why(tmp_path: Path) -> None:
    assert len(read_allowed(ALLOWED)) > 3
    (tmp_path / "list").write_text("no gramophone\n")
    with pytest.raises(pytest.UsageError, match=r"list:1: .*no gramophone"):
        read_allowed(tmp_path / "list")


@pytest.mark.parametrize(
    ("user", "fails", "code", "tried", "said"),
    [
        (0, 0, 0, 1, "ci: installed "),
        (0, 2, 0, 3, "ci: installed "),
        (0, 99, 1, 4, "could not be installed after four tries"),
        (1000, 0, 0, 0, "ci: only root on Debian can install "),
    ],
)
def test_programs_that_are_lacking_are_installed_or_the_run_ends(
    user: int, fails: int, code: int, tried: int, said: str, tmp_path: Path
) -> None:
    """The script as CI runs it, where nothing is installed, with an apt-get that refuses the first tries."""
    programs = {
        "id": f"echo {user}",
        "sleep": "exit 0",
        "apt-get": f'[ "$1" = update ] || exit 0; echo "$@" >>{tmp_path}/tried; [ "$(wc -l <{tmp_path}/tried)" -gt {fails} ]',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "sh", "wc", "mktemp", "tail", "rm"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        ["bash", str(REPOSITORY / ".ci" / "packages")], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    for package in ("pdsh", "chromium", "openmpi-bin", "shellcheck"):
        assert package in done.stdout + done.stderr
    assert (len((tmp_path / "tried").read_text().splitlines()) if tried else 0) == tried
