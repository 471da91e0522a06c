"""python -m benchmarks.desk.continued --data ../shared/data --out runs/desk_continued: pre-training on synthetic videos and
gestures goes on with interactions, which it has not seen: the loss of held-back ones and the probe, before and after."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.desk.lists import Lists, write_lists
from benchmarks.desk.probes import probe_frozen
from benchmarks.desk.stages import BASE_LR, RECIPE, SHAPE, run_vmae2
from benchmarks.record import Row, append_rows, provenance
from vmae2_ds.errors import Vmae2Error
from vmae2_ds.json_lines import rows_of

LATER = RECIPE.replace("--data.views 1", "--data.views 4").replace("--train.micro-batch 16", "--train.micro-batch 4")
"""The desk's recipe with four views of a video, for one decoding."""
FIRST = LATER.replace("--train.global-batch 16 --train.micro-batch 4", "--train.global-batch 32 --train.micro-batch 8")
"""Of the first pre-training."""
CONTINUED = LATER.replace(BASE_LR, "--optim.base-lr 0.016")
"""Half of the desk's rate, for what goes on."""
GESTURES = 0.2
"""Of the samples of the first pre-training; the others are synthetic."""
PROBED = ("ridge", "motion")


@dataclass(frozen=True)
class ContinuedDesk:
    """A first pre-training, some that go on from it, and some begun anew. The same command goes on where it was stopped."""

    data: Path
    """The folder that holds actions/ with the two sets."""
    out: Path = Path("runs/desk_continued")
    """Lists, small copies, run folders and rows.jsonl."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of what goes on and of what begins anew; the first pre-training has seed 0."""
    first_steps: int = 1500
    """Steps of the first pre-training."""
    steps: int = 400
    """Steps on the interactions: 22 passes over 71 clips."""
    validate_every: int = 2
    """Passes between two looks at the held-back interactions."""
    workers: int = 2
    """Processes that make the small copies."""
    shrink: int = 1
    """Divides the number of synthetic videos, to try the chain."""


def main(argv: list[str] | None = None) -> int:
    """Run what is asked; exit code 2 for what a user can fix."""
    asked = tyro.cli(ContinuedDesk, args=argv, prog="python -m benchmarks.desk.continued")
    rows = asked.out / "rows.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.desk.continued", *(sys.argv[1:] if argv is None else argv)])
    try:
        lists = write_lists(asked.data, asked.out, asked.workers, asked.shrink)
        known = {(row["model"], row["seed"]) for row in rows_of(rows)}
        for row in _measure(asked, lists, known):
            append_rows(rows, [{**provenance(), "command": command, **row}])
            print(row, flush=True)
    except Vmae2Error as error:
        print(f"benchmarks.desk.continued: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(list(rows_of(rows))))
    return 0


def _measure(asked: ContinuedDesk, lists: Lists, known: set[tuple[str, int]]) -> Iterator[Row]:
    """One row per model and seed that is not known yet."""
    mixture = ["--data.mixture", _write_mixture(asked.out), "--optim.warmup-epochs", 0.1]
    first = _trained(asked, "first", 0, asked.first_steps, FIRST, mixture)
    later = ["--data.manifest", lists.train_of["ut"], "--data.val-manifest", lists.val_of["ut"]]
    later += ["--train.validate-every", asked.validate_every, "--optim.warmup-epochs", 4]
    for model, seed in [*(("continued", seed) for seed in asked.seeds), *(("anew", seed) for seed in asked.seeds)]:
        if (model, seed) in known:
            continue
        words = [*later, "--train.init", first] if model == "continued" else later
        recipe = CONTINUED if model == "continued" else LATER
        run = _trained(asked, model, seed, asked.steps, recipe, words)
        losses = [row for row in rows_of(run / "validation.jsonl") if "val_loss" in row]
        if model == "continued" and ("first", 0) not in known:  # its look at the videos before the first step
            known.add(("first", 0))
            yield {"model": "first", "seed": 0, "run": first.name, **_losses(losses[:1]), **_probed(first, lists)}
        yield {"model": model, "seed": seed, "run": run.name, **_losses(losses), **_probed(run, lists)}


def _losses(rows: list[Row]) -> Row:
    """The last figures, and the lowest loss of the held-back clips with its step."""
    lowest = min(rows, key=lambda row: row["val_loss"])
    return {
        **{key: rows[-1][key] for key in ("step", "val_loss", "seen_loss", "val_videos")},
        "lowest_val_loss": lowest["val_loss"],
        "lowest_at": lowest["step"],
    }


def _probed(run: Path, lists: Lists) -> Row:
    """Share of the interactions named right, each sequence left out once, by kind of probe."""
    return {how: probe_frozen(run, 0, how, lists.all_of["ut"], None, {"run"})["run"]["accuracy"] for how in PROBED}


def _trained(asked: ContinuedDesk, name: str, seed: int, steps: int, recipe: str, words: list[object]) -> Path:
    """The run of a model and a seed, trained where it is not finished."""
    run = asked.out / "runs" / f"{name}_seed{seed}"
    if not (run / "finished.json").is_file():
        run.parent.mkdir(parents=True, exist_ok=True)
        said = f"pretrain vit_ti_pretrain_desk {SHAPE} {recipe} --objective.target pixels --train.precision fp32"
        said += f" --train.max-steps {steps} --train.seed {seed} --train.save-every 500"
        run_vmae2([*said.split(), *words, "--train.run", run], run.with_suffix(".log"))
    return run


def _write_mixture(out: Path) -> Path:
    """The gestures' training clips and the synthetic videos."""
    path = out / "first.toml"
    sources = {"gestures": ("bg_train.csv", GESTURES), "synthetic": ("synthetic/train.csv", 1 - GESTURES)}
    tables = [
        f'[[source]]\nname = "{name}"\nmanifest = "{of}"\nshare = {share}\n' for name, (of, share) in sources.items()
    ]
    path.write_text("\n".join(['name = "first"\n', *tables]), encoding="utf-8")
    return path


COLUMNS = {
    "val_loss": "held-back loss", "lowest_val_loss": "lowest", "seen_loss": "loss of clips trained on",
    "ridge": "ridge", "motion": "motion",
}  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """A line per model: losses times 1,000 and probes in percent, mean and range over seeds."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for key in COLUMNS:
            scale, digits = (1000, 3) if "loss" in key else (100, 1)
            found = [scale * row[key] for row in rows if row["model"] == model]
            told = f"{np.mean(found):.{digits}f}"
            if len(found) > 1:
                told += f" ({min(found):.{digits}f} to {max(found):.{digits}f}; {len(found)})"
            cells.append(told)
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
