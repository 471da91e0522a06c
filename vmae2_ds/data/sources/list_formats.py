"""Text lists of videos, line by line: a CSV with a header, or a published space-separated list."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from vmae2_ds.data.sources.class_names import ClassNames, is_whole_number, read_class_names
from vmae2_ds.data.sources.list_header import columns_of
from vmae2_ds.disk import whole_file
from vmae2_ds.errors import ConfigError, DataError

LARGEST_LABEL = 2**31 - 1
BLANKS = " \t\r\n"
"""Around a cell that is not quoted they mean nothing. Other spaces of Unicode belong to names."""


class ListedVideo(NamedTuple):
    """One line of a list, as written; None where its cell is empty."""

    path: str
    label: int | None = None
    source: str | None = None
    start: int = 0
    frames: int | None = None
    shard: str | None = None
    offset: int = 0
    size: int = 0


class ListForm(NamedTuple):
    """What a list does not say of itself."""

    frame_folders: bool = False
    """A published list is of raw frames, `folder start frames`."""
    ignore_columns: tuple[str, ...] | None = None
    """Columns to leave out; empty: all that are none of ours; None: further columns are refused."""
    names: ClassNames | None = None
    """What labels that are no numbers mean."""
    label_is_read: bool = True
    """Whether labels are looked at; else no video has one."""


PLAIN_LIST = ListForm()


def list_form(
    ignore_columns: tuple[str, ...] | None = None, labels: Path | None = None, *, frame_folders: bool = False
) -> ListForm:
    """What the options of a verb ask for; raises ConfigError for a file of names that is none."""
    return ListForm(frame_folders, ignore_columns, None if labels is None else read_class_names(labels))


class _Hashing(io.BufferedReader):
    """A file whose bytes are hashed as they are read, each once and in order."""

    def __init__(self, raw: io.RawIOBase, digest: hashlib._Hash) -> None:
        super().__init__(raw)
        self._digest = digest

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, hashed."""
        block = super().read(size)
        self._digest.update(block)
        return block

    def read1(self, size: int = -1) -> bytes:
        """Up to `size` bytes by one read of the file, hashed."""
        block = super().read1(size)
        self._digest.update(block)
        return block


def read_list(path: Path, form: ListForm = PLAIN_LIST, digest: hashlib._Hash | None = None) -> Iterator[ListedVideo]:
    """The lines of a list, which is opened and read once.

    `digest` is given all its bytes, by the time the last line has come.

    Raises DataError, naming file and line, for anything it cannot take literally.
    """
    try:
        with _Hashing(path.open("rb", buffering=0), digest or hashlib.sha256()) as raw:
            _refuse_binary(path, raw.peek(4096)[:4096])
            # surrogateescape: a path that is not UTF-8 comes back as the bytes that the file system knows
            with io.TextIOWrapper(raw, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                begin = list(_until_a_word(file))
                lines = chain(begin, file)
                if begin and _is_published_line(begin[-1]):
                    yield from _read_published(path, lines, form.frame_folders)
                else:
                    yield from _read_csv(path, lines, form)
    except OSError as error:
        way_out = (
            f"`vmae2 data list {path}` makes a list of a folder's videos" if path.is_dir() else "name a list of videos"
        )
        raise DataError(f"{path}: cannot read the manifest: {error.strerror}; {way_out}") from error


def _until_a_word(file: Iterable[str]) -> Iterator[str]:
    """The first lines, up to the first that is not empty."""
    for line in file:
        yield line
        if line.strip():
            return


def csv_line(cells: Iterable[object]) -> str:
    """A line of a list, its end included; None is an empty cell. `read_list` gives back every path as it was.

    Unlike `csv.writer` it quotes a cell that begins or ends with a blank.
    """
    return ",".join(_csv_cell("" if cell is None else str(cell)) for cell in cells) + "\n"


@contextlib.contextmanager
def writing_list(path: Path) -> Iterator[IO[str]]:
    """A list to write lines to, which is whole under its name once the block has ended well."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield file


def _csv_cell(cell: str) -> str:
    needs_quotes = cell.strip(BLANKS) != cell or any(mark in cell for mark in ',"\r\n')
    return '"' + cell.replace('"', '""') + '"' if needs_quotes else cell


def _error(file: Path, line: int, problem: str, text: str, way_out: str) -> DataError:
    shown = text.rstrip("\r\n")
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return DataError(f"{file}:{line}: {problem} in {shown!r}; {way_out}")


def _refuse_binary(path: Path, head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: the manifest is UTF-16; save it as UTF-8 CSV")
    if b"\0" in head:
        raise DataError(f"{path}:1: the manifest is not a text file; a CSV or a published list is wanted")


# --- CSV -------------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a file, one by one, and those of the record in work."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.record = lines, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.record += line
        return line


def _read_csv(path: Path, file: Iterator[str], form: ListForm) -> Iterator[ListedVideo]:
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    unknown: Counter[str] = Counter()
    try:
        header = next((row for row in reader if any(cell.strip() for cell in row)), [])
        if not header:
            return
        line = reader.line_num
        columns = columns_of(
            path,
            header,
            form.ignore_columns,
            lambda problem, way_out: _error(path, line, problem, ",".join(header), way_out),
        )
        lines.record = ""
        for row in reader:
            if row:
                cells = _cells(path, reader.line_num, row, len(header), columns, lines.record)
                cell = cells.pop("label", "") if form.label_is_read else ""
                label = _label(path, reader.line_num, cell, form.names, row, unknown)
                yield _csv_row(path, reader.line_num, row, cells, label)
            lines.record = ""
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not CSV ({error}); quote a path that holds commas, and double its quotes"
        ) from error
    if unknown:
        assert form.names is not None, "names are unknown to a file of names"
        raise DataError(
            f"{path}: {form.names.describe_unknown(unknown)}; fix the list, or add the names to {form.names.file}"
        )


def _cells(path: Path, line: int, row: list[str], width: int, columns: dict[str, int], record: str) -> dict[str, str]:
    """Cells by column: a quoted one as it is, the others without blanks around them."""
    if len(row) != width:
        raise _error(
            path,
            line,
            f"{len(row)} cells where the header has {width}",
            ",".join(row),
            "put a path that holds commas in double quotes, and leave empty cells empty",
        )
    cells = {name: row[at].strip(BLANKS) for name, at in columns.items()}
    if any(cells[name] != row[at] for name, at in columns.items()):
        quoted = _are_quoted(record)
        cells |= {name: row[at] for name, at in columns.items() if quoted[at]}
    if not cells["path"]:
        raise _error(path, line, "empty path", ",".join(row), "give the video's path or drop the line")
    return cells


def _are_quoted(record: str) -> list[bool]:
    """Whether each cell is quoted, of a record that `csv` has read without an error."""
    quoted, at = [], 0
    while True:
        quoted.append(record.startswith('"', at))
        if quoted[-1]:
            at += 1
            while record.startswith('""', end := record.index('"', at)):
                at = end + 2
            at = end + 1
        else:
            comma = record.find(",", at)
            at = len(record) if comma < 0 else comma
        if record[at : at + 1] != ",":
            return quoted
        at += 1


def _label(
    path: Path, line: int, cell: str, names: ClassNames | None, row: list[str], unknown: Counter[str]
) -> int | None:
    """A name that the file of names lacks is counted in `unknown`."""
    if not cell:
        return None
    if names is None:
        meaning = "label is a class number from 0, or empty"
        if not cell.removeprefix("-").isdigit():
            meaning += "; class names need a file that lists them, one a line: --data.labels FILE"
        return _whole_number(path, line, "label", cell, 0, LARGEST_LABEL + 1, meaning, row)
    try:
        number = names.label_of(cell)
    except ConfigError as error:
        raise _error(path, line, f"label={cell!r}", ",".join(row), str(error)) from None
    if number is None:
        unknown[cell] += 1
    return number


_NUMBERS = (
    ("start", 0, 2**31, "the first frame to use, counted from 0"),
    ("frames", 1, 2**31, "the number of frames to use, or empty for all"),
    ("offset", 0, 2**63, "the byte of the shard at which the video starts"),
    ("bytes", 0, 2**63, "the number of bytes of the video inside the shard"),
)
"""Column, least value, the first value too large, meaning."""


def _csv_row(path: Path, line: int, row: list[str], cells: dict[str, str], label: int | None) -> ListedVideo:
    numbers = {
        name: _whole_number(path, line, name, cell, least, limit, f"{name} is {meaning}", row)
        for name, least, limit, meaning in _NUMBERS
        if (cell := cells.get(name))
    }
    shard = cells.get("shard") or None
    if "shard" in cells and (shard is None or "offset" not in numbers or "bytes" not in numbers):
        raise _error(path, line, "an empty cell among shard, offset, bytes", ",".join(row), "give all three")
    return ListedVideo(
        cells["path"],
        label,
        cells.get("source") or None,
        numbers.get("start", 0),
        numbers.get("frames"),
        shard,
        numbers.get("offset", 0),
        numbers.get("bytes", 0),
    )


def _whole_number(
    path: Path, line: int, name: str, cell: str, least: int, limit: int, meaning: str, row: list[str]
) -> int:
    number = int(cell) if is_whole_number(cell.strip()) else least - 1
    if not least <= number < limit:
        raise _error(path, line, f"{name}={cell!r}", ",".join(row), meaning)
    return number


# --- published space-separated lists (docs/PAPER.md#data) ------------------------------------------------------------------


def _is_int(token: str) -> bool:
    return is_whole_number(token.removeprefix("-"))


def _is_published_line(line: str) -> bool:
    """`path 0 -1`, `path label` or `folder start frames`: no header, and the last word is a whole number."""
    words = _words(line)
    return len(words) > 1 and _is_int(words[-1])


def _read_published(path: Path, file: Iterator[str], frame_folders: bool) -> Iterator[ListedVideo]:
    for line, words, text in _split_lines(file):
        numbers = [int(word) for word in words[1:] if _is_int(word)]
        if len(words) not in (2, 3) or len(numbers) != len(words) - 1:
            raise _error(
                path,
                line,
                "neither 'path 0 -1' nor 'path label'",
                text,
                "paths with spaces need the CSV form: a header line 'path' or 'path,label', and commas",
            )
        if len(words) == 2:
            if not 0 <= numbers[0] < 2**31:
                raise _error(path, line, f"label={numbers[0]}", text, "labels are class numbers from 0")
            yield ListedVideo(words[0], label=numbers[0])
        elif frame_folders:
            start, frames = numbers
            if not (0 <= start < 2**31 and 1 <= frames < 2**31):
                raise _error(path, line, "not a folder of frames", text, "a line is: folder, first frame, frames")
            yield ListedVideo(words[0], start=start, frames=frames)
        elif numbers[1] >= 0:
            raise _error(
                path,
                line,
                f"a folder of raw frames ('folder start frames', {numbers[1]} frames)",
                text,
                'list it in a mixture file, as a source with kind = "frames" (docs/DATA.md), and give --data.mixture',
            )
        elif numbers != [0, -1]:
            raise _error(
                path, line, "a video line that does not end in '0 -1'", text, "use a CSV with start and frames"
            )
        else:
            yield ListedVideo(words[0])


def _words(line: str) -> list[str]:
    return [word for word in line.strip(BLANKS).replace("\t", " ").split(" ") if word]


def _split_lines(file: Iterator[str]) -> Iterator[tuple[int, list[str], str]]:
    for line, text in enumerate(file, start=1):
        if words := _words(text):
            yield line, words, text
