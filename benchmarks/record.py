"""What goes with every row so that the number can be checked: command, commit, machine, versions; and the files of rows."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from vmae2_ds.train.runs import commit, installed_versions

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("vmae2_ds", "torch", "timm", "transformers", "numpy")


def provenance() -> dict[str, Any]:
    """The part that all rows of one run share."""
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "threads": torch.get_num_threads(),
            "load": [round(load, 2) for load in os.getloadavg()],
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": installed_versions(PACKAGES),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file, on disk when this returns: an interrupted run keeps what it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
