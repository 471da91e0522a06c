"""A machine to which a tree was copied: nothing of this project is installed, PYTHONPATH alone names the copy.

The interpreter is a fresh environment without packages; the others come from a folder of links to those of this environment,
without vmae2_ds and without what a test hides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class BareMachine(NamedTuple):
    """Where to run commands, and with what."""

    python: Path
    tree: Path
    environment: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin `python WORDS` in a folder that is not the tree, which the current folder would put on the path."""
        command, pipe = [str(self.python), *words], subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.python.parent, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        begun = self.start(*words)
        out, complaint = begun.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(words, begun.returncode, out, complaint)


def make_bare_machine(folder: Path, hidden: Collection[str] = ()) -> BareMachine:
    """The tracked files as they are now, without .git; `hidden` names top modules and distributions that are not there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing tells which files to copy")
    tree, site = folder / "tree", folder / "site"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("docs/", "benchmarks/results/", "benchmarks/reports/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    site.mkdir()
    left_out = ("vmae2_ds", "__editable__", *hidden)
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.replace("-", "_").startswith(left_out):
            (site / package.name).symlink_to(package)
    venv.create(folder / "python", with_pip=False, symlinks=True)
    bin_folder = folder / "python" / "bin"
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "VMAE2_COMMIT")}
    path = {"PATH": f"{bin_folder}:/usr/bin:/bin", "PYTHONPATH": f"{tree}:{site}"}
    return BareMachine(bin_folder / "python", tree, {**kept, **path})
