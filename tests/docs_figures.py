"""Figures in the docs and where each is from: what `test_docs_figures.py` holds them to, and how to write them.

- A figure of a benchmark row is a link to its file, and the link's title says which value of which rows:
  `[7.0 %](../benchmarks/results/cpu/prediction.jsonl "largest residual.time in % where config.precision=bf16")`.
- A block (paragraph, list item, table row) that names a test or a published source needs no link.
- `<!-- figures: rows FILE -->`: what follows are accuracies of the desk experiment's rows, in percent: one row's, or mean,
  lowest and highest over its seeds.
- `<!-- figures: WHAT ... -->` says what the figures that follow are where no row can: settings, published, closed form, made
  by a command, or by hand, with what was done and when.

A comment counts up to the next heading or comment.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

LINK = re.compile(r'\[([^\]]+)\]\(([^)\s]+\.jsonl) "([^"]+)"\)')
FIGURE = re.compile(
    r"(?<![\w.,-])\d[\d.,]* ?(%|ms|us|s|seconds|minutes|min|h|hours|times|MB|GB|kB|KiB|MiB|GiB|TFLOP/s|GMACs)(?![\w-])"
)
SECTION = re.compile(r"<!-- \w+: (.+?) -->")
KINDS = ("settings", "published", "closed form", "by hand", "made by")
"""What a comment begins with that vouches for what follows it, up to the next heading or comment."""
SOURCES = re.compile(r"arXiv|[Pp]ublished|the paper")
TEST = re.compile(r"`(tests/[\w/.]+|test_\w+(?:\.py)?(?:\.\.\.)?)`")
CELL = re.compile(r"(\d+\.\d+) \((?:(\d+\.\d+) to (\d+\.\d+); )?(\d+)\)")
"""mean (lowest to highest; seeds), or value (1)."""
SHARE = re.compile(r"(?<![\w.])(\d+\.\d) (?:against (\d+\.\d) )?%")

STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "least": min,
    "most": max,
    "largest": lambda values: max(abs(value) for value in values),
    "count": len,
}
"""By the first word of a link's title; without one, all rows that are meant have to agree."""
UNITS = {"%": 100.0, "ms": 1e3, "MiB": 2.0**-20, "MB": 1e-6, "GB": 1e-9, "%off": 100.0}


class Block(NamedTuple):
    """A paragraph, a list item or a row of a table."""

    line: int
    text: str
    about_section: str
    """What the comment under its heading says, or nothing."""


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page in order; code, fenced or indented, and headings are none."""
    about, gathered, start, in_code, in_comment = "", list[str](), 0, False, ""
    for number, line in enumerate([*page.splitlines(), ""], start=1):
        if line.startswith("<!--") or in_comment:
            in_comment += f" {line}".rstrip()
            if "-->" in line:
                found = SECTION.search(in_comment)
                about, in_comment = (found[1] if found else ""), ""
            line = ""
        if line.startswith("```"):
            in_code = not in_code
            line = ""
        if gathered and (in_code or not line.strip() or line.startswith(("#", "|", "- "))):
            yield Block(start, " ".join(gathered), about)
            gathered = []
        if line.startswith("#") and not in_code and not about.startswith("made by"):
            about = ""  # what a command made has an end mark
        elif line.strip() and not in_code and (gathered or not line.startswith("    ")):
            gathered, start = [*gathered, line], start if gathered else number


def unsourced(block: Block) -> list[str]:
    """The figures of a block that nothing vouches for."""
    if block.about_section.startswith(("rows ", *KINDS)) or SOURCES.search(block.text) or TEST.search(block.text):
        return []
    return [found[0] for found in FIGURE.finditer(LINK.sub("", block.text))]


def value_of(rows: list[dict[str, Any]], title: str) -> float:
    """What a link's title asks for: `[STATISTIC] FIELD [in UNIT] [over FIELD] [where FIELD=VALUE, ...]`."""
    asked, _, where = " ".join(title.split()).partition(" where ")  # a page's lines end anywhere
    words, _, unit = asked.partition(" in ")
    wanted = dict(pair.strip().split("=", 1) for pair in where.split(",")) if where else {}
    chosen = [row for row in rows if all(told(field(row, name)) == value for name, value in wanted.items())]
    first, _, rest = words.partition(" ")
    name, path = (first, rest) if first in STATISTICS else ("", words)
    values = [float(value) for row in chosen if isinstance(value := field(row, path), int | float)]
    if not values:
        raise ValueError(f"no row has {path} where {where}")
    if not name and len(set(values)) > 1:
        raise ValueError(f"{len(values)} rows have {path} where {where}: say which, or a statistic")
    return STATISTICS.get(name, lambda some: some[0])(values) * UNITS.get(unit, 1.0)


def field(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    found: Any = row
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def told(value: Any) -> str:
    """As a title writes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


KEY = ("case", "group", "variant", "run", "seed")
DESK_KEY = ("model", "test", "set", "how", "boxes", "optimizer", "rate", "at")
"""What tells one figure of a desk experiment from another."""
ACCURACIES = (
    "accuracy",
    "train_accuracy",
    "average_map",
    "average_map_one_class",
    "frame_map",
    "train_frame_map",
    "ridge",
    "motion",
    "error_to_mean_colour",
    "error_to_nearest_cube",
)
LOSSES = ("val_loss", "lowest_val_loss", "seen_loss", "loss")
"""Of a desk's rows, shown times 1,000."""


@cache
def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file: of each key the newest, as a report takes them."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({tuple(row.get(name) for name in (*KEY, *DESK_KEY)): row for row in rows}.values())


Seeds = tuple[float, ...]


@cache
def accuracies(path: Path) -> frozenset[Seeds]:
    """Percentages and losses of a desk experiment, a tuple over seeds for each figure, model, test, set and probe."""
    found: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for row in rows_of(path):
        for name in (*ACCURACIES, *LOSSES):
            if name in row:
                scale = 1000 if name in LOSSES else 100
                found[(name, *(row.get(key) for key in DESK_KEY))].append(scale * row[name])
    return frozenset(tuple(sorted(values)) for values in found.values())


def without_a_row(block: Block, page: Path) -> list[str]:
    """The cells and percentages of a block that no model, test, set and probe of its section's rows gives."""
    of_seeds = accuracies(page.parent / block.about_section.removeprefix("rows "))
    summaries = {(statistics.fmean(v), v[0], v[-1], len(v)) for v in of_seeds}
    wrong = []
    for shown, low, high, seeds in CELL.findall(block.text):
        if not any(
            agrees(shown, mean) and count == int(seeds) and (not low or (agrees(low, least) and agrees(high, most)))
            for mean, least, most, count in summaries
        ):
            wrong.append(shown)
    known = {value for mean, least, most, _ in summaries for value in (mean, least, most)}
    shares = [share for pair in SHARE.findall(CELL.sub("", block.text)) for share in pair if share]
    return wrong + [share for share in shares if not any(agrees(share, value) for value in known)]


def agrees(shown: str, value: float) -> bool:
    """Whether a shown figure is the value, rounded to the digits that are shown."""
    number = re.search(r"-?\d+(?:,\d{3})*(?:\.\d+)?", shown)
    assert number, f"{shown!r} shows no number"
    text = number[0].replace(",", "")
    digits = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10.0**-digits * (1 + 1e-9)
