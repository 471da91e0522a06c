"""The first and last parts of the report: headline figures, what the numbers are, where they come from, how to rerun them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.report import words
from benchmarks.report.book import PAPER_CASE, SIZES, Book, Place
from benchmarks.report.cells import MISSING, Cell, Code, Inline, Line, Mark, Name, Row, cell, derived, line, say
from benchmarks.report.dual import fastest
from benchmarks.report.page import Block, Facts, Items, Prose, Section, table
from benchmarks.report.table2 import HELD, PUBLISHED_HELD, SIZES_IN_PAPER, computed_memory

COMMANDS = ("make venv", "python -m benchmarks report FOLDER", "python -m benchmarks compare BEFORE AFTER")


def headline(book: Book) -> Section:
    """The few figures that a reader comes for, and what has to be known about all of them."""
    facts = [*_measured_facts(book), *_computed_facts(book)]
    blocks: list[Block] = [Prose(text, "warning") for text in _warnings(book)]
    blocks.append(
        Facts(tuple(facts)) if facts else Prose(("No rows yet: ", Code("python -m benchmarks run --all")), "note")
    )
    blocks.append(Prose(say(words.LEGEND, Code("index.html"), Mark("computed"), Mark("quoted")), "note"))
    return Section(("In short",), tuple(blocks))


def _measured_facts(book: Book) -> Iterator[tuple[Line, Line, Line]]:
    for place in book.places:
        for dual in fastest(place, "size", kept=True).values():
            size = str(dual.get("config.size"))
            speedup = cell(dual, "speedup.median", "ratio")
            if speedup != MISSING:
                note = say(
                    "quartiles {} to {}; FLOP ratio {}; {}, the fastest group of this size, on {}",
                    *(cell(dual, f"speedup.{end}", "ratio") for end in ("low", "high")),
                    cell(dual, "flop_ratio", "ratio"),
                    Name(str(dual.get("group"))),
                    Name(place.name),
                )
                yield (f"Speed-up of dual masking, {SIZES.get(size, size)}",), (speedup,), note


def _computed_facts(book: Book) -> Iterator[tuple[Line, Line, Line]]:
    quotes = book.paper.rows("table2")
    residuals = []
    for quote in quotes.values():
        row = book.computed.find(PAPER_CASE, f"flops {quote.get('size')}", str(quote.get("ours")))
        fields = [(row, f"values.{quote.get('convention')}"), (quote, "macs.value")]
        residuals.append(derived("a/b-1", fields, "residual"))
    known = [residual for residual in residuals if isinstance(residual, Cell)]
    if len(known) == len(residuals):
        worst = max(known, key=lambda residual: abs(residual.value))
        yield ("FLOPs against the paper's, largest residual",), (worst,), ("of ", book.paper.title("table2"))
    for size in SIZES_IN_PAPER[:1]:
        math, flash = (computed_memory(book, size, attention) for attention in ("math", "flash"))
        saved = derived("a/b", [(row, PUBLISHED_HELD) for row in math], "ratio")
        published = derived(
            "a/b", [(quotes[f"{size} {mask}"], "bytes.value") for mask in ("encoder_only", "dual")], "ratio"
        )
        note = say(
            "the published forward pass, counted; the paper's {}; our model: {}, and {} where attention maps are never held",
            published,
            *(derived("a/b", [(row, HELD) for row in pair], "ratio") for pair in (math, flash)),
        )
        if saved != MISSING and note:
            yield (f"Memory, encoder-only over dual, {SIZES[size]}",), (saved,), note


def _warnings(book: Book) -> Iterator[Line]:
    rows = list(book.rows)
    if len(book.places) > 1:
        yield ("Rows come from several machines: compare times within a machine only.",)
    commits = sorted({str(row.get("commit")) for row in rows})
    if len(commits) > 1:
        yield ("Rows come from several commits: ", *_listed([Name(commit) for commit in commits]), ".")
    if any(commit.endswith("+") for commit in commits):
        yield ("A commit with ", Code("+"), " had changes on top that were not committed.")
    if any("--quick" in str(row.get("command")) for row in rows):
        yield (
            "Some rows come from a run with ",
            Code("--quick"),
            ": it shows that everything runs, its figures are not for quoting.",
        )
    waited = list(dict.fromkeys((str(row.get("case")), str(row.get("group"))) for row in rows if row.get("host_bound")))
    if waited:
        yield ("Steps that waited for their host, not for the device, are no measure of it: ", *_of_groups(waited), ".")
    failed = list(dict.fromkeys((str(row.get("case")), str(row.get("group"))) for row in rows if row.get("error")))
    if failed:
        yield ("Some variants failed; their rows say why: ", *_of_groups(failed), ".")


def _of_groups(groups: Sequence[tuple[str, str]]) -> Line:
    return _listed([(Name(case), " ", Name(group)) for case, group in groups])


def _listed(parts: Sequence[Inline | Line]) -> Line:
    return tuple(inline for part in parts for inline in (", ", *line(part)))[1:]


def machines(book: Book) -> Section:
    """Where the rows were measured, and with what."""
    blocks: list[Block] = []
    places = book.places or ([book.computed] if book.computed.rows else [])
    for place in places:
        blocks += _machine(place)
    return Section(("Machine and versions",), tuple(blocks) or (Prose(("No rows.",), "note"),))


def _machine(place: Place) -> Iterator[Block]:
    row = place.rows[-1]
    times = sorted((each for each in place.rows if each.get("time")), key=lambda each: each.get("time"))
    clocks = sorted({str(each.get("clock")) for each in place.rows if each.get("clock")})
    facts: list[tuple[str, Line]] = [
        ("device", (Name(str(row.get("device"))),)),
        ("processor", (Name(str(row.get("machine.cpu"))), ", ", cell(row, "machine.cores", "plain"), " cores")),
        ("memory", (cell(row, "machine.memory_gib", "plain"), " GiB")),
        ("threads of a process", (cell(row, "machine.threads", "plain"),)),
        (
            "load, when the last row was written",
            _listed([(cell(row, f"machine.load.{number}", "plain"),) for number in range(3)]),
        ),
        ("platform", (Name(str(row.get("machine.platform"))),)),
        ("python", (Name(str(row.get("machine.python"))),)),
        (
            "versions",
            _listed([(Name(name), " ", Name(str(version))) for name, version in (row.get("versions") or {}).items()]),
        ),
        ("commit", _listed([Name(commit) for commit in dict.fromkeys(str(each.get("commit")) for each in place.rows)])),
        ("clock", _listed([Name(clock) for clock in clocks])),
    ]
    if times:
        facts.append(("measured", (Name(str(times[0].get("time"))), " to ", Name(str(times[-1].get("time"))))))
    yield table(("", Name(place.name)), [[what, text] for what, text in facts if text])


def rerun(book: Book) -> Section:
    """The command of every row, as it was typed."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in book.rows:
        found[str(row.get("case")), str(row.get("command")), str(row.get("commit"))] = row
    lines = [
        [
            Name(case),
            Code(command),
            Name(commit),
            Name(str(row.get("machine.cpu") if row.get("device") == "cpu" else row.get("device"))),
        ]
        for (case, command, commit), row in found.items()
    ]
    blocks: list[Block] = [Prose(say(words.RERUN, *map(Code, COMMANDS)))]
    if lines:
        blocks.append(table(("case", "command", "commit", "device"), lines))
    return Section(("How to rerun",), tuple(blocks))


def sources(book: Book) -> Section:
    """Where each published number was found, and how sure that is."""
    tags = book.paper.data["sources"]
    lines: list[list[Inline | Line]] = []
    for name in ("table1", "table2"):
        for quote in book.paper.rows(name).values():
            for column in ("macs", "bytes", "hours", "speedup", "top1"):
                found = quote.get(f"{column}.sources")
                if found:
                    what: Line = (book.paper.title(name), ", ", Name(quote.id.split("/", 2)[2]), ", ", Name(column))
                    printed = quote.get(f"{column}.printed")
                    lines.append(
                        [what, Name(printed) if printed else "unverified", _listed([Name(tag) for tag in found])]
                    )
    blocks: tuple[Block, ...] = (
        Prose((Name(book.paper.data["paper"]), ".")),
        Items(tuple((Name(tag), ": ", Name(meaning)) for tag, meaning in tags.items())),
        table(
            ("published number", "as printed", "known from"),
            lines,
            ("Every published number of this page and its sources",),
            folded=True,
        ),
    )
    return Section(("What is quoted, and from where",), blocks)
