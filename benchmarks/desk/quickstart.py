"""python -m benchmarks.desk.quickstart runs/quickstart/vit_ti_pretrain_quickstart/*: what runs of `make quickstart` paint of
videos that they were not trained on, a row per run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.record import Row, append_rows, provenance
from vmae2_ds.downstream.hidden_error import measure_run, summed
from vmae2_ds.errors import Vmae2Error
from vmae2_ds.json_lines import rows_of
from vmae2_ds.runs.folder import find_checkpoint


@dataclass(frozen=True)
class QuickstartDesk:
    """Measure finished quickstarts on unseen videos."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, of one seed each."""
    videos: Path = Path("quickstart_data/val.csv")
    """List of videos that were not trained on."""
    clips: int = 48
    """How many of them are looked at, one clip each."""
    out: Path = Path("runs/desk_quickstart/rows.jsonl")
    """File that the rows are appended to."""


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked; exit code 2 for what a user can fix."""
    asked = tyro.cli(QuickstartDesk, args=argv, prog="python -m benchmarks.desk.quickstart")
    words = ["python", "-m", "benchmarks.desk.quickstart", *(sys.argv[1:] if argv is None else argv)]
    try:
        for row in _measure(asked):
            append_rows(asked.out, [{**provenance(), "command": shlex.join(words), **row}])
            print(row, flush=True)
    except Vmae2Error as error:
        print(f"benchmarks.desk.quickstart: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(list(rows_of(asked.out))))
    return 0


def _measure(asked: QuickstartDesk) -> Iterator[Row]:
    """A row per run: how it was trained, and its error on hidden cubes beside that of both guesses."""
    for run in asked.runs:
        config, checkpoint = find_checkpoint(run)
        measured = measure_run(run, asked.videos, asked.clips)
        curve = list(rows_of(checkpoint.parent.parent / "metrics.jsonl"))
        steps = np.diff([0, *(row["step"] for row in curve)])
        yield {
            "model": config.recipe,
            "seed": config.train.seed,
            "test": "hidden cubes",
            "set": "unseen",
            "videos": len(measured),
            "steps": int(steps.sum()),
            "trained_s": round(float(sum(row["step_time_s"] * count for row, count in zip(curve, steps, strict=True)))),
            "loss": curve[-1]["loss"],
            **summed(one.error for one in measured).as_json(),
        }


def markdown(rows: list[Row]) -> str:
    """A line per guess: the models' squared error in percent of it, mean and range over seeds."""
    lines = ["| squared error on hidden cubes, of that of | percent |", "|---|---|"]
    guesses = {"predicting each clip's mean colour": "mean_colour", "copying the nearest visible cube": "nearest_cube"}
    for told, name in guesses.items():
        found = [100 * row[f"error_to_{name}"] for row in rows]
        lines.append(f"| {told} | {np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f}; {len(found)}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
