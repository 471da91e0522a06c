"""The paper's Table 2 with ours beside it: FLOPs, memory and speed-up of dual over encoder-only masking."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import words
from benchmarks.report.book import MASKS, PAPER_CASE, SIZES, Book, Place, command_for, is_kept, settings_key
from benchmarks.report.cells import (
    MISSING,
    Code,
    Inline,
    Line,
    Name,
    Row,
    cell,
    derived,
    quoted,
    say,
    spread,
    with_range,
)
from benchmarks.report.page import Block, Items, Prose, Section, table

SIZES_IN_PAPER = ("base", "giant")
PAIR = ("encoder_only", "dual")
HELD = "values.held_bytes_counted"

PUBLISHED_HELD = "values.published_held_bytes_counted"

COMPUTED_MEMORY = (
    ("published forward pass, counted on a fake CUDA device", "math", PUBLISHED_HELD),
    ("published loop, closed form of its peak", "math", "values.published_loop_peak_bytes"),
    ("ours, math attention, counted on a fake CUDA device", "math", HELD),
    ("ours, math attention, closed form", "math", "values.held_bytes"),
    ("ours, flash attention, counted on a fake CUDA device", "flash", HELD),
    ("ours, flash attention, closed form", "flash", "values.held_bytes"),
)
"""What, attention, field."""

Pair = tuple[Row | None, Row | None]
"""Encoder-only, dual."""
TableRow = list[Inline | Line]


def table2(book: Book) -> Section:
    """What dual masking saves: published, ours, and how far the two are apart."""
    parts = (
        Section(("FLOPs",), tuple(_flops(book)), 3),
        Section(("Memory",), tuple(_memory(book)), 3),
        Section(("Time",), tuple(_time(book)), 3),
    )
    title = ("The paper's ", book.paper.title("table2"), " with ours beside it")
    return Section(title, (Prose(say(words.TABLE2)),), parts=parts)


def _published(book: Book, size: str) -> tuple[Row, Row]:
    rows = book.paper.rows("table2")
    return rows[f"{size} encoder_only"], rows[f"{size} dual"]


def _flops(book: Book) -> Iterator[Block]:
    rows: list[TableRow] = []
    for size in SIZES_IN_PAPER:
        published = _published(book, size)
        field = f"values.{published[0].get('convention')}"
        ours = [book.computed.find(PAPER_CASE, f"flops {size}", str(quote.get("ours"))) for quote in published]
        rows.append([SIZES[size]])
        for mask, quote, row in zip(PAIR, published, ours, strict=True):
            counted = [(row, "values.macs_ours_counted"), (row, "values.macs_ours")]
            rows.append(
                [
                    MASKS[mask],
                    quoted(quote, "macs", "macs"),
                    cell(row, field, "macs"),
                    derived("a/b-1", [(row, field), (quote, "macs.value")], "residual"),
                    "with" if field.endswith("norms") else "without",
                    cell(row, "values.macs_ours", "macs"),
                    cell(row, "values.macs_ours_counted", "macs"),
                    derived("a/b-1", counted, "residual"),
                ]
            )
        both = [(row, field) for row in ours] + [(quote, "macs.value") for quote in published]
        rows.append(
            [
                "ratio",
                _ratio(published, "macs.value"),
                derived("a/b", both[:2], "ratio"),
                derived("a/b/(c/d)-1", both, "residual"),
                "",
                *(
                    derived("a/b", [(row, f"values.{name}") for row in ours], "ratio")
                    for name in ("macs_ours", "macs_ours_counted")
                ),
                "",
            ]
        )
    head = (
        "",
        "paper",
        "closed form",
        "residual",
        "norms",
        "visible cubes embedded",
        "that, counted",
        "counted over closed",
    )
    yield table(head, rows)
    if not any(book.computed.groups(PAPER_CASE).get(f"flops {size}") for size in SIZES_IN_PAPER):
        yield absent(PAPER_CASE)
    yield Prose(say(words.FLOPS, Code("FlopCounterMode")), "note")


def _memory(book: Book) -> Iterator[Block]:
    rows: list[TableRow] = []
    for size in SIZES_IN_PAPER:
        published = _published(book, size)
        rows.append([SIZES[size]])
        rows.append(["paper", *_pair(published, "bytes.value"), "", "", ""])
        for about, attention, field in COMPUTED_MEMORY:
            pair = computed_memory(book, size, attention)
            if all(row and row.get(field) is not None for row in pair):
                rows.append([about, *_pair(pair, field), *_residuals(pair, field, published)])
        for group, pair in _measured(book, size):
            peaks = [derived("a/b", [(row, "memory.peak_bytes"), (row, "config.batch_size")], "bytes") for row in pair]
            if MISSING not in peaks:
                what = ("measured, most of a step over its clips: ", *group)
                rows.append([what, *peaks, _ratio(pair, "memory.peak_bytes"), "", "", ""])
    yield table(
        ("", "encoder-only", "dual", "ratio", "residual, encoder-only", "residual, dual", "residual, ratio"), rows
    )
    if not any(book.computed.groups(PAPER_CASE).get(f"memory {size}") for size in SIZES_IN_PAPER):
        yield absent(PAPER_CASE)
    sentences = tuple(sentence for size in SIZES_IN_PAPER for sentence in _about_memory(book, size) if sentence)
    if sentences:
        mebi = derived("1024*1024/(1000*1000)-1", [], "share")
        yield Prose(say(words.MEMORY, mebi, *map(Code, ("float32", "fp16", "bf16", "fp32"))))
        yield Items(sentences)


def _pair(pair: Pair, field: str) -> TableRow:
    return [cell(pair[0], field, "bytes"), cell(pair[1], field, "bytes"), _ratio(pair, field)]


def _residuals(pair: Pair, field: str, published: Pair) -> TableRow:
    """Over the published figures: encoder-only, dual, and their ratio."""
    ours = [(row, field) for row in pair]
    quotes = [(quote, "bytes.value") for quote in published]
    return [
        *(derived("a/b-1", each, "change") for each in zip(ours, quotes, strict=True)),
        derived("a/b/(c/d)-1", [*ours, *quotes], "change"),
    ]


def _about_memory(book: Book, size: str) -> Iterator[Line]:
    pairs = [computed_memory(book, size, attention) for attention in ("math", "flash")]
    every = [(row, HELD) for pair in pairs for row in pair]
    shown = [part for pair in pairs for part in _pair(pair, HELD)]
    yield say(words.MEMORY_OF_SIZE, SIZES[size], *shown, derived("1-(c-d)/(a-b)", every, "share"))
    told: set[str] = set()
    for group, pair in _measured(book, size):
        kernel = str(pair[0].get("config.attention_decoder"))
        if kernel not in told:  # the first of each kernel: the others say the same of other precisions
            told.add(kernel)
            clips = cell(pair[0], "config.batch_size", "plain")
            yield say(words.MEMORY_MEASURED, SIZES[size], group, clips, *_pair(pair, "memory.peak_bytes"))


def _time(book: Book) -> Iterator[Block]:
    rows: list[TableRow] = []
    absent_sizes = []
    for size in SIZES_IN_PAPER:
        published = _published(book, size)
        flop_ratio = _ratio(published, "macs.value")
        hours = [quoted(row, "hours", "hours") for row in published]
        rows.append([SIZES[size]])
        rows.append(["paper, hours of its runs", *hours, quoted(published[1], "speedup", "ratio"), flop_ratio, ""])
        rows += _modelled(book, size, published)
        measured = list(_measured(book, size))
        for group, (encoder_only, dual) in measured:
            over = [(dual, "speedup.median"), (published[1], "speedup.value")]
            rows.append(
                [
                    ("measured step: ", *group),
                    spread(encoder_only, "time_s", "time"),
                    spread(dual, "time_s", "time"),
                    spread(dual, "speedup", "ratio"),
                    cell(dual, "flop_ratio", "ratio"),
                    derived("a/b-1", over, "change"),
                ]
            )
        absent_sizes += [] if measured else [size]
    yield table(("", "encoder-only", "dual", "speed-up", "FLOP ratio", "speed-up over the paper's"), rows)
    for size in absent_sizes:
        command = Code(f"python -m benchmarks run dual_masking --sizes {size}")
        yield Prose((f"{SIZES[size]} was not measured: ", command), "note")
    sentences = tuple(sentence for size in SIZES_IN_PAPER if (sentence := _about_hours(book, size)))
    if sentences:
        yield Prose(say(words.HOURS), "note")
        yield Items(sentences)


def _modelled(book: Book, size: str, published: Pair) -> Iterator[TableRow]:
    find = book.computed.find
    runs = [find(PAPER_CASE, f"hours {size}", mask) for mask in PAIR]
    speedup = find(PAPER_CASE, f"hours {size}", "speedup")
    if None in runs or speedup is None:
        return
    over = derived("a/b-1", [(speedup, "values.ratio"), (published[1], "speedup.value")], "change")
    residuals = [
        derived("a/b-1", [(run, "values.hours"), (quote, "hours.value")], "change")
        for run, quote in zip(runs, published, strict=True)
    ]
    hours = [_between(run, "hours", "hours") for run in runs]
    yield ["modelled hours", *hours, _between(speedup, "ratio", "ratio"), _ratio(published, "macs.value"), over]
    yield ["modelled over the paper's", *residuals, "", "", ""]


def _between(row: Row | None, name: str, quantity: str) -> Line:
    middle = f"values.{name}"
    return with_range(cell(row, middle, quantity), row, (f"{middle}_low", f"{middle}_high"), quantity)


def _about_hours(book: Book, size: str) -> Line:
    published = _published(book, size)
    dual, speedup = (book.computed.find(PAPER_CASE, f"hours {size}", variant) for variant in ("dual", "speedup"))
    return say(
        words.HOURS_OF_SIZE,
        SIZES[size],
        derived("a/b", [(published[1], "hours.value"), (dual, "values.hours")], "plain"),
        quoted(published[1], "speedup", "ratio"),
        cell(speedup, "values.ratio", "ratio"),
        _ratio(published, "macs.value"),
    )


def computed_memory(book: Book, size: str, attention: str) -> Pair:
    """Rows of what a clip holds under encoder-only and dual masking."""
    encoder_only, dual = (book.computed.find(PAPER_CASE, f"memory {size}", f"{mask} {attention}") for mask in PAIR)
    return encoder_only, dual


def pairs_of(place: Place) -> Iterator[tuple[str, Row, Row]]:
    """(group, encoder-only row, dual row) of each dual_masking group that has both, in the usual order of settings."""
    found = []
    for group in place.groups("dual_masking"):
        first, second = (place.find("dual_masking", group, mask) for mask in PAIR)
        if first and second:
            found.append((group, first, second))
    yield from sorted(found, key=lambda pair: settings_key(pair[1]))


def _measured(book: Book, size: str) -> Iterator[tuple[Line, tuple[Row, Row]]]:
    """Measured pairs of a size, memory as it comes, with the names of their groups."""
    for place in book.places:
        for group, first, second in pairs_of(place):
            if first.get("config.size") == size and not is_kept(first):
                where: Line = (" on ", Name(place.name)) if len(book.places) > 1 else ()
                yield (Name(group), *where), (first, second)


def _ratio(pair: Pair, field: str) -> Inline:
    return derived("a/b", [(row, field) for row in pair], "ratio")


def absent(case: str) -> Prose:
    """The one line of a part whose rows are not there."""
    return Prose(("No rows of this yet: ", command_for(case)), "note")
