"""Dual masking measured on one device: every size, precision, kernel and allocator, in tables and drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from benchmarks.case import MATMUL
from benchmarks.report import plots, words
from benchmarks.report.book import MASKS, SIZES, Place, is_kept, settings_key
from benchmarks.report.cells import (
    MISSING,
    Code,
    Inline,
    Line,
    Name,
    Row,
    cell,
    clips,
    derived,
    gain,
    host,
    say,
    spread,
)
from benchmarks.report.page import Block, Figure, Prose, Section, table, without_empty_columns
from benchmarks.report.parts import allocator, time_of_parts
from benchmarks.report.table2 import absent, pairs_of

CASE = "dual_masking"


def dual_masking(place: Place) -> Section:
    """The measured side of dual masking."""
    title = ("Dual masking on ", Name(place.name))
    if not place.groups(CASE):
        return Section(title, (absent(CASE),))
    parts = (
        Section(("Steps",), (*_steps(place), *_figures(place)), 3),
        Section(("Where the time goes",), tuple(time_of_parts(place)), 3),
        Section(("What the allocator does",), tuple(allocator(place)), 3),
    )
    return Section(title, (Prose(say(words.STEPS, Code("kept"))),), parts=tuple(part for part in parts if part.blocks))


def _groups(place: Place) -> dict[str, list[Row]]:
    """Rows of each masking by group, failed ones too, groups in the usual order."""
    groups = place.groups(CASE)
    order = sorted(groups, key=lambda group: settings_key(next(iter(groups[group].values()))))
    return {group: [row for row in groups[group].values() if row.get("variant") != MATMUL] for group in order}


def _masking(row: Row) -> Inline:
    return MASKS.get(row.get("variant")) or Name(str(row.get("variant")))


def _steps(place: Place) -> Iterator[Block]:
    steps: list[list[Inline | Line]] = []
    work: list[list[Inline | Line]] = []
    for group, rows in _groups(place).items():
        steps.append([Name(group)])
        if not all(row.get("error") for row in rows):
            work.append([Name(group)])
        for row in rows:
            if row.get("error"):
                steps.append([_masking(row), ("failed: ", Name(row.get("error")))])
                continue
            speedup, flop_ratio = gain(row)
            over = [(row, "speedup.median"), (row, "flop_ratio")]
            steps.append(
                [
                    _masking(row),
                    spread(row, "time_s", "time"),
                    speedup,
                    flop_ratio,
                    derived("a/b-1", over, "change") if flop_ratio != MISSING else MISSING,
                    spread(row, "mfu", "share"),
                    spread(row, "mfu_measured", "share"),
                    cell(row, "memory.peak_bytes", "bytes"),
                    host(row),
                    cell(row, "launches", "plain"),
                    clips(row),
                ]
            )
            source = row.get("mfu.peak_source")
            work.append(
                [
                    _masking(row),
                    cell(row, "flops", "flops"),
                    cell(row, "flops_counted", "flops"),
                    derived("a/b-1", [(row, "flops_counted"), (row, "flops")], "residual"),
                    cell(row, "flops_per_s", "rate"),
                    cell(row, "mfu.peak_flops", "rate"),
                    Name(source) if source else MISSING,
                ]
            )
    head = ("masking", "step", "speed-up", "FLOP ratio", "speed-up over FLOP ratio", "MFU", "of a measured product")
    head = (*head, "most memory of a step", "host time", "launches", "clips")
    yield without_empty_columns(table(head, steps), (MISSING,))
    head = (
        "masking",
        "FLOPs, closed form",
        "counted by torch",
        "counted over closed",
        "achieved",
        "MFU is over",
        "which is",
    )
    about = ("FLOPs of a step, closed form and counted, and the rate that MFU is a share of",)
    yield without_empty_columns(table(head, work, about, folded=True), (MISSING,))


def _figures(place: Place) -> Iterator[Block]:
    best = fastest(place, "size", "precision")
    chosen = [rows for group, rows in _groups(place).items() if group.removesuffix(" kept") in best]
    drawable = [row for rows in chosen for row in rows if not row.get("error")]
    yield from _ratios(place, [row for row in drawable if gain(row)[1] != MISSING])
    yield from _mfu(place, [row for row in drawable if row.get("mfu") and row.get("flops") and not is_kept(row)])
    yield from _memory(place)


def _series(
    rows: list[Row], name_of: Callable[[Row], str], point_of: Callable[[Row], plots.Point]
) -> list[plots.Series]:
    found: dict[str, list[plots.Point]] = {}
    for row in rows:
        found.setdefault(name_of(row), []).append(point_of(row))
    return [plots.Series(name, tuple(points)) for name, points in found.items()]


def _spread_point(row: Row, x: float, field: str, factor: float = 1) -> plots.Point:
    median, low, high = (factor * row.get(f"{field}.{part}") for part in ("median", "low", "high"))
    return plots.Point(x, median, low, high)


def _kind(row: Row) -> str:
    size, precision = row.get("config.size"), row.get("config.precision")
    return f"{SIZES.get(size, size)} {precision}"


def _ratios(place: Place, rows: list[Row]) -> Iterator[Figure]:
    """Speed-up against FLOP ratio, of the fastest kernel for each size and precision."""
    series = _series(
        rows,
        lambda row: _kind(row) + ", kept" * is_kept(row),
        lambda row: _spread_point(row, row.get("flop_ratio"), "speedup"),
    )
    if series:
        numbers = [[Name(str(row.get("group"))), _masking(row), gain(row)[1], gain(row)[0]] for row in rows]
        caption = "Speed-up against FLOP ratio, with the fastest kernel of each size and precision; bars are quartiles."
        yield Figure(
            plots.ratios(f"Speed-up against FLOP ratio, {place.name}", series),
            (caption, " Above the dashed line a step saves more time than arithmetic."),
            table(("group", "masking", "FLOP ratio", "speed-up"), numbers, ("The numbers",)),
        )


def _mfu(place: Place, rows: list[Row]) -> Iterator[Figure]:
    """Share of the peak against the work of a step, of the fastest kernel for each size and precision."""
    series = _series(
        rows,
        lambda row: f"{MASKS.get(row.get('variant'), row.get('variant'))}, {row.get('config.precision')}",
        lambda row: _spread_point(row, row.get("flops") / 1e9, "mfu", 100),
    )
    if series:
        numbers = [
            [Name(str(row.get("group"))), _masking(row), cell(row, "flops", "flops"), spread(row, "mfu", "share")]
            for row in rows
        ]
        title = f"MFU against FLOPs of a step, {place.name}"
        roof = _roof(rows)
        labels = ("GFLOP of a step", f"share of {roof} (%)")
        yield Figure(
            plots.curves(title, series, *labels, level=(100, roof.split(maxsplit=1)[1]), log_x=True, joined=False),
            (f"MFU, a share of {roof}, with the fastest kernel of each size and precision.",),
            table(("group", "masking", "FLOPs of a step", "MFU"), numbers, ("The numbers",)),
        )


def _roof(rows: Iterable[Row]) -> str:
    """What MFU is a share of."""
    sources = {str(row.get("mfu.peak_source")) for row in rows}
    return "a large matrix product" if any("matrix product" in each for each in sources) else "the device's peak"


def _memory(place: Place) -> Iterator[Figure]:
    """Memory against batch, a drawing for each size and precision of which several batches were measured."""
    found: dict[str, list[Row]] = {}
    for rows in _groups(place).values():
        for row in rows:
            if not row.get("error") and row.get("memory.peak_bytes") is not None and not is_kept(row):
                found.setdefault(_kind(row), []).append(row)
    for kind, rows in found.items():
        if len({row.get("config.batch_size") for row in rows}) < 2:
            continue
        series = _series(
            rows,
            lambda row: f"{row.get('config.attention_decoder')}, {MASKS.get(row.get('variant'), row.get('variant'))}",
            lambda row: plots.Point(row.get("config.batch_size"), row.get("memory.peak_bytes") / 2**20),
        )
        numbers = [
            [
                Name(str(row.get("group"))),
                _masking(row),
                cell(row, "config.batch_size", "plain"),
                cell(row, "memory.peak_bytes", "bytes"),
            ]
            for row in rows
        ]
        title = f"Memory against batch, {kind}, {place.name}"
        yield Figure(
            plots.curves(title, series, "clips in a step", "most memory of a step (MiB)"),
            ("Most memory of a step, above what was held before it, against the batch: ", *_named(rows[0]), "."),
            table(("group", "masking", "clips", "most memory"), numbers, ("The numbers",)),
        )


def _named(row: Row) -> Line:
    size = row.get("config.size")
    return (SIZES.get(size) or Name(str(size)), " ", Name(str(row.get("config.precision"))))


def fastest(place: Place, *settings: str, kept: bool = False) -> Mapping[str, Row]:
    """The groups with the shortest dual step per clip for each value of `settings`, and their dual rows; `kept`: also where
    malloc keeps freed memory, which takes the allocator out of a figure. Groups that waited for the host are left out: they
    tell nothing of the device.
    """
    best: dict[tuple[str, ...], tuple[str, Row]] = {}
    for group, first, dual in pairs_of(place):
        if first.get("host_bound") or dual.get("host_bound"):
            continue
        key = tuple(str(dual.get(f"config.{setting}")) for setting in settings)
        if (kept or not is_kept(dual)) and (key not in best or _per_clip(dual) < _per_clip(best[key][1])):
            best[key] = (group, dual)
    return dict(best.values())


def _per_clip(row: Row) -> float:
    return row.get("time_s.median") / row.get("config.batch_size")
