"""python -m benchmarks.desk.muon --videos runs/desk/mixture.toml --out runs/desk_muon: the desk's pre-training with AdamW and
with Muon, a few rates each, at equal steps and at equal time."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from benchmarks.desk.stages import BASE_LR, RECIPE, SHAPE, run_vmae2
from benchmarks.record import Row, append_rows, provenance
from vmae2_ds.errors import Vmae2Error
from vmae2_ds.json_lines import rows_of


@dataclass(frozen=True)
class MuonDesk:
    """Pre-training of the desk's model with each optimizer. The same command goes on where it was stopped."""

    videos: Path
    """A mixture or a list of videos: mixture.toml as python -m benchmarks.desk writes it."""
    out: Path = Path("runs/desk_muon")
    """Run folders and rows.jsonl."""
    steps: int = 400
    """Steps of the runs that are compared at equal steps, a multiple of 50."""
    warmup_epochs: float = 0.2
    """Length of the warm-up in passes over the videos: 75 steps of the desk's mixture."""
    adamw: tuple[float, ...] = (0.5, 1, 2)
    """Rates of AdamW, as multiples of the desk's own."""
    muon: tuple[float, ...] = (0.5, 1, 2, 4)
    """Rates of Muon's matrices, as multiples of the desk's own, which AdamW's part keeps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The first tries every rate; the others take the best of each optimizer."""


class Trial(NamedTuple):
    """A run that is compared."""

    optimizer: str
    rate: float
    seed: int
    steps: int
    at: str
    """What it has in common with the others: "equal steps" or "equal time"."""


def main(argv: list[str] | None = None) -> int:
    """Run what is asked; exit code 2 for what a user can fix."""
    asked = tyro.cli(MuonDesk, args=argv, prog="python -m benchmarks.desk.muon")
    rows = asked.out / "rows.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.desk.muon", *(sys.argv[1:] if argv is None else argv)])
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        for row in _measure(asked, list(rows_of(rows))):
            append_rows(rows, [{**provenance(), "command": command, **row}])
            print(row, flush=True)
    except Vmae2Error as error:
        print(f"benchmarks.desk.muon: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(list(rows_of(rows))))
    return 0


def _measure(asked: MuonDesk, rows: list[Row]) -> Iterator[Row]:
    """One row per trial that is not known yet: all rates, the best with other seeds, then AdamW for as long as Muon took."""

    def rows_for(*trials: Trial) -> Iterator[Row]:
        for trial in trials:
            known = [
                row
                for row in rows
                if all(row[key] == value for key, value in trial._asdict().items() if key != "steps")
            ]
            if not known:
                rows.append({**trial._asdict(), **_run(asked, trial)})
                yield rows[-1]

    first, *others = asked.seeds
    rates = [*(("adamw", rate) for rate in asked.adamw), *(("muon", rate) for rate in asked.muon)]
    yield from rows_for(*(Trial(name, rate, first, asked.steps, "equal steps") for name, rate in rates))
    best = {name: best_rate(rows, name, first) for name in ("adamw", "muon")}
    for seed in others:
        yield from rows_for(*(Trial(name, rate, seed, asked.steps, "equal steps") for name, rate in best.items()))
    longer = steps_in_equal_time(rows, asked.steps)
    yield from rows_for(*(Trial("adamw", best["adamw"], seed, longer, "equal time") for seed in asked.seeds))


def best_rate(rows: list[Row], optimizer: str, seed: int) -> float:
    """The rate with the lowest loss at equal steps."""
    found = [row for row in rows if (row["optimizer"], row["seed"], row["at"]) == (optimizer, seed, "equal steps")]
    return min(found, key=lambda row: row["loss"])["rate"]


def steps_in_equal_time(rows: list[Row], steps: int) -> int:
    """Steps of AdamW in the time of Muon's: by the least disturbed stretch of any run of each."""
    fastest = {
        name: min(row["step_time_s"] for row in rows if row["optimizer"] == name and row["at"] == "equal steps")
        for name in ("adamw", "muon")
    }
    return round(steps * fastest["muon"] / fastest["adamw"])


def _run(asked: MuonDesk, trial: Trial) -> Row:
    """Train, unless it is trained; what came of it: the mean loss of the last 50 steps or less, and seconds a step."""
    run = asked.out / "runs" / f"{trial.optimizer}_{trial.rate:g}_seed{trial.seed}_{trial.at.replace(' ', '_')}"
    is_muon = trial.optimizer == "muon"
    rate = f"--optim.base-lr {float(BASE_LR.split()[1]) * (1 if is_muon else trial.rate):g}"
    words = f"pretrain vit_ti_pretrain_desk {SHAPE} {RECIPE.replace(BASE_LR, rate)} --objective.target pixels"
    words += f" --train.precision fp32 --train.max-steps {trial.steps} --train.seed {trial.seed}"
    words += f" --optim.warmup-epochs {asked.warmup_epochs:g}"
    words += f" --optim.optimizer muon --optim.muon-rate {trial.rate:g}" * is_muon
    kind = "mixture" if asked.videos.suffix == ".toml" else "manifest"
    if not (run / "finished.json").is_file():
        run.parent.mkdir(parents=True, exist_ok=True)
        run_vmae2([*words.split(), f"--data.{kind}", asked.videos, "--train.run", run], run.with_suffix(".log"))
    curve = list(rows_of(run / "metrics.jsonl"))
    return {
        "loss": curve[-1]["loss"],
        "flat_loss": curve[-1]["flat_loss"],
        "step_time_s": min(row["step_time_s"] for row in curve),
        "losses": [row["loss"] for row in curve],
    }


def markdown(rows: list[Row]) -> str:
    """A line per optimizer, rate and kind of comparison: the loss of the last steps, mean and range over seeds."""
    lines = ["| | rate | steps | loss of the last steps | s a step |", "|---|---|---|---|---|"]
    for key in dict.fromkeys((row["at"], row["optimizer"], row["rate"]) for row in rows):
        mine = [row for row in rows if (row["at"], row["optimizer"], row["rate"]) == key]
        found = [row["loss"] for row in mine]
        seconds, at = min(row["step_time_s"] for row in mine), f"{key[1]}, {key[0]}"
        told = f"{np.mean(found):.5f} ({min(found):.5f} to {max(found):.5f}; {len(found)})"
        lines.append(f"| {at} | {key[2]:g} | {mine[0]['steps']} | {told} | {seconds:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
