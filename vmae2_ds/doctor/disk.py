"""The folder of the runs: room for checkpoints, leave to write, and whether its server has the same time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from vmae2_ds.doctor.clock import SKEW_S
from vmae2_ds.doctor.finding import Finding, gib, green, red, yellow
from vmae2_ds.doctor.needs import Needs


def look_at_runs(needs: Needs) -> list[Finding]:
    """The nearest folder that is there of the path of the runs: a small file is written into it and taken away."""
    folder = Path(needs.runs)
    above = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    room = shutil.disk_usage(above)
    wanted = (needs.keep + 1) * needs.checkpoint_bytes
    value = f"{above}: {gib(room.free)} free; {needs.keep} checkpoints kept and one being written take {gib(wanted)}"
    figures = {"folder": str(above), "free_bytes": room.free, "total_bytes": room.total, "needed_bytes": wanted}
    another = "free some space, or --train.runs FOLDER on another disk"
    try:
        skew_s = _skew_s(above)
    except OSError as error:
        return [red("runs_folder", f"{above} cannot be written: {error.strerror}", "--train.runs FOLDER", **figures)]
    if room.free < 2 * needs.checkpoint_bytes:
        return [red("runs_folder", value, another, **figures)]
    if room.free < wanted:
        return [yellow("runs_folder", value, another, **figures)]
    if abs(skew_s) > SKEW_S:
        value = f"{above}: its server's clock is {skew_s:+.0f} s off this host's"
        return [yellow("runs_folder", value, "timedatectl set-ntp true, on both", **figures, skew_s=skew_s)]
    return [green("runs_folder", value, **figures)]


def _skew_s(folder: Path) -> float:
    """Seconds by which the time that a new file gets is ahead of this host's. Raises OSError where none can be written."""
    number, name = tempfile.mkstemp(prefix=".doctor-", dir=folder)
    try:
        os.write(number, b"vmae2 doctor\n")
        os.fsync(number)
        return os.fstat(number).st_mtime - time.time()
    finally:
        os.close(number)
        with contextlib.suppress(OSError):
            os.unlink(name)
