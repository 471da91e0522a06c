"""What a data tool does beside decoding, for a list of made-up videos and many parts: CPU seconds and the peak of memory.

    python -m benchmarks.data_parts [--videos 1350000] [--parts 64]

Each line is a process of its own. `a part's start`: the list read, its copies numbered, the work divided. `the look`: asking
the file system once for all parts. `a part goes on`: what all have done so far is read. `join of ...`: lists and reports of
what all parts wrote. `rank 0's look`: at the other parts, once. Nothing is decoded and nothing is encoded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from vmae2_ds.data.entry import ReadAs
from vmae2_ds.data.sources.manifest import read_manifest, write_index
from vmae2_ds.data.tools import check, prepare
from vmae2_ds.data.tools.copies import Copies
from vmae2_ds.data.tools.division import Distinct, Ints, look, share
from vmae2_ds.data.tools.job_folder import JobFolder
from vmae2_ds.data.tools.parts import JobPart, Status, write_status
from vmae2_ds.data.tools.scan import Scanned, ScanOptions, found_by_all, key_of
from vmae2_ds.data.tools.video_facts import VideoFacts
from vmae2_ds.disk import hold

SEED = 0
CLASSES = 710
BAD = 100
"""Of so many videos one cannot be read."""


class Measured(NamedTuple):
    """A part of the work."""

    part: str
    videos: int
    parts: int
    cpu_s: float
    peak_mib: float
    """Of the whole process, its imports among it."""
    found: int
    """Rows or files that came out."""


class MadeSet(NamedTuple):
    """A list of made-up videos, of which the first is there, and the number of parts."""

    folder: Path
    videos: int
    parts: int

    @property
    def file(self) -> Path:
        return self.folder / "list.csv"


Work = Callable[[], int]


def _index(made: MadeSet) -> Work:
    return lambda: write_index(made.file, made.folder / "index").videos


def _start(made: MadeSet) -> Work:
    def work() -> int:
        copies = Copies(read_manifest(made.file))
        return len(_mine(copies, made))

    return work


def _mine(copies: Copies, made: MadeSet) -> Ints:
    costs = np.random.default_rng(SEED).integers(100_000, 10_000_000, len(copies))
    return share(costs, made.parts // 2, made.parts)


def _look(made: MadeSet) -> Work:
    copies = Copies(read_manifest(made.file))
    return lambda: len(look(copies.place, len(copies)))


def _goes_on(made: MadeSet) -> Work:
    copies = Copies(read_manifest(made.file))
    folder = _prepared(made, copies)
    mine = set(_mine(copies, made).tolist())
    return lambda: sum(map(len, prepare._found(copies, folder.rows(of_all=True), mine)))


def _join_prepare(made: MadeSet) -> Work:
    opened = read_manifest(made.file)
    copies = Copies(opened)
    folder = _prepared(made, copies)
    asked = prepare.PrepareArguments(manifest=made.file, out=folder.folder, sample=0)
    return lambda: prepare._together(asked, opened, copies, folder, {}).rows


def _join_check(made: MadeSet) -> Work:
    opened = read_manifest(made.file)
    options = ScanOptions(ReadAs("video", "", "pyav"), "clip", 16, 4, 30)
    files = Distinct(key_of(entry, options.how) for entry in opened)

    def row(number: int) -> list[Any]:
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        facts = VideoFacts(300, 340, 256, 29.97, 10.01, "h264", "yuv420p", 12, 250, False, 0, True, 1_234_567, digest)
        one = Scanned(opened[number].name, "", False, 300, facts)
        if not number % BAD:
            one = one._replace(reason="cannot be opened: moov atom not found", frames=0, facts=None)
        return [options.settings, [1_234_567, 10**18 + number], *one]

    folder = _folder(made, "check", "checked.jsonl", len(files), row)
    asked = check.CheckArguments(manifest=made.file, out=folder.folder, pictures=0)

    def work() -> int:
        found = found_by_all(folder, files, options, folder.results)
        return check._together(asked, opened, options, found, CLASSES).rows

    return work


def _rank_0(made: MadeSet) -> Work:
    """The statuses of all parts, each read, and its owner asked for."""
    folder = _folder(made, "check", "checked.jsonl", 0, lambda number: None, JobPart(0, made.parts, "rank"))
    for number in range(made.parts):
        held = hold(folder.file_of(number))
        assert held is not None, "nobody else is here"
        write_status(held, Status("working", f"host{number}", 1, 10, 100), flushed=False)
        folder.held = held
    return lambda: len(folder.all_said()) - len(folder.gone(folder.all_said()))


WORK: dict[str, Callable[[MadeSet], Work]] = {
    "index": _index,
    "a part's start": _start,
    "the look": _look,
    "a part goes on": _goes_on,
    "join of prepare": _join_prepare,
    "join of check": _join_check,
    "rank 0's look": _rank_0,
}


def _prepared(made: MadeSet, copies: Copies) -> JobFolder:
    def row(number: int) -> dict[str, Any]:
        if not number % BAD:
            return {"path": copies.source(number).name, "reason": "cannot be opened: moov atom not found"}
        known = {"target": copies.target(number), "stamp": [1_234_567, 10**18 + number], "bytes_before": 1_234_567}
        return known | {"seconds": 10.01, "frames": 300, "bytes": 345_678, "height": 256, "width": 340}

    return _folder(made, "prepare", "prepared.jsonl", len(copies), row)


def _folder(
    made: MadeSet, job: str, results: str, files: int, row: Callable[[int], Any], part: JobPart | None = None
) -> JobFolder:
    """A folder in which all parts have written their rows, each in an order of its own."""
    folder = JobFolder(made.folder / job, job, results, part or JobPart(), "--out")
    folder.inner.mkdir(parents=True)
    order = np.random.default_rng(SEED).permutation(files)
    for number in range(made.parts):
        with folder.log_of(number).open("w") as log:
            log.writelines(json.dumps(row(file)) + "\n" for file in order[number :: made.parts].tolist())
    return folder


def make_set(folder: Path, videos: int, parts: int) -> MadeSet:
    """Write the list into a folder."""
    made = MadeSet(folder, videos, parts)
    with made.file.open("w") as file:
        file.write("path,label\n")
        for number in range(videos):
            file.write(f"{_video(number)},{number % CLASSES}\n")
    first = folder / _video(0)
    first.parent.mkdir(parents=True)
    first.touch()
    return made


def _video(number: int) -> str:
    return f"set/class_{number % CLASSES:03d}/{number:011d}_000012_000022.mp4"


def _measure(name: str, made: MadeSet, answer: Any) -> None:
    work = WORK[name](made)
    before = time.process_time()
    found = work()
    spent = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer.send(Measured(name, made.videos, made.parts, spent, peak, found))


def measured(videos: int, parts: int) -> Iterator[Measured]:
    """Each part of the work in a process of its own, the stand-ins for other parts made before the clock runs."""
    own = multiprocessing.get_context("spawn")
    for name in WORK:
        with TemporaryDirectory() as folder:
            made = make_set(Path(folder), videos, parts)
            receive, send = own.Pipe(duplex=False)
            process = own.Process(target=_measure, args=(name, made, send))
            process.start()
            send.close()
            yield receive.recv()
            process.join()


def main() -> None:
    """Print a line of JSON for each part of the work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_parts")
    parser.add_argument("--videos", type=int, default=1_350_000)
    parser.add_argument("--parts", type=int, default=64)
    asked = parser.parse_args()
    for row in measured(asked.videos, asked.parts):
        print(json.dumps(row._asdict()), flush=True)


if __name__ == "__main__":
    main()
