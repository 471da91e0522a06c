"""Which checkpoints count: folders whose `whole.json` lists every file, with its size and SHA-256, and finds them so.

`declare_whole` writes that list last of all; a folder without it, or with a file that is missing or not what was written,
is passed over.
"""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.disk import sha256_of, write_whole
from vmae2_ds.dist import Ranks

log = logging.getLogger(__name__)
WHOLE = "whole.json"
LATEST = "latest"
ALONE = Ranks()


def tag_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step{step:08d}"


def declare_whole(files: HashedFiles, about: dict[str, Any], ranks: Ranks) -> str | None:
    """Write the list of files that makes a folder count as a whole checkpoint, after all ranks have theirs on disk.

    Returns None, or on all ranks what one of them could not write.
    """
    gathered = ranks.gather((files.written, files.error))

    def declare() -> str | None:
        assert gathered is not None, "rank 0 has them"
        for rank, (_, error) in enumerate(gathered):
            if error is not None:
                return f"{error} (rank {rank})"
        written = {name: found for mine, _ in gathered for name, found in sorted(mine.items())}
        listed = {
            "files": {name: found.size for name, found in written.items()},
            "sha256": {name: found.sha256 for name, found in written.items()},
        }
        try:
            write_whole(files.folder / WHOLE, json.dumps({**about, **listed}, indent=1))
        except OSError as error:
            return str(error)
        return None

    return ranks.from_first(declare)


def find_newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that is whole, or None; torn ones are named in the log and passed over."""
    for target in sorted(folder.glob("step*"), reverse=True):
        reason = why_torn(target)
        if reason is None:
            return target
        log.warning("%s is not whole (%s): passed over", target, reason)
    return None


def why_torn(target: Path, ranks: Ranks = ALONE) -> str | None:
    """None where every listed file is there with its size, else what is wrong.

    `ranks` share the looking: each says what is wrong with its part of the files, which grow in number with the ranks.
    """
    try:
        whole = json.loads((target / WHOLE).read_text())
    except FileNotFoundError:
        return "it was never finished"
    except (OSError, ValueError) as error:
        return f"{WHOLE} cannot be read: {error}"
    for name, size in islice(whole["files"].items(), ranks.rank, None, ranks.size):
        path = target / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {found} bytes instead of {size}" if found is not None else f"{name} is missing"
    return None


def newest_sound(newest: Path, ranks: Ranks) -> Path | None:
    """The newest checkpoint, from `newest` back, of whose files each has the checksum it was written with; None if none.

    The same on all ranks, which share the reading: it takes as long as one rank needs for its part of the bytes. Others are
    named in the log with what is wrong, and passed over.
    """
    older = ranks.from_first(lambda: sorted(newest.parent.glob("step*"), reverse=True))
    listed = [target for target in older if target.name <= newest.name]
    for target in listed:
        reason = ranks.first_said(why_unsound(target, ranks))
        if reason is None:
            return target
        if ranks.rank == 0:
            log.warning("%s is not whole (%s): passed over", target, reason)
    return None


def why_unsound(target: Path, ranks: Ranks) -> str | None:
    """`why_torn`, and the first of this rank's share of the files whose content is not what was written."""
    if reason := why_torn(target, ranks):
        return reason
    whole = json.loads((target / WHOLE).read_text())
    sizes, written = whole["files"], whole.get("sha256", {})
    if not written and ranks.rank == 0:
        log.warning("%s was written before there were checksums: only the sizes of its files are checked", target)
    names = sorted(written, key=lambda name: (-sizes[name], name))
    for name in names[ranks.rank :: ranks.size]:
        try:
            if sha256_of(target / name) != written[name]:
                return f"{name} is not what was written: its SHA-256 differs"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None
