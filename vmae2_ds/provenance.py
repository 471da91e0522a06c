"""Where a run takes place: command, folder, commit, machine and versions, kept in its env.json."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

NO_CODE = ("*.md", "*.jsonl", "*.png", "benchmarks/reports")
"""Files of a checkout that are not code: pages, measured rows and reports of them."""


def environment() -> dict[str, Any]:
    """Command, commit, machine and versions, for the run folder."""
    packages = ("vmae2_ds", "torch", "deepspeed", "decord", "numpy", "torchvision", "flash-attn")
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
    """Version by name of those of `packages` that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Short commit of the checkout that `folder` lies in, `+` where its code has changes; None outside a checkout.

    Pages and measured rows are no code: a benchmark that appends to a tracked file does not spoil its own next row.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = [":(top)", *(f":(top,exclude){path}" for path in NO_CODE)]
        changed = git("status", "--porcelain", "-uno", "--", *code)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
