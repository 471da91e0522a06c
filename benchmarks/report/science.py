"""The section of the case `science`: what came of each way to pre-train, and what that says of the papers' sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.report import plots, words
from benchmarks.report.book import Place
from benchmarks.report.cells import MISSING, Inline, Line, Name, Row, cell, derived, say, with_range
from benchmarks.report.page import Block, Figure, Prose, Section, Table, table, without_empty_columns

CASE, SUMMARY = "science", "summary"
OVER_SEEDS, CLAIM = "over seeds: ", "claim: "
ACCURACIES = {
    "motion": "motion", "mean": "mean token", "one_frame": "one frame", "real_motion": "listed clips, motion",
    "real_mean": "listed clips, mean token", "real_one_frame": "listed clips, one frame",
}  # fmt: skip
ERRORS = {"error_to_mean_colour": "error over mean colour", "error_to_nearest_cube": "error over nearest cube"}
COSTS = {"steps": "plain", "flops": "flops", "cpu_s": "time"}
DRAWN = ("error_to_mean_colour", "motion", "mean", "real_motion")
"""A drawing each."""


def science(place: Place) -> Section | None:
    """None where the case has no rows."""
    groups = place.groups(CASE)
    if not groups:
        return None
    return Section(("The papers' claims at desk size",), tuple(_blocks(groups, place)))


def _blocks(groups: Mapping[str, Mapping[str, Row]], place: Place) -> Iterator[Block]:
    summary = groups.get(SUMMARY, {})
    runs = [row for group, rows in groups.items() if group != SUMMARY for row in rows.values()]
    for row in runs:
        if row.get("error"):
            yield Prose((Name(str(row.get("group"))), " failed: ", Name(str(row.get("error")))), "note")
    runs = [row for row in runs if not row.get("error")]
    variants = {str(row.get("config.of")): row for name, row in summary.items() if name.startswith(OVER_SEEDS)}
    claims = [row for name, row in summary.items() if name.startswith(CLAIM)]
    chance = derived("1/a", [(runs[0], "config.classes")], "share") if runs else MISSING
    yield Prose(say(words.SCIENCE, Name("motion"), Name("mean"), Name("one_frame"), chance))
    if not variants:
        yield Prose(("The rows have no summary yet: the same command adds it.",), "note")
        return
    yield _table(variants, runs)
    if claims:
        yield Prose(
            say(
                words.SCIENCE_RULE,
                cell(claims[0], "config.margin", "plain"),
                cell(claims[0], "config.least_seeds", "plain"),
            )
        )
        yield from _verdicts(claims)
    yield from _drawings(runs, place)


def _table(variants: Mapping[str, Row], runs: list[Row]) -> Table:
    parts = {str(row.get("variant")): row.get("config.ablation") for row in runs}
    lines: list[list[Inline | Line]] = []
    for part in dict.fromkeys(parts.get(variant) for variant in variants):
        lines.append([Name(part) if part else "untrained"])
        for variant, row in variants.items():
            if parts.get(variant) == part:
                costs = [cell(row, f"values.{name}", quantity) for name, quantity in COSTS.items()]
                accuracies = [_ranged(row, name, "share") for name in ACCURACIES]
                errors = [_ranged(row, name, "ratio") for name in ERRORS]
                lines.append([Name(variant), cell(row, "values.seeds", "plain"), *costs, *accuracies, *errors])
    head = ("", "seeds", "steps", "work", "processor time", *ACCURACIES.values(), *ERRORS.values())
    return without_empty_columns(table(head, lines), (MISSING,))


def _ranged(row: Row, name: str, quantity: str) -> Line:
    middle = cell(row, f"values.{name}", quantity)
    ends = (f"values.{name}_low", f"values.{name}_high")
    return (middle,) if row.get("values.seeds") == 1 else with_range(middle, row, ends, quantity)


def _verdicts(claims: list[Row]) -> Iterator[Table | Prose]:
    """The sentences on accuracy, and apart from them what the error on hidden cubes says where they compare."""
    parts = {
        False: "What the papers' sentences say of accuracy",
        True: "The same sentences, asked of the error on hidden cubes",
    }
    head = ("sentence", "of", "difference of", "in", "claims", "seeds", "points", "detectable", "p, Holm", "these rows")
    for of_errors, caption in parts.items():
        rows = [row for row in claims if (row.get("config.metric") in ERRORS) == of_errors]
        trained = [row for row in rows if row.get("values.seeds")]
        yield table(head, [_verdict(row) for row in trained], (caption,))
        if left := [row for row in rows if row not in trained]:
            yield Prose((f"{caption}: not asked, since one side was not trained: ", *_listed(left), "."), "note")


def _listed(rows: list[Row]) -> Line:
    names = [(Name(str(row.get("config.first"))), " less ", Name(str(row.get("config.second")))) for row in rows]
    return tuple(part for name in names for part in ("; ", *name))[1:]


def _verdict(row: Row) -> list[Inline | Line]:
    verdict: Line = (Name(str(row.get("config.verdict"))),)
    if row.get("config.verdict") != "cannot tell" and row.get("config.holds_corrected") is False:
        verdict = (*verdict, ", not after correction")
    if row.get("config.above_random") is False:
        verdict = (*verdict, ": neither is above a random encoder")
    metric, ends = str(row.get("config.metric")), ("values.difference_low", "values.difference_high")
    return [
        Name(str(row.get("config.sentence"))), Name(str(row.get("config.source"))),
        (Name(str(row.get("config.first"))), " less ", Name(str(row.get("config.second")))),
        {**ACCURACIES, **ERRORS}[metric], Name(str(row.get("config.kind"))),
        cell(row, "values.seeds", "plain"),
        with_range(cell(row, "values.difference", "points"), row, ends, "points"),
        cell(row, "values.detectable", "plain"), cell(row, "values.p_holm", "plain"), verdict,
    ]  # fmt: skip


def _drawings(runs: list[Row], place: Place) -> Iterator[Figure]:
    for metric in DRAWN:
        found: dict[str, list[Row]] = {}
        for row in runs:
            if row.get(f"values.{metric}") is not None:
                found.setdefault(str(row.get("variant")), []).append(row)
        if found:
            yield _drawing(metric, found, place)


def _drawing(metric: str, found: Mapping[str, list[Row]], place: Place) -> Figure:
    of_error, what = metric in ERRORS, {**ACCURACIES, **ERRORS}[metric]
    quantity, scale, unit = ("ratio", 1, "times") if of_error else ("share", 100, "named right (%)")
    dots = [
        plots.OverSeeds(name, tuple(scale * row.get(f"values.{metric}") for row in rows))
        for name, rows in found.items()
    ]
    numbers = [
        [Name(name), tuple(part for row in rows for part in (" ", cell(row, f"values.{metric}", quantity)))[1:]]
        for name, rows in found.items()
    ]
    about = "Error on hidden cubes of unseen videos: " if of_error else "Accuracy of ridge on frozen features: "
    caption: Line = (about, what, ". A ring a seed, a bar the mean.")
    drawing = plots.over_seeds(f"{what}, {place.name}", dots, unit)
    return Figure(drawing, caption, table(("", "seeds in order"), numbers, ("The numbers",)))
