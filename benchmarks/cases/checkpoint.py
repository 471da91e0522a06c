"""Checkpoints as runs write them: saving, loading and exporting, in seconds and bytes, under 1 to N ranks.

Wall clock, from when all ranks are ready until the last is done. Files lie in a folder beside the rows, so the disk is that
of --out; with several nodes all of them have to see it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.case import Bench, Case, Group
from benchmarks.cases.zero_engine import (
    lost_before,
    meet,
    policies,
    run_config,
    set_up,
    tear_down,
    time_step,
    try_variant,
)
from benchmarks.harness import measured_row, spread
from benchmarks.record import Row
from benchmarks.steps import Precision
from vmae2_ds.checkpoint.host_copies import HostCopies
from vmae2_ds.checkpoint.retention import RetentionRules
from vmae2_ds.checkpoint.save import CheckpointSave, load_checkpoint, save_checkpoint
from vmae2_ds.checkpoint.whole import tag_of
from vmae2_ds.config.ds_config import zero_stage
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.states import WEIGHT_BYTES
from vmae2_ds.dist import Ranks
from vmae2_ds.runs.export import ExportArguments, export_weights

POLICIES = ("zero0", "zero2", "zero3")
"""One for each layout of files: stage 1 writes what stage 2 does, and nothing depends on offload. bf16 has no stage 0."""
OPERATIONS = ("save behind", "save", "load", "load cached", "export safetensors", "export pth")
NOTES: dict[str, dict[str, str]] = {
    "save behind": {"timed": "how long training stands still: the copy to host memory, into that of the save before"},
    "save": {"fsync": "every file, before the checkpoint counts", "page_cache": "written through"},
    "load": {"page_cache": "dropped before (posix_fadvise)"},
    "load cached": {"page_cache": "read just before"},
    "export safetensors": {"fsync": "none", "page_cache": "read just before"},
    "export pth": {"fsync": "none", "page_cache": "read just before"},
}
MOST_ROUNDS = 3
"""Gigabytes a time: more rounds wear the disk and show little."""
SCRATCH = ".checkpoints"
MOMENTS = 8
MASTER = 4
Operation = Callable[[], None]


def groups(bench: Bench) -> Iterator[Group]:
    """By size and precision."""
    for size in bench.options.sizes:
        for precision in bench.options.precisions:
            yield Group(f"{size} {precision} {bench.ranks.size} ranks", partial(measure, bench, size, precision))


def measure(bench: Bench, size: str, precision: Precision) -> list[Row]:
    """For each ZeRO layout: save, behind training and not, load with and without the pages in memory, and both exports.

    `MOST_ROUNDS` times at most.
    """
    assert bench.folder is not None, "the worker names the folder of the rows"
    rounds = min(bench.options.rounds, MOST_ROUNDS)
    found = policies(precision, bench.device, bench.ranks.size)
    failed, rows = lost_before(bench), list[Row]()
    for name in (name for name in POLICIES if name in found):
        config = run_config(size, precision, name, "math", 1, bench.ranks.size)
        call = partial(_measure_policy, bench, config, found[name], bench.folder / SCRATCH, rounds)
        measured = None if name in failed else try_variant(bench, name, call, failed)
        stage = zero_stage(found[name])
        for operation in OPERATIONS:
            about = {
                "size": size, "precision": precision, "policy": name, "stage": stage, "ranks": bench.ranks.size,
                "operation": operation, "folder": "beside the rows", "file_system": file_system_of(bench.folder),
                **NOTES[operation],
            }  # fmt: skip
            samples, size_bytes = measured[operation] if measured else ([], 0)
            row = measured_row(f"{name} {operation}", about, samples, failed.get(name))
            row |= {"clock": "wall", "rounds": rounds, "warmup": 1}
            if samples:
                row |= {"kind": "measured", "values": values_of(config, stage, operation, samples, size_bytes)}
            rows.append(row)
    if bench.ranks.rank == 0:  # a policy that failed has left its files
        shutil.rmtree(bench.folder / SCRATCH, ignore_errors=True)
    return rows


def values_of(
    config: PretrainConfig, stage: int, operation: str, samples_s: list[float], size_bytes: int
) -> dict[str, float]:
    """Bytes of the file or folder, its closed form, bytes for each parameter, and bytes per second of the median."""
    parameters = count_parameters(config.model).total
    expected = export_bytes(parameters) if operation.startswith("export") else shard_bytes(config, stage)
    return {
        "bytes": size_bytes,
        "expected_bytes": expected,
        "bytes_per_parameter": size_bytes / parameters,
        "bytes_per_s": size_bytes / spread(samples_s).median,
    }


def shard_bytes(config: PretrainConfig, stage: int) -> int:
    """A checkpoint of all ranks: Adam's moments, float32 masters, and below stage 3 the weights as they are computed with.

    12 bytes for each parameter at stage 0, whose weights are the masters, and at stage 3, which saves no other weights; 14
    in bf16 and 16 in float32 between. Padding, names and the engine's settings come on top.
    """
    weights = 0 if stage in (0, 3) else WEIGHT_BYTES[config.train.precision]
    return (MOMENTS + MASTER + weights) * count_parameters(config.model).total


def export_bytes(parameters: int) -> int:
    """float32 weights alone."""
    return 4 * parameters


def _measure_policy(
    bench: Bench, config: PretrainConfig, policy: dict[str, Any], scratch: Path, rounds: int
) -> dict[str, tuple[list[float], int]]:
    """Operation -> seconds of each round but the first, and bytes on disk."""
    ranks = bench.ranks
    engine, step = set_up(config, policy, ranks)
    step()  # Adam makes its moments in the first
    _start_over(scratch, config, ranks)
    target, copies = scratch / "ckpt" / tag_of(1), HostCopies()

    def save() -> None:
        save_checkpoint(engine, target.parent, 1, {"step": 1}, ranks, RetentionRules())

    def save_behind() -> None:
        CheckpointSave(engine, target.parent, 1, {"step": 1}, ranks, copies=copies)

    def load() -> None:
        load_checkpoint(engine, target, ranks)

    def export(out: Path) -> None:
        if ranks.rank == 0:
            quiet = io.StringIO()  # DeepSpeed's reader talks, and draws bars
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                export_weights(ExportArguments(source=target, out=out))

    def remove() -> None:
        if ranks.rank == 0:
            shutil.rmtree(target, ignore_errors=True)

    files = {f"export {kind}": scratch / f"weights.{kind}" for kind in ("safetensors", "pth")}
    operations: dict[str, tuple[Operation, Operation]] = {  # what is timed, and what goes before
        "save behind": (save_behind, remove),
        "save": (save, remove),
        "load": (load, partial(drop_from_cache, target)),
        "load cached": (load, lambda: None),
        **{name: (partial(export, path), partial(path.unlink, missing_ok=True)) for name, path in files.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    for number in range(1 + rounds):
        for name in OPERATIONS:
            bench.tell(f"{config.train.ds_config} {name}, {number} of {rounds}")
            operation, before = operations[name]
            before()
            taken = time_step(operation, bench.device, ranks)
            if number:
                seconds[name].append(taken.wall)
    on_disk = {name: bytes_of(files.get(name, target)) for name in OPERATIONS}
    tear_down()
    meet(bench.device, ranks)
    if ranks.rank == 0:
        shutil.rmtree(scratch)
    return {name: (seconds[name], on_disk[name]) for name in OPERATIONS}


def _start_over(scratch: Path, config: PretrainConfig, ranks: Ranks) -> None:
    """A run folder without a checkpoint; what a run that was killed left there goes."""
    if ranks.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "ckpt").mkdir(parents=True)
        (scratch / "run.json").write_text(config.model_dump_json())
    ranks.any(False)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget the pages of a folder's files; they are on disk, so it may. Elsewhere than on Linux: nothing."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def file_system_of(folder: Path) -> str:
    """Kind of the file system that a folder lies on, such as ext4 or lustre."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


CASE = Case(groups, "checkpoints under 1 to N ranks: save, load, export; seconds and bytes", launched=True)
