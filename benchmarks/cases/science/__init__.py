"""Do the papers' claims hold at desk size? A grid of short pre-trainings with seeds, probes, and statistics over the seeds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.case import Bench, Case, Group
from benchmarks.cases.science.grid import BASE, CELLS, LEAST_SEEDS, OF_NAME, STEPS, Cell
from benchmarks.cases.science.measuring import measure_run, measure_without_training
from benchmarks.cases.science.sets import Sets, Sizes, prepare
from benchmarks.cases.science.summary import RANDOM, row_of, summary_rows
from benchmarks.cases.science.training import FINISHED, Trainer, Training, training_of
from benchmarks.record import Row, current, read_rows
from vmae2_ds.runs.folder import find_checkpoint

CASE_NAME, SUMMARY = "science", "summary"
UNTRAINED = (RANDOM, "pixels")
QUICK_STEPS, QUICK_SIZES = 4, Sizes(24, 24, 24)
QUICK_CELLS = (BASE, "labels afterwards")


class Piece(NamedTuple):
    """One row of the grid."""

    variant: str
    seed: int

    @property
    def group(self) -> str:
        """Its name among the case's groups."""
        return f"seed {self.seed}: {self.variant}"


class Grid:
    """The pieces in the order in which they are made, and what makes them."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.options = bench, bench.options
        self.began = time.time()
        self.cells = tuple(cell for cell in CELLS if self._is_asked(cell))
        self.pieces = list(self._in_order(1 if self.options.quick else self.options.seeds))

    @property
    def folder(self) -> Path:
        """Where sets and runs are kept, beside the rows."""
        assert self.bench.folder is not None, "the runner gives a folder"
        return self.bench.folder / CASE_NAME

    def _in_order(self, seeds: int) -> Iterator[Piece]:
        """The least seeds of what cannot wait, seed by seed, then of each cell that can, then further seeds of all."""
        few = range(min(seeds, LEAST_SEEDS))
        first, later = ([cell.name for cell in self.cells if cell.can_wait == waits] for waits in (False, True))
        for seed in few:
            yield from (Piece(name, seed) for name in (*first, UNTRAINED[0], *UNTRAINED[1:][: seed == 0]))
        yield from (Piece(name, seed) for name in later for seed in few)
        for seed in range(len(few), seeds):
            yield from (Piece(name, seed) for name in (*first, UNTRAINED[0], *later))

    @property
    def steps(self) -> int:
        """Of a cell of length 1."""
        return QUICK_STEPS if self.options.quick else STEPS

    def _is_asked(self, cell: Cell) -> bool:
        if self.options.quick:
            return cell.name in QUICK_CELLS
        return cell.data is None or self.options.videos is not None

    @cached_property
    def sets(self) -> Sets:
        """Made when the first piece needs them."""
        sizes = QUICK_SIZES if self.options.quick else Sizes()
        asked = self.options
        return prepare(self.folder / "sets", sizes, asked.videos, asked.group_by, main_listed=asked.on_videos)

    @cached_property
    def trainer(self) -> Trainer:
        """Of this process."""
        until = self.began + 3600 * self.options.hours
        return Trainer(self.folder / f"runs_{self.sets.digest}", self.sets, self.options.jobs, until)

    def training(self, piece: Piece) -> Training:
        """How a piece is trained."""
        return training_of(OF_NAME[piece.variant], piece.seed, self.sets, self.steps)

    def ahead(self, piece: Piece) -> list[Training]:
        """What may be trained beside it: of the next pieces without a row those that are not trained yet."""
        done = {row["group"] for row in _rows(self.bench) if not row["error"]}
        later = self.pieces[self.pieces.index(piece) + 1 :]
        wanted = (self.training(each) for each in later if each.variant in OF_NAME and each.group not in done)
        return list(islice((each for each in wanted if not self.trainer.is_finished(each)), self.options.jobs))


def groups(bench: Bench) -> Iterator[Group]:
    """A group a cell and seed; at last the summary of all rows that are there."""
    grid = Grid(bench)
    asked = bench.options
    about = {"videos": asked.videos and asked.videos.name, "group_by": asked.group_by, "on_videos": asked.on_videos}
    for piece in grid.pieces:
        yield Group(piece.group, partial(measure, grid, piece), {**about, "steps": grid.steps})
    rows = _rows(bench)
    newest = max((row["unix_time"] for row in rows), default=0.0)
    yield Group(SUMMARY, partial(summarise, bench), {"rows": len(rows), "newest": newest})


def measure(grid: Grid, piece: Piece) -> list[Row]:
    """The row of a piece; none where there is no time for it."""
    if piece.variant in UNTRAINED:
        return _untrained(grid, piece)
    training = grid.training(piece)
    grid.bench.tell(f"training, {training.steps} steps")
    cost = grid.trainer.finish(training, grid.ahead(piece))
    if cost is None:
        print(
            f"science: {piece.group}: left out, it would not end within --hours {grid.options.hours:g}", file=sys.stderr
        )
        return []
    values = measure_run(grid.trainer.folder / training.name, grid.sets)
    config = {
        **_about(grid, piece), "ablation": OF_NAME[piece.variant].ablation, "steps": training.steps,
        "flops": training.flops, "cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "words": " ".join(training.words),
    }  # fmt: skip
    return [row_of(piece.variant, config, values, "measured")]


def _untrained(grid: Grid, piece: Piece) -> list[Row]:
    """What needs no training; the shape of the encoder is that of the run of BASE, without which there is no row."""
    run = grid.trainer.folder / grid.training(Piece(BASE, piece.seed)).name
    if not (run / FINISHED).is_file():
        return []
    shape, _ = find_checkpoint(run)
    values = measure_without_training(piece.variant, piece.seed, shape, grid.sets)
    return [row_of(piece.variant, _about(grid, piece), values, "measured")]


def _about(grid: Grid, piece: Piece) -> dict[str, Any]:
    sets = grid.sets
    tested = {
        f"{prefix}videos": int(len(probed.label_V) if probed.is_test_V is None else probed.is_test_V.sum())
        for prefix, probed in sets.probed.items()
    }
    return {"seed": piece.seed, "main": sets.main, "sets": sets.digest, "classes": sets.classes, **tested}


def summarise(bench: Bench) -> list[Row]:
    """Means and ranges over seeds, paired differences, verdicts."""
    return summary_rows([row for row in _rows(bench) if not row["error"]])


def _rows(bench: Bench) -> Sequence[Row]:
    """The rows of pieces that count."""
    folder = bench.folder or Path()
    return [row for row in current(read_rows(folder)) if row["case"] == CASE_NAME and row["group"] != SUMMARY]


CASE = Case(
    groups,
    "whether the papers' claims hold at desk size: a grid of short pre-trainings, seeds and statistics",
    alone=True,
)
