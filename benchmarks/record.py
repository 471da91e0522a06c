"""Rows on disk: what goes with each so that its number can be checked, how they are appended, read back and told apart."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from vmae2_ds.disk import flush_to_disk
from vmae2_ds.json_lines import adding_rows, rows_of
from vmae2_ds.provenance import FLASH_PACKAGES, commit, installed_versions

Row = dict[str, Any]
Key = tuple[str, str, str]

SCHEMA = 2
WHOLE_GROUP = "(whole group)"
"""The variant of a row that tells why a group has no others."""
NO_START = "(start)"
"""The group of a row that tells why a case has no others."""
ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
PACKAGES = ("vmae2_ds", "torch", "deepspeed", *FLASH_PACKAGES, "timm", "transformers", "numpy")


def provenance() -> Row:
    """The part that all rows of one run share."""
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "commit": commit(),
        "code": code_digest(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "threads": torch.get_num_threads(),
            "load": [round(load, 2) for load in os.getloadavg()],
            "platform": platform.platform(),
            "python": platform.python_version(),
            **_gpus(),
        },
        "versions": installed_versions(PACKAGES),
    }


@cache
def code_digest() -> str:
    """12 hex digits over the sources that decide a figure: rows of other code are not taken for this code's."""
    digest = hashlib.sha256()
    package, cases = ROOT.parent / "vmae2_ds", ROOT / "cases"
    policies = ROOT.parent / "ds_configs"
    for path in sorted([*package.rglob("*.py"), *cases.rglob("*.py"), *ROOT.glob("*.py"), *policies.glob("*.json")]):
        digest.update(path.relative_to(ROOT.parent).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _gpus() -> Row:
    """What torch knows of the GPUs of this host; nothing where there are none."""
    if not torch.cuda.is_available():
        return {}
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return {
        "gpus": torch.cuda.device_count(),
        "gpu_memory_gib": round(memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # decides what sdpa takes
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


@cache
def cpu_name() -> str:
    """What the machine calls its processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fingerprint(**settings: Any) -> str:
    """12 hex digits of what a group was measured with: settings, code, CPU, packages; a rerun skips a group with such rows."""
    known = {**settings, "schema": SCHEMA, "code": code_digest(), "cpu": cpu_name()}
    known["versions"] = installed_versions(PACKAGES)
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:12]


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a JSON-lines file, on disk when this returns: an interrupted run keeps what it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with adding_rows(path) as add:
        add(*rows)
    flush_to_disk(path)


def read_rows(folder: Path) -> list[Row]:
    """All rows of a folder's CASE.jsonl files in the order they were written; torn lines are left out."""
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in rows_of(path)]
    return [row for row in rows if row.get("schema") == SCHEMA]


def key_of(row: Row) -> Key:
    """What a row measures: case, group, variant."""
    return row["case"], row["group"], row["variant"]


def current(rows: Iterable[Row]) -> list[Row]:
    """What counts of rows in the order they were written: of each group its last measurement.

    Rows of other code or settings are another measurement. A group that ended its process has no older rows, and once it
    went well it has not failed; so too a case that could not start.
    """
    rows = list(rows)
    last = {(row["case"], row["group"]): row for row in rows}
    last_of_case = {row["case"]: row for row in rows}

    def counts(row: Row) -> bool:
        end = last[row["case"], row["group"]]
        if row["group"] == NO_START and last_of_case[row["case"]]["group"] != NO_START:
            return False
        same_kind = (row["variant"] == WHOLE_GROUP) == (end["variant"] == WHOLE_GROUP)
        return same_kind and row["fingerprint"] == end["fingerprint"]

    return [row for row in newest(rows).values() if counts(row)]


def newest(rows: Iterable[Row]) -> dict[Key, Row]:
    """The last row of each key, in the order in which the keys came up first."""
    return {key_of(row): row for row in rows}
