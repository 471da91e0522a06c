"""Where a run takes place: command, folder, commit, machine and versions, kept in its env.json."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import vmae2_ds

COMMIT = "VMAE2_COMMIT"
"""Environment variable that names the commit of a copy of the code that came without its .git."""
FLASH_PACKAGES = ("flash-attn", "flash-attn-3", "flash-attn-4")
"""The packages behind attention kernels flash, flash3 and flash4."""
NO_CODE = ("*.md", "*.jsonl", "*.png", "benchmarks/reports")
"""Files of a checkout that are not code: pages, measured rows and reports of them."""


def environment() -> dict[str, Any]:
    """Command, commit, machine and versions, for the run folder."""
    packages = ("vmae2_ds", "torch", "deepspeed", "decord", "numpy", "torchvision", *FLASH_PACKAGES)
    return {
        "command": sys.argv,
        "cwd": str(Path.cwd()),
        "commit": commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions(packages),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Version by name of those of `packages` that are installed; of this one also where it only lies on PYTHONPATH."""
    versions = {}
    for name in packages:
        try:
            versions[name] = vmae2_ds.__version__ if name == "vmae2_ds" else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def is_found(package: str) -> bool:
    """Whether Python knows where a top-level package is; it is not imported.

    A folder of the name without code, such as the one that W&B makes for its runs, is none.
    """
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # something put a half-made module of the name into sys.modules
        return False
    return found is not None and found.origin is not None


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Short commit of the checkout that `folder` lies in, `+` where its code has changes.

    Outside a checkout it is what the environment variable VMAE2_COMMIT says, and None where that is not set.
    Pages and measured rows are no code: a benchmark that appends to a tracked file does not spoil its own next row.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # a copy that lies inside another repository is not that one's code
        code = [":(top)", *(f":(top,exclude){path}" for path in NO_CODE)]
        changed = git("status", "--porcelain", "-uno", "--", *code)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT) or None
