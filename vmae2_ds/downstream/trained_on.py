"""Which videos of a list a run was trained on, by where their files lie; a copy of a video under another name is another."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache

from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.mixture import Mixture


def trained_on(entries: Iterable[VideoEntry], mixture: Mixture) -> set[str]:
    """Names of those of `entries` whose files the mixture trains on, too; a part of a file counts as the file.

    Paths may be relative; folders may be links, and files links of the same last name. Rows are looked at where their last
    names are alike, as lists are long.
    """
    entries = list(entries)
    last_names = {os.fsencode(os.path.basename(entry.path)) for entry in entries}
    trained = {
        _place(source.manifest[first + row])
        for source in mixture.sources
        for first, paths in source.manifest.path_blocks()
        for row, path in enumerate(paths)
        if os.path.basename(path) in last_names
    }
    return {entry.name for entry in entries if _place(entry) in trained}


def _place(entry: VideoEntry) -> tuple[str, ...]:
    """Where the file is; of a shard's member the shard and the place in it."""
    if entry.shard is None:
        return (_real_file(entry.path),)
    return _real_file(entry.shard), entry.path, str(entry.offset)


def _real_file(path: str) -> str:
    """Folders are asked once: many files lie in one."""
    place = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
    return os.path.realpath(place) if os.path.islink(place) else place


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
