"""Which videos of a list are held back from training: a function of their paths alone, so that it stays when others come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.errors import DataError


def is_held_back(manifest: Manifest, share: float, by: str) -> np.ndarray:
    """For each row a bool: whether BLAKE2b of what it is held back by, as a number from 0 to 1, is below `share`.

    `by`: video, the path as the list has it (so the parts of one file stay together); folder, what stands before its last
    slash; or a regular expression, the part of the path that it matches, its first group if it has one.

    Raises DataError for a path in which the expression finds nothing.
    """
    name_of = _named(manifest.file, by)
    limit = int(share * 2**64)
    is_held = np.zeros(len(manifest), dtype=bool)
    for first, paths in manifest.path_blocks():
        is_held[first : first + len(paths)] = [_number(name_of(path)) < limit for path in paths]
    return is_held


def number_of(path: str, start: int) -> int:
    """A number of 64 bits for a part of a video, the same in every list that has it."""
    return _number(b"%s %d" % (os.fsencode(path), start))


def _number(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


def _named(file: str, by: str) -> Callable[[bytes], bytes]:
    if by == "video":
        return lambda path: path
    if by == "folder":
        return os.path.dirname
    pattern = re.compile(by)

    def matched(path: bytes) -> bytes:
        found = pattern.search(os.fsdecode(path))
        if found is None:
            raise DataError(
                f"{file}: --data.hold-back-by {by!r} finds nothing in the path {os.fsdecode(path)!r}; it has to say of every "
                "video what it is held back with"
            )
        return os.fsencode(found[1 if pattern.groups else 0] or "")

    return matched
