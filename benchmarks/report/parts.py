"""What explains a speed-up: where the time of a step goes under each masking, and what the allocator adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase

from benchmarks.report import plots, words
from benchmarks.report.book import MASKS, Place, settings_key
from benchmarks.report.cells import Inline, Line, Name, Row, Source, cell, derived, say, spread
from benchmarks.report.page import Block, Figure, Items, Prose, table
from benchmarks.report.table2 import absent, pairs_of

CASE = "step_parts"
PASSES = (" forward", " backward")

Signed = list[tuple[str, Source]]
"""Terms of a sum."""


def time_of_parts(place: Place) -> Iterator[Block]:
    """A drawing and an explanation for each group of step_parts."""
    groups = place.groups(CASE)
    if not groups:
        yield absent(CASE)
    for group in sorted(groups, key=lambda name: settings_key(next(iter(groups[name].values())))):
        for row in groups[group].values():
            if row.get("error"):
                yield Prose((Name(group), " failed: ", Name(row.get("error"))), "note")
        rows = {variant: row for variant, row in groups[group].items() if row.get("segments_s")}
        if rows:
            names = list(next(iter(rows.values())).get("segments_s"))
            yield _drawing(group, rows, names, place)
            sentences = tuple(sentence for sentence in _explanation(rows, names) if sentence)
            if sentences:
                yield Items(sentences)


def _drawing(group: str, rows: dict[str, Row], names: Sequence[str], place: Place) -> Figure:
    fields: dict[Inline, str] = {**{Name(name): f"segments_s.{name}" for name in names}, "whole step": "time_s"}
    numbers = [[part, *(spread(row, field, "time") for row in rows.values())] for part, field in fields.items()]
    bars = [
        plots.Bar(MASKS.get(variant, variant), tuple((name, row.get(f"segments_s.{name}.median")) for name in names))
        for variant, row in rows.items()
    ]
    head = ("part", *(MASKS.get(variant) or Name(variant) for variant in rows))
    return Figure(
        plots.stacked(f"Where the time goes, {group}, {place.name}", bars, "seconds of a step"),
        (Name(group), ": medians of each part, in the order of a step."),
        table(head, numbers, ("The numbers",)),
    )


def _explanation(rows: dict[str, Row], names: Sequence[str]) -> Iterator[Line]:
    """What the seconds that dual masking saves are made of, from the medians of the parts."""
    before, after = rows.get("encoder_only"), rows.get("dual")
    if before is None or after is None:
        return
    saved = [*_sum(before, names, "+"), *_sum(after, names, "-")]
    shares: list[Inline] = []
    for kind in dict.fromkeys(_kind(name) for name in names):
        mine = [name for name in names if _kind(name) == kind]
        share = _combined("({})/({})", [[*_sum(before, mine, "+"), *_sum(after, mine, "-")], saved], "share")
        shares += [", " if shares else "", share, f" are in {kind}"]
    yield say(words.SAVED, _combined("{}", [saved], "time"), tuple(shares))
    decoder = [name for name in names if _kind(name) == "decoder"]
    took, takes, whole = _sum(before, decoder, "+"), _sum(after, decoder, "+"), _sum(before, names, "+")
    worked, works = (_sum(row, decoder, "+", "segment_flops.{}") for row in (before, after))
    yield say(
        words.DILUTED,
        _combined("({})/({})", [took, whole], "share"),
        _combined("({})/({})", [worked, works], "ratio"),
        _combined("({})/({})", [took, takes], "ratio"),
        _combined("({})/({}-({})*(1-({})/({})))", [whole, whole, took, works, worked], "ratio"),
        cell(after, "speedup.median", "ratio"),
        cell(after, "flop_ratio", "ratio"),
    )


def _kind(name: str) -> str:
    """`decoder forward` -> `decoder`."""
    for ending in PASSES:
        name = name.removesuffix(ending)
    return name


def _sum(row: Row, names: Sequence[str], sign: str, field: str = "segments_s.{}.median") -> Signed:
    return [(sign, (row, field.format(name))) for name in names]


def _combined(shape: str, sums: Sequence[Signed], quantity: str) -> Inline:
    """A formula over sums, one for each `{}` of its shape; a field that comes up twice has one letter."""
    letters: dict[Source, str] = {}
    for _, source in (term for terms in sums for term in terms):
        letters.setdefault(source, ascii_lowercase[len(letters)])
    filled = ["".join(sign + letters[source] for sign, source in terms).removeprefix("+") for terms in sums]
    return derived(shape.format(*filled), list(letters), quantity)


def allocator(place: Place) -> Iterator[Block]:
    """Groups that were measured with and without freed memory kept, side by side."""
    pairs = {group: (first, second) for group, first, second in pairs_of(place)}
    rows: list[list[Inline | Line]] = []
    for group, usual in pairs.items():
        kept = pairs.get(f"{group} kept")
        if kept is None:
            continue
        speedups = [(usual[1], "speedup.median"), (kept[1], "speedup.median")]
        ratio = (usual[1], "flop_ratio")
        rows.append(
            [
                Name(group),
                *(
                    derived("a/b-1", [(with_kept, "time_s.median"), (without, "time_s.median")], "change")
                    for with_kept, without in zip(kept, usual, strict=True)
                ),
                *(cell(*source, "ratio") for source in speedups),
                cell(*ratio, "ratio"),
                *(derived("a/b-1", [source, ratio], "change") for source in speedups),
            ]
        )
    if rows:
        yield Prose(say(words.ALLOCATOR))
        head = ("", "encoder-only, kept", "dual, kept", "speed-up", "speed-up, kept", "FLOP ratio")
        yield table((*head, "above FLOP ratio", "above FLOP ratio, kept"), rows)
