"""python -m benchmarks list | run CASE... | visit | report [FOLDER...] | compare BEFORE AFTER. See docs/BENCHMARKS.md."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from benchmarks.case import Options
from benchmarks.cases import CASES
from benchmarks.record import RESULTS, ROOT, Row, read_rows
from benchmarks.run import run_cases
from benchmarks.visit.parts import Asked
from vmae2_ds.config.model import SIZES
from vmae2_ds.errors import ConfigError, Vmae2Error

REPORTS = ROOT / "reports"


@dataclass(frozen=True)
class ListCases:
    """Name the cases."""


@dataclass(frozen=True)
class Run:
    """Measure cases and append a row per variant to OUT/CASE.jsonl. The same command again goes on where it was stopped."""

    cases: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, as `list` shows them."""
    all: bool = False
    """Every case; without --quick those that take hours (`science`) have to be named."""
    out: Path = RESULTS / "mine"
    """Folder of the rows."""
    fresh: bool = False
    """Measure again what is already there."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


@dataclass(frozen=True)
class Visit:
    """Measure in so many minutes what is worth most on this machine and write its report to OUT; the same command goes on.

    Exit code 0 when all went well, what did not fit included, 1 when a group failed, 75 when a signal ended it.
    """

    asked: Annotated[Asked, tyro.conf.arg(name="")] = field(default_factory=Asked)


@dataclass(frozen=True)
class Report:
    """Write index.html and report.md from rows."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (RESULTS / "mine",)
    """Folders of rows; of two rows for one variant the later one counts."""
    out: Path = REPORTS / "mine"
    """Folder of the report."""


@dataclass(frozen=True)
class Compare:
    """Tell what became slower or larger beyond the spread from one folder of rows to another; exit code 1 if anything did."""

    before: tyro.conf.Positional[Path]
    """Rows before."""
    after: tyro.conf.Positional[Path]
    """Rows after."""
    tolerance: float = 0.03
    """Share of a median that a change must exceed, beside the quartiles being apart."""


COMMANDS = (
    Annotated[ListCases, tyro.conf.subcommand("list")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Visit, tyro.conf.subcommand("visit")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when all went well, 1 when a variant failed (its row says why) or became worse, 2 for a wrong command."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank")]
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=120)  # a log file: rich would take 80
    try:
        command: Any = tyro.cli(COMMANDS, prog="python -m benchmarks", description=__doc__, args=words)  # type: ignore[call-overload]
        return _call(command, words, console)
    except ValidationError as error:
        for wrong in error.errors():
            option = "--" + "-".join(map(str, wrong["loc"])).replace("_", "-")
            console.print(
                f"benchmarks: {option} {wrong['input']}: {wrong['msg']}", style="red", highlight=False, markup=False
            )
        return 2
    except Vmae2Error as error:
        console.print(f"benchmarks: {error}", style="red", highlight=False, markup=False)
        return 2


def _call(command: Any, words: list[str], console: Console) -> int:
    if isinstance(command, ListCases):
        for name, case in CASES.items():
            print(f"{name:16} {case.about}")
        return 0
    if isinstance(command, Run):
        typed = shlex.join(["python", "-m", "benchmarks", *words])
        names = names_of(command)

        def show(title: str, rows: list[Row]) -> None:
            console.print(table_of(title, rows))

        return int(run_cases(names, command.options.resolved(), command.out, typed, fresh=command.fresh, show=show) > 0)
    if isinstance(command, Visit):
        from benchmarks.visit.going import visit

        return visit(command.asked, shlex.join(["python", "-m", "benchmarks", *words]))
    if isinstance(command, Report):
        from benchmarks.report import write_report

        for path in write_report([_folder_of_rows(path) for path in command.folders], command.out):
            print(path)
        return 0
    from benchmarks.compare import compare, table

    before, after = (read_rows(_folder_of_rows(path)) for path in (command.before, command.after))
    changes = compare(before, after, command.tolerance)
    console.print(table(changes))
    return int(any(change.verdict == "regression" for change in changes))


def names_of(command: Run) -> tuple[str, ...]:
    """The cases asked for.

    Raises:
        ConfigError: a name or size that is not known, or no name at all.
    """
    every = tuple(name for name, case in CASES.items() if command.options.quick or not case.alone)
    names = every if command.all else command.cases
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise ConfigError(f"no case {', '.join(unknown) or 'named'}: choose from {', '.join(CASES)}, or --all")
    strange = [size for size in command.options.sizes if size not in SIZES]
    if strange:
        raise ConfigError(f"no size {', '.join(strange)}: choose from {', '.join(SIZES)}")
    return names


def _folder_of_rows(folder: Path) -> Path:
    if not any(folder.glob("*.jsonl")):
        raise ConfigError(f"no rows (CASE.jsonl) in {folder}; python -m benchmarks run --all --out {folder} makes some")
    return folder


def table_of(title: str, rows: list[Row]) -> Table:
    """The rows of one group for a terminal."""
    measured = [row for row in rows if "time_s" in row or "values" not in row]
    table = _table_of_times(title, measured) if measured else Table(title=title)
    if not measured:
        names = list(dict.fromkeys(name for row in rows for name in row["values"]))
        for heading in ("variant", *names):
            table.add_column(heading, justify="left" if heading == "variant" else "right")
        for row in rows:
            table.add_row(
                row["variant"], *(f"{row['values'][name]:,.5g}" if name in row["values"] else "" for name in names)
            )
    return table


def _table_of_times(title: str, rows: list[Row]) -> Table:
    table = Table(title=title)
    headings = (
        "median s",
        "quartiles",
        "speed-up",
        "FLOP ratio",
        "GFLOP/s",
        "of peak",
        "peak MiB",
        "launches",
        "host s",
    )
    for heading in ("variant", *headings):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        if "time_s" not in row:
            table.add_row(row["variant"], row["error"])
            continue
        time_s, speedup, share, memory = row["time_s"], row.get("speedup"), row.get("mfu"), row.get("memory")
        table.add_row(
            row["variant"],
            f"{time_s['median']:.4g}",
            f"{time_s['low']:.4g}-{time_s['high']:.4g}",
            f"{speedup['median']:.2f}x" if speedup else "",
            f"{row['flop_ratio']:.2f}x" if row.get("flop_ratio") else "",
            f"{row['flops_per_s'] / 1e9:.0f}" if row.get("flops_per_s") else "",
            f"{share['median']:.0%}" if share else "",
            f"{memory['peak_bytes'] / 2**20:.0f}" if memory else "",
            f"{row['launches']}" if row.get("launches") else "",
            f"{row['host_s']:.4g}" + " (host-bound)" * bool(row["host_bound"]) if row.get("host_s") else "",
        )
    return table


if __name__ == "__main__":
    code = main()
    if "visit" in sys.argv[1:2]:  # whose minutes end here: the interpreter takes seconds to take torch apart
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
