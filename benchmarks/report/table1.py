"""The paper's Table 1 with ours beside it: FLOPs of each decoder mask, and what its training step takes here."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import words
from benchmarks.report.book import PAPER_CASE, Book, Place, settings_key
from benchmarks.report.cells import MISSING, Code, Inline, Line, Name, cell, derived, gain, quoted, say, spread
from benchmarks.report.page import Block, Prose, Section, Table, table, without_empty_columns
from benchmarks.report.table2 import absent

CASE = "decoder_masking"


def table1(book: Book) -> Section:
    """Decoder masks: published and computed FLOPs, measured time and memory. Accuracy is quoted: nothing was trained for it."""
    about = book.paper.data["table1"]
    blocks: list[Block] = [Prose((Name(about["about"]), "."), "note"), _computed(book)]
    if not book.computed.groups(PAPER_CASE).get(f"flops {about['size']}"):
        blocks.append(absent(PAPER_CASE))
    blocks.append(Prose(say(words.TABLE1), "note"))
    blocks += [block for place in book.places for block in _measured(place)] or [absent(CASE)]
    return Section(("The paper's ", book.paper.title("table1"), " with ours beside it"), tuple(blocks))


def _computed(book: Book) -> Table:
    about = book.paper.data["table1"]
    field = f"values.{about['convention']}"
    rows: list[list[Inline | Line]] = []
    for quote in book.paper.rows("table1").values():
        row = book.computed.find(PAPER_CASE, f"flops {about['size']}", str(quote.get("ours")))
        rows.append(
            [
                Name(str(quote.get("mask"))),
                Name(str(quote.get("loss"))),
                quoted(quote, "macs", "macs"),
                cell(row, field, "macs"),
                derived("a/b-1", [(row, field), (quote, "macs.value")], "residual"),
                cell(row, "values.macs_ours", "macs"),
                derived("a/b-1", [(row, "values.macs_ours_counted"), (row, "values.macs_ours")], "residual"),
                quoted(quote, "top1", "percent"),
            ]
        )
    head = (
        "decoder mask",
        "loss on",
        "paper",
        "closed form",
        "residual",
        "visible cubes embedded",
        "counted over that",
    )
    return table((*head, "accuracy, paper"), rows, ("FLOPs of the forward pass of one clip, as multiply-adds",))


def _measured(place: Place) -> Iterator[Block]:
    groups = place.groups(CASE)
    head = (
        "decoder mask",
        "attention",
        "cubes decoded",
        "step",
        "speed-up",
        "FLOP ratio",
        "MFU",
        "most memory of a step",
    )
    for group in sorted(groups, key=lambda name: settings_key(next(iter(groups[name].values())))):
        rows: list[list[Inline | Line]] = []
        for variant, row in groups[group].items():
            if row.get("error"):
                rows.append([Name(variant), ("failed: ", Name(row.get("error")))])
            elif row.get("config.mask"):  # not the matrix product that stands for the peak
                decoded, step = cell(row, "config.decode", "plain"), spread(row, "time_s", "time")
                memory = cell(row, "memory.peak_bytes", "bytes")
                attention = row.get("config.attention_decoder")
                kernel = Name(attention) if attention else MISSING
                rows.append([Name(variant), kernel, decoded, step, *gain(row), spread(row, "mfu", "share"), memory])
        caption = ("Measured: ", Name(group), ", ", Name(place.name))
        yield without_empty_columns(table(head, rows, caption), (MISSING,))
    if groups:
        yield Prose(say(words.DECODER_STEPS, Code("none")), "note")
