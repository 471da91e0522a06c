"""python -m benchmarks list | run CASE... [--all] [--rounds N] ...: time the cases and append their rows."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, Options
from benchmarks.record import RESULTS, append_rows


@dataclass(frozen=True)
class ListCases:
    """Name the cases."""


@dataclass(frozen=True)
class Run:
    """Time cases with one thread on the CPU and append a row per variant to OUT/CASE.jsonl."""

    cases: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, as `list` shows them."""
    all: bool = False
    """Every case."""
    out: Path = RESULTS
    """Folder of the rows."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def main() -> int:
    """Exit code 0 when every variant ran, 1 when one failed (its row says why), 2 for a wrong command."""
    command = tyro.cli(
        Annotated[ListCases, tyro.conf.subcommand("list")] | Annotated[Run, tyro.conf.subcommand("run")],  # type: ignore[arg-type]
        prog="python -m benchmarks",
        description=__doc__,
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=120)  # a log file: rich would take 80
    if isinstance(command, ListCases):
        for name, case in CASES.items():
            print(f"{name:14} {case.about}")
        return 0
    names = tuple(CASES) if command.all else command.cases
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        console.print(f"no case {', '.join(unknown) or 'named'}: choose from {', '.join(CASES)}, or --all")
        return 2
    torch.set_num_threads(1)
    failed = False
    for name in names:
        for rows in CASES[name].run(command.options.resolved(), partial(console.print, f"{name}:")):
            append_rows(command.out / f"{name}.jsonl", rows)
            console.print(table_of(name, rows))
            failed |= any(row["error"] for row in rows)
    return int(failed)


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows of one group for a terminal."""
    table = Table(title=title)
    for heading in ("variant", "size", "precision", "median s", "quartiles", "speed-up", "GFLOP/s", "of peak"):
        table.add_column(heading, justify="left" if heading in ("variant", "size", "precision") else "right")
    for row in rows:
        config = row["config"]
        cells = [row["variant"], str(config.get("size", "")), str(config.get("precision", ""))]
        if row["error"]:
            table.add_row(*cells, row["error"])
            continue
        time_s, speedup, share = row["time_s"], row.get("speedup"), row.get("share_of_peak")
        table.add_row(
            *cells,
            f"{time_s['median']:.3f}",
            f"{time_s['low']:.3f}-{time_s['high']:.3f}",
            f"{speedup['median']:.2f}x" if speedup else "",
            f"{row['flops_per_s'] / 1e9:.0f}" if row["flops_per_s"] else "",
            f"{share['median']:.0%}" if share else "",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
