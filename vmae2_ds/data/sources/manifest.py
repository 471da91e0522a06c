"""The videos of a list by row number: rows of fixed size in memory, or in an indexed folder that nobody has to load."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vmae2_ds.console.progress import Ticker
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.list_formats import PLAIN_LIST, ListedVideo, ListForm, read_list
from vmae2_ds.disk import sha256_of, whole_file, write_whole
from vmae2_ds.errors import ConfigError, DataError

log = logging.getLogger(__name__)

DEFAULT_SOURCE = "default"
"""Source of videos whose manifest names none."""
INDEX = "index.json"
"""What makes a folder an indexed manifest; beside it lie `rows.bin` and `paths.bin`. Written last."""

_ROW = struct.Struct("<QHiHiiiqq")
_COLUMNS = np.dtype(
    {
        "names": ["begin", "length", "label"],
        "formats": ["<u8", "<u2", "<i4"],
        "offsets": [0, 8, 10],
        "itemsize": _ROW.size,
    }
)
"""One row, 44 bytes: offset and length of the path; label, source code, start, frames; shard code, offset, size."""
_NONE = -1  # "no label", "to the end" and "no shard" inside the rows
_MAX_PATH = _MAX_SOURCES = 2**16 - 1
TOLD_ROWS = 10_000
_FILES_LOOKED_AT = 8  # at reading; a scan of millions of files is not a reader's job


class ManifestRows(NamedTuple):
    """What a list's rows refer to besides numbers."""

    videos: int
    sources: tuple[str, ...]
    """Source names, by code."""
    shards: tuple[str, ...]
    digest: str
    """SHA-256 of the list's bytes, in hex: an index has that of the list it was made from."""


class _Bytes(Protocol):
    """Bytes that can be cut: in memory, or read from a file as they are asked for."""

    def __getitem__(self, part: slice) -> bytes: ...


@dataclass(frozen=True)
class Manifest:
    """Videos by row number: `manifest[i]` is a `VideoEntry`. About 44 bytes a row plus its path, or none if indexed."""

    file: str
    root: str
    """Folder that relative paths start from."""
    rows: ManifestRows
    _table: _Bytes
    _paths: _Bytes

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that occur."""
        return self.rows.sources

    @property
    def is_packed(self) -> bool:
        """True where the videos lie in tar shards."""
        return bool(self.rows.shards)

    def __len__(self) -> int:
        return self.rows.videos

    def __iter__(self) -> Iterator[VideoEntry]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> VideoEntry:
        video = self.listed(row)
        return VideoEntry(
            path=video.path if video.shard is not None else _join(self.root, video.path),
            label=video.label,
            source=video.source or DEFAULT_SOURCE,
            start=video.start,
            frames=video.frames,
            shard=None if video.shard is None else _join(self.root, video.shard),
            offset=video.offset,
            size=video.size,
        )

    def part(self, is_in: np.ndarray) -> Manifest:
        """The videos at which `is_in`, a bool for each row, is true; its digest stays that of the list."""
        chosen = np.flatnonzero(is_in)
        rows = self.rows._replace(videos=len(chosen))
        return _PartOfManifest(self.file, self.root, rows, self._table, self._paths, self, chosen)

    def label_blocks(self, rows: int = 100_000) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, its and the following rows' labels), block by block; -1 stands for none."""
        for first, block in self._blocks(rows):
            yield first, block["label"]

    def path_blocks(self, rows: int = 100_000) -> Iterator[tuple[int, list[bytes]]]:
        """(first row, its and the following rows' paths as the list has them), block by block."""
        for first, block in self._blocks(rows):
            ends = np.stack([block["begin"], block["begin"] + block["length"]], axis=1)
            low, high = int(ends.min()), int(ends.max())
            paths = self._paths[low:high]
            yield first, [paths[begin:end] for begin, end in (ends - low).tolist()]

    def _blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, _COLUMNS of it and the following rows), block by block."""
        for first in range(0, len(self), rows):
            block = self._table[first * _ROW.size : min(first + rows, len(self)) * _ROW.size]
            yield first, np.frombuffer(block, _COLUMNS)

    def listed(self, row: int) -> ListedVideo:
        """The row as the list has it: paths as they were written."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a manifest of {len(self)}")
        begin, length, label, source, start, frames, shard, offset, size = _ROW.unpack(
            self._table[row * _ROW.size : (row + 1) * _ROW.size]
        )
        return ListedVideo(
            path=os.fsdecode(self._paths[begin : begin + length]),
            label=None if label == _NONE else label,
            source=self.sources[source],
            start=start,
            frames=None if frames == _NONE else frames,
            shard=None if shard == _NONE else self.rows.shards[shard],
            offset=offset,
            size=size,
        )


@dataclass(frozen=True)
class _PartOfManifest(Manifest):
    """Some rows of a list."""

    _whole: Manifest
    _chosen: np.ndarray = field(compare=False)
    """Numbers of the rows in the whole list, ascending."""

    def listed(self, row: int) -> ListedVideo:
        """The row as the list has it: paths as they were written."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} of a manifest")
        return self._whole.listed(int(self._chosen[row]))

    def _blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        first = 0
        for begin, block in self._whole._blocks(rows):
            at = self._chosen[np.searchsorted(self._chosen, begin) : np.searchsorted(self._chosen, begin + len(block))]
            if len(at):
                yield first, block[at - begin]
            first += len(at)


def read_manifest(path: str | Path, root: str | Path | None = None, *, form: ListForm = PLAIN_LIST) -> Manifest:
    """Read a list of videos, or open an indexed one; relative paths start from `root`, by default the list's folder.

    An index was made with a form of its own, and has numbers for labels.

    Raises DataError, naming file and line, for anything it cannot take literally, and where none of the first few
    videos exists (a wrong root). A single missing video is left to the loader, which skips, counts and names it.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        manifest = _open_index(path, root)
    else:
        table, paths = bytearray(), bytearray()
        digest = hashlib.sha256()
        rows = _write_rows(path, read_list(path, form, digest), digest, table.extend, paths.extend)
        where = str(path.parent if root is None else root)
        manifest = Manifest(str(path), where, rows, bytes(table), bytes(paths))
    _refuse_wrong_root(manifest)
    return manifest


def manifest_of(file: Path, root: Path, videos: Iterable[ListedVideo], content: str) -> Manifest:
    """The list of these videos, which something else than a list names: `file`, with `content` for what it says of them."""
    table, paths = bytearray(), bytearray()
    rows = _write_rows(file, videos, hashlib.sha256(content.encode()), table.extend, paths.extend)
    return Manifest(str(file), str(root), rows, bytes(table), bytes(paths))


def manifest_digest(path: str | Path) -> str | None:
    """SHA-256, in hex, of the list that `path` is, or was indexed from; None where there is none."""
    path = Path(path)
    if (path / INDEX).is_file():
        return str(_read_index(path)["digest"])
    return sha256_of(path) if path.is_file() else None


def _join(root: str, path: str) -> str:
    return path if "://" in path else os.path.join(root, path)


def _write_rows(
    path: Path,
    videos: Iterable[ListedVideo],
    digest: hashlib._Hash,
    add_row: Callable[[bytes], Any],
    add_path: Callable[[bytes], Any],
) -> ManifestRows:
    """Pack the rows of a list one by one into two sinks; `digest` has the list's bytes once all of them are read."""
    sources: dict[str, int] = {}
    shards: dict[str, int] = {}
    count = end = 0
    ticker = Ticker(log, f"rows of {path} read", None, draws=False)
    for video in videos:
        name = os.fsencode(video.path)
        if len(name) > _MAX_PATH:
            raise DataError(
                f"{path}: the path of video {count + 1} has {len(name)} bytes; at most {_MAX_PATH} are taken"
            )
        source = sources.setdefault(video.source or DEFAULT_SOURCE, len(sources))
        if source == _MAX_SOURCES:
            raise DataError(f"{path}: more than {_MAX_SOURCES} sources, at video {count + 1}; is 'source' the path?")
        add_path(name)
        add_row(
            _ROW.pack(
                end,
                len(name),
                _NONE if video.label is None else video.label,
                source,
                video.start,
                _NONE if video.frames is None else video.frames,
                _NONE if video.shard is None else shards.setdefault(video.shard, len(shards)),
                video.offset,
                video.size,
            )
        )
        end += len(name)
        count += 1
        if not count % TOLD_ROWS:
            ticker.tell(count)
    if not count:
        raise DataError(f"{path}: the manifest lists no videos; it needs a header line with 'path' and a line a video")
    return ManifestRows(count, tuple(sources), tuple(shards), digest.hexdigest())


def _refuse_wrong_root(manifest: Manifest) -> None:
    looked_at = (manifest[row] for row in range(min(_FILES_LOOKED_AT, len(manifest))))
    tried = [entry.path if entry.shard is None else entry.shard for entry in looked_at]
    if not any("://" in path or os.path.exists(path) for path in tried):
        raise DataError(
            f"{manifest.file}: none of its first {len(tried)} videos exists, for example {tried[0]!r}; "
            f"relative paths start from {manifest.root!r}: set --data.root to the folder they belong to"
        )


# --- the indexed folder ----------------------------------------------------------------------------------------------


class _FileBytes:
    """Parts of a file, read as they are asked for: nothing of it counts as this process's memory, forks share it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def __getitem__(self, part: slice) -> bytes:
        return os.pread(self._file.fileno(), part.stop - part.start, part.start)


def write_index(path: Path, out: Path, root: Path | None = None, *, form: ListForm = PLAIN_LIST) -> ManifestRows:
    """Turn the list `path` into the folder `out`, which `read_manifest` opens at once however many rows it has.

    Raises DataError as `read_manifest` does; a folder without `index.json` is no manifest, so half of one is never read.
    Who has an earlier index open goes on reading it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "rows.bin") as rows_part, whole_file(out / "paths.bin") as paths_part:
        with rows_part.open("wb") as table, paths_part.open("wb") as paths:
            digest = hashlib.sha256()
            rows = _write_rows(path, read_list(path, form, digest), digest, table.write, paths.write)
            sizes = {"rows_bytes": table.tell(), "paths_bytes": paths.tell()}
        (out / INDEX).unlink(missing_ok=True)
    where = str((path.parent if root is None else root).resolve())
    about = {"format": 1, "list": str(path.absolute()), "root": where, **rows._asdict(), **sizes}
    write_whole(out / INDEX, json.dumps(about, indent=1))
    return rows


def is_index_or_half(folder: Path) -> bool:
    """Whether a folder that is not empty is an index, or one that was stopped on the way."""
    parts = tuple(f".{name}.part" for name in (INDEX, "rows.bin", "paths.bin"))
    return (folder / INDEX).is_file() or all(path.name.startswith(parts) for path in folder.iterdir())


def check_index_of(folder: Path, path: Path) -> None:
    """Raises ConfigError where `folder` is the index of another list than `path`, or its index.json of something else."""
    if not (folder / INDEX).is_file():
        return
    try:
        before = str(json.loads((folder / INDEX).read_text())["list"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--out {folder}: its {INDEX} is damaged, or of something else; name another folder, or remove that file"
        ) from None
    if os.path.abspath(before) != os.path.abspath(path):
        raise ConfigError(f"--out {folder} is the index of {before}; name another folder")


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != 1:
            raise DataError(f"{folder}: an index of format {index['format']}; this version reads 1: make it again")
        for name in ("rows", "paths"):
            found, told = (folder / f"{name}.bin").stat().st_size, index[f"{name}_bytes"]
            if found != told:
                raise DataError(
                    f"{folder}/{name}.bin has {found} bytes where {INDEX} says {told}; make the index again"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: the index is damaged ({error!r}); make it again: vmae2 data index") from None
    return dict(index)


def _open_index(folder: Path, root: str | Path | None) -> Manifest:
    index = _read_index(folder)
    rows = ManifestRows(index["videos"], tuple(index["sources"]), tuple(index["shards"]), index["digest"])
    where = str(index["root"] if root is None else root)
    return Manifest(str(folder), where, rows, _FileBytes(folder / "rows.bin"), _FileBytes(folder / "paths.bin"))
