"""The rows of the desk experiment as Markdown: mean and range over seeds."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from benchmarks.record import Row


def key_of(row: Row) -> tuple[object, ...]:
    """What a row is of; two with the same are the same measurement, by commands that ran beside each other."""
    return tuple(row[name] for name in ("model", "seed", "test", "set", "how"))


def markdown(rows: list[Row]) -> str:
    """A table for each test, a line per model, a column per set and probe: mean (lowest to highest) over seeds, in percent."""
    rows = list({key_of(row): row for row in rows}.values())
    return "\n\n".join(
        _table(test, [row for row in rows if row["test"] == test]) for test in ("leave one out", "unseen")
    )


def _table(test: str, rows: list[Row]) -> str:
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    videos: dict[str, int] = {}
    for row in rows:
        column = f"{row['set']}, {row['how']}"
        cells[row["model"], column].append(100 * row["accuracy"])
        videos[column] = row["videos"]
    models = list(dict.fromkeys(model for model, _ in cells))
    lines = [f"| {test} | " + " | ".join(f"{column} (n = {count})" for column, count in videos.items()) + " |"]
    lines.append("|---" * (1 + len(videos)) + "|")
    for model in models:
        lines.append(f"| {model} | " + " | ".join(_cell(cells.get((model, column), [])) for column in videos) + " |")
    return "\n".join(lines)


def _cell(found: list[float]) -> str:
    if not found:
        return ""
    if len(found) == 1:
        return f"{found[0]:.1f}"
    return f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f}; {len(found)})"
