"""One section for each case that has no section of its own: what differs, times, memory, predictions, failures; and scaling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.case import MATMUL
from benchmarks.report import plots
from benchmarks.report.book import PAPER_CASE, Book, Place
from benchmarks.report.cells import (
    MISSING,
    Inline,
    Line,
    Name,
    Row,
    cell,
    clips,
    derived,
    gain,
    host,
    line,
    spread,
    with_range,
)
from benchmarks.report.dual import CASE
from benchmarks.report.page import Block, Figure, Prose, Section, Table, table, without_empty_columns
from benchmarks.report.parts import CASE as PARTS_CASE
from benchmarks.report.science import CASE as SCIENCE_CASE
from benchmarks.report.table1 import CASE as TABLE1_CASE
from benchmarks.report.table2 import absent
from benchmarks.report.visit import CASE as VISIT_CASE

WITH_SECTIONS_OF_THEIR_OWN = {CASE, PARTS_CASE, SCIENCE_CASE, TABLE1_CASE, PAPER_CASE, VISIT_CASE}

ABOUT = {
    "ceilings": "What the device reaches where nothing stands in its way: matrix products, and copies in its memory.",
    "peers": "The same work in transformers' VideoMAE, encoder-only, and in the published style, beside ours.",
    "attention": "Attention kernels alone, at the shapes of each tower.",
    "fp8": "Matrix products in eight bit against bf16 at the shapes of the largest size, alone and with the casts of a step.",
    "embed": "Embedding all cubes and selecting, against selecting and embedding what is visible.",
    "optimizer": "The update alone.",
    "checkpointing": "Recomputing activations: time against memory.",
    "compiled": "A dual step as it comes, with compiled blocks, and as a CUDA graph.",
    "zero": "ZeRO stages over ranks: time, memory, bytes sent, and the planner's prediction beside each.",
    "data": "Decoding, transforming and loading clips on processor cores.",
    "pipeline": "From videos to batches on one core, beside the published way: Pillow frame by frame and float pixels.",
    "loader": "What the loader takes besides processor time: a run's first batch, memory of its processes, growth.",
    "loader_rate": "Clips that the loader delivers, by its number of workers.",
    "checkpoint": "Saving, resuming and exporting.",
    "real_run": "A run under the launcher, from videos to checkpoints, killed on the way and gone on with.",
    "ranks": "One rank's part of what grows with the number of ranks, up to thousands, with stand-ins for the others.",
    "guards": "What looking for spikes and hangs adds to a step.",
    "extraction": "Features of long videos, each frame decoded once, beside each window decoded anew, as published.",
    "tad_score": "Reading and scoring detections in long videos, beside plain Python loops and ActionFormer's scorer of PyPI.",
    "ava_score": "Reading and scoring up to 26 million rows of people and actions, beside the published way, frame by frame.",
    "science": "Whether the papers' claims hold for a small model, over seeds.",
    "planner": "Time and memory of a step by the planner, and how far they are from the measured ones.",
    "prediction": "Step times of other sizes from rates fitted to one size, and how far they are from measured ones.",
}
"""What a case asks; cases without a line here go without."""

TITLES = {"zero": "ZeRO", "science": "The papers' claims at desk size", "fp8": "Eight-bit products"}
SAME_FOR_THE_READER = {"samples", "clip"}
RANKS = re.compile(r"\b\d+ ranks?\b,?\s*")
SCALINGS = {"weak": "a/b", "strong": "a*c/(b*d)"}
"""Kind -> efficiency: a time on the fewest ranks (c) over b time on more (d)."""


def case_sections(book: Book) -> Iterator[Section]:
    """Place by place, in the order of ABOUT; a case without rows anywhere says how to make them."""
    for place in book.places:
        for case in sorted(place.cases, key=[*ABOUT, *place.cases].index):
            if case not in WITH_SECTIONS_OF_THEIR_OWN:
                yield _section(case, place, titled=len(book.places) > 1)
    measured = {case for place in book.places for case in place.cases}
    for case in ABOUT:
        if case not in measured:
            yield Section((_title(case),), (absent(case),))


def _title(case: str) -> str:
    return TITLES.get(case, case.replace("_", " ").capitalize())


def _section(case: str, place: Place, *, titled: bool) -> Section:
    groups = place.groups(case)
    blocks: list[Block] = [Prose((ABOUT[case],))] if case in ABOUT else []
    blocks.append(_table(groups))
    blocks += [Prose(text, "note") for text in _notes([row for rows in groups.values() for row in rows.values()])]
    settings = _settings_table(groups)
    blocks += [settings] if settings.rows else []
    blocks += _scaling(groups, place)
    where: Line = (" on ", Name(place.name)) if titled else ()
    return Section((_title(case), *where), tuple(blocks))


def _notes(rows: Sequence[Row]) -> Iterator[Line]:
    """What predictions come from, each with its variants where there are several, and what MFU is over."""
    predicted = _variants_by(rows, "predicted.source")
    for source, variants in predicted.items():
        of: Line = (" of ", *_listed(variants)) if len(predicted) > 1 else ()
        yield ("Predictions", *of, ": ", Name(source), ". Residuals are predicted over measured, minus one.")
    peaks = _variants_by(rows, "mfu.peak_source")
    if peaks:
        yield ("MFU is a share of the rate of: ", *_listed(peaks), ".")


def _variants_by(rows: Sequence[Row], path: str) -> dict[str, dict[str, None]]:
    """Variants by what their rows say at a path; those that say nothing are left out."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get(path):
            found.setdefault(str(row.get(path)), {})[str(row.get("variant"))] = None
    return found


def _listed(names: Iterable[str]) -> Line:
    return tuple(part for name in names for part in ("; ", Name(name)))[1:]


def _beside(row: Row, prediction: str, quantity: str, residual: str) -> Line:
    """A prediction and, behind it, how far it is from what was measured."""
    predicted = cell(row, f"predicted.{prediction}", quantity)
    off = cell(row, f"residual.{residual}", "change")
    return (predicted,) if off == MISSING else (predicted, ", ", off)


COLUMNS: dict[str, Callable[[Row], Inline | Line]] = {
    "time": lambda row: spread(row, "time_s", "time"),
    "speed-up": lambda row: gain(row)[0],
    "FLOP ratio": lambda row: gain(row)[1],
    "MFU": lambda row: spread(row, "mfu", "share") if row.get("variant") != MATMUL else MISSING,
    "of a measured product": lambda row: spread(row, "mfu_measured", "share"),
    "most memory": lambda row: cell(row, "memory.peak_bytes", "bytes"),
    "host time": host,
    "launches": lambda row: cell(row, "launches", "plain"),
    "clips": clips,
    "predicted time, residual": lambda row: _beside(row, "time_s", "time", "time"),
    "predicted memory, residual": lambda row: _beside(row, "peak_bytes", "bytes", "memory"),
    "predicted bytes sent, residual": lambda row: _beside(row, "comm_bytes", "bytes", "comm"),
}
"""What a row may have; columns that none has are left out."""


def _table(groups: Mapping[str, Mapping[str, Row]]) -> Table:
    every = [row for rows in groups.values() for row in rows.values()]
    every_name = dict.fromkeys(name for row in every for name in row.get("values") or {})
    names = [name for name in every_name if _without_end(name) == name or _without_end(name) not in every_name]
    lines: list[list[Inline | Line]] = []
    for group, rows in groups.items():
        lines.append([Name(group)])
        for variant, row in rows.items():
            if row.get("error"):
                lines.append([Name(variant), ("failed: ", Name(row.get("error")))])
                continue
            if row.get("config.not_possible"):
                lines.append([Name(variant), ("not possible here: ", Name(row.get("config.not_possible")))])
                continue
            columns = [column(row) for column in COLUMNS.values()]
            lines.append([Name(variant), *columns, *(_value(row, name) for name in names)])
    head: list[Inline | Line] = ["variant", *COLUMNS, *((Name(name),) for name in names)]
    return without_empty_columns(table(head, lines), (MISSING,))


ENDS = ("_low", "_high")
"""Fields of `values` that say between what another one lies."""


def _without_end(name: str) -> str:
    return next((name.removesuffix(end) for end in ENDS if name.endswith(end)), name)


def _value(row: Row, name: str) -> Line:
    low, high = (f"values.{name}{end}" for end in ENDS)
    quantity = quantity_of(name)
    return with_range(cell(row, f"values.{name}", quantity), row, (low, high), quantity)


ENDINGS = {
    "bytes": "bytes",
    "bytes_per_s": "byte rate",
    "flops_per_s": "rate",
    "_per_s": "number rate",
    "_per_s_per_core": "number rate",
    "_per_s_per_worker": "number rate",
    "_s": "time",
    "_ratio": "ratio",
    "share": "share",
    "efficiency": "share",
}


def quantity_of(name: str) -> str:
    """How a number of `values` is shown, from the unit in its name."""
    return next((quantity for ending, quantity in ENDINGS.items() if name.endswith(ending)), "plain")


def _settings_table(groups: Mapping[str, Mapping[str, Row]]) -> Table:
    """What the variants of each group do not share, folded; without rows where they share everything."""
    lines: list[list[Inline | Line]] = []
    for group, rows in groups.items():
        shown = [row for row in rows.values() if not row.get("error") and row.get("variant") != MATMUL]
        paths = _differing(shown)
        if paths:
            lines.append([Name(group)])
            lines += [[Name(str(row.get("variant"))), _settings(row, paths)] for row in shown]
    return table(("variant", "settings"), lines, ("What differs between the variants of a group",), folded=True)


def _leaves(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of settings, nested ones too."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def _differing(rows: Sequence[Row]) -> list[str]:
    """Paths of settings that the rows do not share; a nested one that a plain one of its name repeats is left out."""
    configs = [dict(_leaves(row.get("config") or {}, "config")) for row in rows]
    paths = dict.fromkeys(path for config in configs for path in config)
    names = {path: _names(path) for path in paths}
    return [
        path
        for path in paths
        if any(config.get(path) != configs[0].get(path) for config in configs)
        and names[path][-1] not in SAME_FOR_THE_READER
        and (path.count(".") == 1 or "config." + ".".join(names[path]) not in paths)
    ]


def _names(path: str) -> list[str]:
    """`config.zero_optimization.offload_param.device` -> offload_param, device; `config.stage` -> stage."""
    keys = path.split(".")[1:]
    return keys[1:] or keys


def _settings(row: Row, paths: Sequence[str]) -> Line:
    """`visible 160, mask dual`: numbers as cells."""
    parts: list[Inline] = []
    for path in paths:
        value = row.get(path)
        if value is None:
            continue
        names = [part for name in _names(path) for part in (Name(name), " ")]
        parts += [*([", "] if parts else []), *names, *_setting(row, path, value)]
    return tuple(parts) or (MISSING,)


def _setting(row: Row, path: str, value: Any) -> Line:
    if isinstance(value, bool):
        return ("yes" if value else "no",)
    if isinstance(value, list):
        if not value:
            return ("none",)
        return tuple(
            part for number, each in enumerate(value) for part in (" ", *_setting(row, f"{path}.{number}", each))
        )[1:]
    return line(cell(row, path, "plain") if isinstance(value, (int, float)) else Name(str(value)))


def _scaling(groups: Mapping[str, Mapping[str, Row]], place: Place) -> Iterator[Block]:
    """Weak and strong scaling over ranks, efficiency over the fewest ranks measured."""
    for kind, formula in SCALINGS.items():
        found: dict[tuple[str, str], list[Row]] = {}
        for group, rows in groups.items():
            if group.split()[0] == kind:
                for variant, row in rows.items():
                    if not row.get("error") and row.get("time_s"):
                        found.setdefault((_without_ranks(group), _without_ranks(variant)), []).append(row)
        several = len({group for group, _ in found}) > 1
        series = {
            f"{group.removeprefix(kind)} {variant}".strip() if several else variant: sorted(
                rows, key=lambda row: row.get("ranks")
            )
            for (group, variant), rows in found.items()
            if len(_ranks(rows)) > 1
        }
        if series:
            yield _scaling_figure(kind, formula, series, place)


def _without_ranks(name: str) -> str:
    return RANKS.sub("", name).strip()


def _ranks(rows: Sequence[Row]) -> set[int]:
    return {row.get("ranks") for row in rows}


def _scaling_figure(kind: str, formula: str, series: Mapping[str, Sequence[Row]], place: Place) -> Figure:
    lines: list[list[Inline | Line]] = []
    drawn: list[plots.Series] = []
    for name, rows in series.items():
        points = []
        for row in rows:
            one = rows[0]
            sources = [(one, "time_s.median"), (row, "time_s.median"), (one, "ranks"), (row, "ranks")]
            efficiency = derived(formula, sources[: 2 if kind == "weak" else 4], "share")
            lines.append(
                [
                    Name(str(row.get("group"))),
                    Name(str(row.get("variant"))),
                    cell(row, "ranks", "plain"),
                    spread(row, "time_s", "time"),
                    efficiency,
                ]
            )
            points.append(plots.Point(row.get("ranks"), 100 * getattr(efficiency, "value", 0.0)))
        drawn.append(plots.Series(name, tuple(points)))
    about = {
        "weak": "Weak scaling: every rank has the same work, so the ideal is the same time.",
        "strong": "Strong scaling: the same work over more ranks, so the ideal is time falling with their number.",
    }[kind]
    svg = plots.curves(f"{kind} scaling, {place.name}", drawn, "ranks", "efficiency (%)", level=(100, "ideal"))
    caption: Line = (about, " Efficiency is over the fewest ranks measured.")
    return Figure(svg, caption, table(("group", "variant", "ranks", "step", "efficiency"), lines, ("The numbers",)))
