"""The videos of a list, each file once, and where the copy of each goes: never onto another's, nor onto what is read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.data.tools.division import Distinct, Ints
from vmae2_ds.errors import ConfigError


class Copies:
    """Copies by number: names of one file share a copy, and two files never share a target.

    The tree below the root is kept; what lies elsewhere goes into a folder named by a hash of where.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._names = Distinct(entry.name for entry in manifest)
        rows = self._names.first
        self._targets = Distinct(_target(manifest[int(row)], manifest.root) for row in rows)
        of_name, firsts = self._targets.of_place.copy(), self._targets.first
        self._moved: dict[int, str] = {}
        apart: list[int] = []
        many = np.bincount(of_name) > 1
        for name in np.flatnonzero(many[of_name]).tolist():  # x.avi becomes x.avi.mp4, which may be there too
            one, other = manifest[int(rows[firsts[of_name[name]]])], manifest[int(rows[name])]
            if one.name != other.name and not _is_same_file(one, other):
                of_name[name] = len(firsts) + len(apart)
                self._moved[int(of_name[name])] = _elsewhere(other)
                apart.append(name)
        self._of_name: Ints = of_name
        self._rows: Ints = rows[np.concatenate((firsts, np.array(apart, np.int64)))]
        self._number_of_moved = {target: number for number, target in self._moved.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def source(self, number: int) -> VideoEntry:
        """The video that is copied."""
        return self._manifest[int(self._rows[number])]

    def target(self, number: int) -> str:
        """Where its copy goes, relative to the folder."""
        return self._moved.get(number) or _target(self.source(number), self._manifest.root)

    def of_row(self, row: int) -> int:
        """The number of the copy that a row of the list is read from."""
        return int(self._of_name[self._names.of_place[row]])

    def number_of(self, target: str) -> int | None:
        """The number of the copy with that target."""
        moved = self._number_of_moved.get(target)
        return self._targets.number_of(target) if moved is None else moved

    def number_of_name(self, name: str) -> int | None:
        """The number of the copy of a video that the list has under this name (`VideoEntry.name`)."""
        place = self._names.number_of(name)
        return None if place is None else int(self._of_name[place])

    def place(self, number: int) -> str:
        """The file that holds the video."""
        source = self.source(number)
        return source.shard or source.path

    def costs(self, seen: NDArray[np.void]) -> Ints:
        """What each costs, in bytes to read."""
        if not self._manifest.is_packed:
            return np.asarray(seen["size"], np.int64)
        return np.array([self.source(number).size for number in range(len(self))], np.int64)


def refuse_sources(copies: Copies, mine: Ints, seen: NDArray[np.void], out: Path) -> None:
    """Raises ConfigError where a copy of `mine` would replace a video that is read, under whatever name.

    Args:
        seen: What the file system says of all sources.
    """
    inodes = np.sort(seen["inode"])
    for number in mine.tolist():
        target = out / copies.target(number)
        try:
            status = os.stat(target)
        except (OSError, ValueError):
            continue
        at = np.searchsorted(inodes, status.st_ino)
        if at == len(inodes) or inodes[at] != status.st_ino:
            continue
        same = (seen["inode"] == status.st_ino) & (seen["device"] == status.st_dev)
        for other in np.flatnonzero(same).tolist():
            raise ConfigError(f"{target} is {copies.source(other).name}, which is read; name another --out")


def _is_same_file(one: VideoEntry, other: VideoEntry) -> bool:
    try:
        return one.shard is None and other.shard is None and os.path.samefile(one.path, other.path)
    except OSError:
        return False


def _target(entry: VideoEntry, root: str) -> str:
    inside = os.path.relpath(entry.path, root) if entry.shard is None and "://" not in entry.path else entry.path
    if entry.shard is not None or inside.startswith("..") or os.path.isabs(inside) or "://" in inside:
        return _elsewhere(entry)
    # the old suffix stays in front of the new one: a.avi and a.mp4 do not become one file
    return inside if inside.endswith(".mp4") else f"{inside}.mp4"


def _elsewhere(entry: VideoEntry) -> str:
    where = hashlib.sha256(os.fsencode(entry.name)).hexdigest()[:16]
    name = os.path.basename(entry.path)
    return os.path.join("elsewhere", where, name if name.endswith(".mp4") else f"{name}.mp4")
