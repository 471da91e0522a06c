"""NVIDIA's driver, as its own tool and the kernel have it: before torch, which cannot say why it sees no GPU."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from vmae2_ds.doctor.ask import ask
from vmae2_ds.doctor.finding import Finding, green, red, yellow
from vmae2_ds.doctor.needs import Needs

LIMIT_S = 8.0
KERNEL = Path("/proc/driver/nvidia")
FIELDS = ("index", "name", "driver_version", "memory.total", "memory.used", "temperature.gpu")
QUERY = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
BUSY_MIB = 1024
"""More than a driver and an idle context hold on a GPU."""


def count_gpus(env: Mapping[str, str] = os.environ, kernel: Path = KERNEL) -> int:
    """GPUs of this host that a run may use, as files tell it; 0 without NVIDIA's driver."""
    here = len(list((kernel / "gpus").glob("*")))
    visible = env.get("CUDA_VISIBLE_DEVICES")
    return here if visible is None or not here else min(here, len([one for one in visible.split(",") if one.strip()]))


def look_at_driver(needs: Needs, kernel: Path = KERNEL) -> list[Finding]:
    """The driver's version, and which GPUs have something on them already."""
    del needs
    loaded = _kernel_version(kernel)
    answer = ask(QUERY, LIMIT_S)
    if answer is None:
        if loaded is None:
            return [green("driver", "no NVIDIA driver here", version=None, gpus=[])]
        return [green("driver", f"{loaded}; nvidia-smi is not here", version=loaded, gpus=[])]
    if answer.code is None:
        value = f"nvidia-smi did not answer within {LIMIT_S:g} s: a GPU or its driver hangs"
        return [red("driver", value, "dmesg | grep -i -e xid -e nvrm; restart this host", version=loaded, gpus=[])]
    if answer.code:
        said = (answer.out or answer.err).strip().splitlines() or [f"exit code {answer.code}"]
        remedy = "sudo modprobe nvidia, or restart this host; in a container: docker run --gpus all"
        return [red("driver", f"nvidia-smi: {said[0]}", remedy, version=loaded, gpus=[])]
    rows = [dict(zip(FIELDS, map(str.strip, line.split(",")), strict=False)) for line in answer.out.splitlines()]
    version = rows[0].get("driver_version", "") if rows else loaded
    busy = [row for row in rows if _number(row.get("memory.used", "")) > BUSY_MIB]
    value = f"{version}; {', '.join(_told(row) for row in rows)}"
    figures = {"version": version, "gpus": rows}
    if busy:
        numbers = ", ".join(row["index"] for row in busy)
        remedy = f"nvidia-smi pmon -c 1 shows whose; end it, or CUDA_VISIBLE_DEVICES without {numbers}"
        return [yellow("driver", f"{value}: something runs on GPU {numbers}", remedy, **figures)]
    return [green("driver", value, **figures)]


def _told(row: Mapping[str, str]) -> str:
    used, total = (_number(row.get(f"memory.{which}", "")) / 1024 for which in ("used", "total"))
    return (
        f"GPU {row.get('index')} {row.get('name')}, {used:.1f} of {total:.1f} GiB used, {row.get('temperature.gpu')} C"
    )


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def _kernel_version(kernel: Path) -> str | None:
    try:
        found = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", (kernel / "version").read_text())
    except OSError:
        return None
    return found[1] if found else "of unknown version"
