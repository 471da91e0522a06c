"""What a rank is and has, and what differs between ranks: pure comparison, told by host."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

import vmae2_ds
from vmae2_ds.config.run import RunConfig
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.dist import default_device
from vmae2_ds.provenance import FLASH_PACKAGES, installed_versions

MUST_AGREE = ("vmae2_ds", "torch", "deepspeed", "numpy", "cuda", "nccl")
"""Versions without which ranks compute different things, or do not understand each other."""
MAY_DIFFER = ("python", "torchvision", "timm", "av", "decord", "torchcodec", "cudnn", *FLASH_PACKAGES)
"""Versions that are warned of."""
CLOCK_TOLERANCE_S = 5.0
MEMORY_TOLERANCE = 0.8
"""Free memory below this share of the median is told: that rank is the first to run out."""
NAMED = 4
"""Keys, values and hosts that a message names before it counts the rest."""


@dataclass(frozen=True)
class RankReport:
    """One rank; its number is its place in a sequence of them."""

    host: str
    pid: int
    device: str
    free_gib: float
    sees_folder: bool
    code: dict[str, str]
    """File of the package -> start of its SHA-256."""
    versions: dict[str, str]
    settings: dict[str, str]
    lists: dict[str, str]
    """What decides which video is which, and how the model is split: list or policy -> its content."""
    error: str | None = None
    """Why this rank cannot open the videos, or cannot write beside the run folder."""


def report_of(config: RunConfig, inputs: Inputs | None, *, sees_folder: bool, error: str | None = None) -> RankReport:
    """This rank's report; `inputs` is None where a file could not be read."""
    device = default_device()
    if device.type == "cuda":
        name, free = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
    else:
        name, free = f"CPU, {platform.machine()}, {os.cpu_count()} cores", psutil.virtual_memory().available
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if device.type == "cuda" else "none"
    cudnn = str(torch.backends.cudnn.version()) if device.type == "cuda" else "none"
    return RankReport(
        host=platform.node(),
        pid=os.getpid(),
        device=name,
        free_gib=round(free / 2**30, 2),
        sees_folder=sees_folder,
        code=code_digests(),
        versions={
            **installed_versions(sorted({*MUST_AGREE, *MAY_DIFFER})),
            "python": platform.python_version(),
            "cuda": str(torch.version.cuda),
            "nccl": nccl,
            "cudnn": cudnn,
        },
        settings=dict(_flat(config.model_dump(mode="json"))),
        lists=_lists(config, inputs) if error is None and inputs is not None else {},
        error=error,
    )


def code_digests(folder: Path = Path(vmae2_ds.__file__).parent) -> dict[str, str]:
    """The package's files as they lie on this host's disk, whatever commit they are said to be of."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".json", ".toml"))
    return {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in files}


def _lists(config: RunConfig, inputs: Inputs) -> dict[str, str]:
    lists = {}
    for source in inputs.mixture.sources:
        manifest = source.manifest
        mixed = _digest(repr(source._replace(manifest=None)).encode())  # type: ignore[arg-type]
        lists[manifest.file] = f"{len(manifest)} videos, sha256 {manifest.rows.digest[:8]}, mixed as {mixed}"
    if inputs.validation is not None:
        lists[inputs.validation.file] = f"sha256 {inputs.validation.rows.digest[:8]}"
    if inputs.names is not None:
        lists[str(inputs.names.file)] = f"sha256 {inputs.names.digest[:8]}"
    policy = repr(sorted(_flat(inputs.policy)))
    return {**lists, f"--train.ds-config {config.train.ds_config}": f"sha256 {_digest(policy.encode())}"}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _flat(section: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


# --- comparison ------------------------------------------------------------------------------------------------------


def problems_of(reports: Sequence[RankReport]) -> list[str]:
    """What keeps these ranks from training together, each with the hosts and a way out; empty where nothing does."""
    problems = []
    failed: dict[str, list[int]] = defaultdict(list)
    for rank, report in enumerate(reports):
        if report.error is not None:
            failed[report.error].append(rank)
    for error, ranks in failed.items():
        problems.append(error if len(ranks) == len(reports) else f"on {name_ranks(reports, ranks)}: {error}")
    if blind := [rank for rank, report in enumerate(reports) if not report.sees_folder]:
        problems.append(
            f"{name_ranks(reports, blind)} cannot see what {reports[0].host} (rank 0) writes beside the run folder; "
            "set --train.run or --train.runs to a folder that every host mounts"
        )
    able = [rank for rank, report in enumerate(reports) if report.error is None]
    versions = [{name: report.versions.get(name, "none") for name in MUST_AGREE} for report in reports]
    everyone = list(range(len(reports)))
    for what, tables, compared, way_out in (
        ("vmae2_ds's files", [r.code for r in reports], everyone, "install the same vmae2_ds on every host"),
        ("versions", versions, everyone, "install the same versions on every host (constraints.txt)"),
        ("settings", [r.settings for r in reports], everyone, "give every rank the same command line"),
        ("lists", [r.lists for r in reports], able, "give every host the same files"),
    ):
        if told := _differences(reports, tables, compared):
            problems.append(f"{what} differ between ranks: {told}; {way_out}")
    return problems


def warnings_of(reports: Sequence[RankReport], offsets_s: Sequence[float]) -> list[str]:
    """What is odd, a line each: clocks, memory, devices, versions."""
    warnings = []
    off = [rank for rank, offset in enumerate(offsets_s) if abs(offset) > CLOCK_TOLERANCE_S]
    if off:
        worst = max((offsets_s[rank] for rank in off), key=abs)
        warnings.append(
            f"the clock of {name_ranks(reports, off)} is off by up to {worst:+.0f} s from {reports[0].host} (rank 0): times "
            "in logs do not match; set it by NTP"
        )
    usual = statistics.median(report.free_gib for report in reports)
    if low := [rank for rank, report in enumerate(reports) if report.free_gib < MEMORY_TOLERANCE * usual]:
        least = min(reports[rank].free_gib for rank in low)
        warnings.append(
            f"{name_ranks(reports, low)} has {least:.1f} GiB free where others have {usual:.1f}: it runs out of memory first; "
            "look for what else runs there"
        )
    everyone = range(len(reports))
    for what, tables in (
        ("devices differ, and the slowest sets the pace", [{"device": report.device} for report in reports]),
        ("versions differ", [{name: r.versions.get(name, "none") for name in MAY_DIFFER} for r in reports]),
    ):
        if told := _differences(reports, tables, everyone):
            warnings.append(f"{what}: {told}")
    return warnings


def host_table(reports: Sequence[RankReport], offsets_s: Sequence[float]) -> list[dict[str, Any]]:
    """A dict a host, in the order of ranks: what env.json keeps and the log shows."""
    rows = []
    for host, ranks in _by_host(reports, range(len(reports))).items():
        own = [reports[rank] for rank in ranks]
        rows.append(
            {
                "host": host,
                "ranks": ranks,
                "pids": [report.pid for report in own],
                "device": " / ".join(dict.fromkeys(report.device for report in own)),
                "free_gib": min(report.free_gib for report in own),
                "clock_s": max((round(offsets_s[rank], 3) for rank in ranks), key=abs),
            }
        )
    return rows


def describe_host(row: dict[str, Any]) -> str:
    """A row of the table as a line of the log."""
    return (
        f"host {row['host']}: {'ranks' if len(row['ranks']) > 1 else 'rank'} {_spans(row['ranks'])}, "
        f"{len(row['ranks'])} x {row['device']}, "
        f"{row['free_gib']:.1f} GiB free, clock {row['clock_s']:+.2f} s"
    )


def name_ranks(reports: Sequence[RankReport], ranks: Sequence[int]) -> str:
    """`w2, w3 and 5 more hosts`; with the ranks where some ranks of a host are not meant, or there is one host."""
    everyone = _by_host(reports, range(len(reports)))
    meant = _by_host(reports, ranks)
    names = [
        host if len(own) == len(everyone[host]) and len(everyone) > 1 else f"{host} (rank {_spans(own)})"
        for host, own in meant.items()
    ]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more hosts" if len(names) > NAMED else "")


def _by_host(reports: Sequence[RankReport], ranks: Iterable[int]) -> dict[str, list[int]]:
    hosts: dict[str, list[int]] = defaultdict(list)
    for rank in ranks:
        hosts[reports[rank].host].append(rank)
    return dict(hosts)


def _spans(ranks: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> 0-2,5."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _differences(reports: Sequence[RankReport], tables: Sequence[dict[str, str]], ranks: Iterable[int]) -> str:
    """`train/loop.py is 1a2b on w1, 3c4d on w2` for the first few keys that differ; empty where none does."""
    alike: dict[int, list[int]] = defaultdict(list)  # ranks by the table that they share
    for rank in ranks:
        alike[id(tables[rank])].append(rank)
    groups = list(alike.values())
    keys = dict.fromkeys(key for own in groups for key in tables[own[0]])
    differing = [key for key in keys if len({tables[own[0]].get(key, "missing") for own in groups}) > 1]
    told = []
    for key in differing[:NAMED]:
        holders: dict[str, list[int]] = defaultdict(list)
        for own in groups:
            holders[tables[own[0]].get(key, "missing")] += own
        first = sorted(holders.items(), key=lambda item: -len(item[1]))[:NAMED]
        told.append(f"{key} is " + ", ".join(f"{value} on {name_ranks(reports, sorted(own))}" for value, own in first))
    more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    return "; ".join(told) + more
