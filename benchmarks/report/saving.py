"""README's table and picture of what dual masking saves: the paper's figures, measured rows and closed forms side by side.

python -m benchmarks.report.saving     (rewrites README.md between its markers, and docs/dual_masking.svg)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.record import RESULTS, ROOT
from benchmarks.report import plots
from benchmarks.report.book import PAPER_CASE, SIZES, Book, Place
from benchmarks.report.cells import Cell, Inline, Row, cell, derived, quoted
from benchmarks.report.table2 import HELD, PAIR, computed_memory
from vmae2_ds.disk import write_whole

PAGE, PICTURE = ROOT.parent / "README.md", ROOT.parent / "docs" / "dual_masking.svg"
ROWS = RESULTS / "cpu"
START, END = "<!-- saving: made by python -m benchmarks.report.saving -->", "<!-- end of saving -->"
TITLE = "Encoder-only masking over dual masking: how many times less FLOPs, time and memory"

MEASURED = (("small", "math", "plain"), ("base", "math", "plain"), ("base", "sdpa", "fused"))
"""Sizes and kernels that are shown, in bf16, and what a kernel is called: plain attention holds its scores, fused does not."""
PAPER = (("base", "64 GPUs"), ("giant", "64 A100"))
HOURS_ESTIMATED = {"giant"}
"""Sizes whose hours under encoder-only masking are an estimate of the paper's authors (docs/PAPER.md#dual-masking)."""

Pair = tuple[Row, Row]
"""Encoder-only, dual."""


class Saving(NamedTuple):
    """One line of the table: ratios of encoder-only masking over dual masking, 1 where dual masking saves nothing."""

    name: str
    flops: Cell
    time: Cell | None
    """None where nothing was measured."""
    memory: Cell
    between: tuple[float, float] | None = None
    """Quartiles of the time's ratio."""
    behind: tuple[str, str, str] = ("", "", "")
    """What each ratio is of, in words."""


def savings(book: Book) -> list[Saving]:
    """The paper's two models, what was measured here, and what closed forms say of ViT-g."""
    return [*_published(book), *_measured(book.places[0]), _calculated(book)]


def _published(book: Book) -> Iterator[Saving]:
    rows = book.paper.rows("table2")
    for size, where in PAPER:
        pair = rows[f"{size} encoder_only"], rows[f"{size} dual"]
        estimated = " by estimate" if size in HOURS_ESTIMATED else ""
        yield Saving(
            f"paper: {SIZES[size]}, {where}",
            _number(_over(pair, "macs.value")),
            _number(quoted(pair[1], "speedup", "ratio")),
            _number(_over(pair, "bytes.value")),
            behind=(
                _from_to(pair, "macs.value", "macs"),
                _from_to(pair, "hours.value", "hours", estimated),
                _from_to(pair, "bytes.value", "bytes"),
            ),
        )


def _measured(place: Place) -> Iterator[Saving]:
    for size, kernel, word in MEASURED:
        rows = (place.find("dual_masking", f"{size} bf16 {kernel} kept", mask) for mask in PAIR)
        first, dual = _pair(*rows, f"{size} {kernel}")
        clips = [
            derived("a/b", [(row, "memory.peak_bytes"), (row, "config.batch_size")], "bytes") for row in (first, dual)
        ]
        low, high = (_number(cell(dual, f"speedup.{end}", "ratio")) for end in ("low", "high"))
        yield Saving(
            f"measured: {SIZES[size]}, {word} attention, 1 CPU core",
            _number(cell(dual, "flop_ratio", "ratio")),
            _number(cell(dual, "speedup.median", "ratio")),
            _number(_over((first, dual), "memory.peak_bytes")),
            (low.value, high.value),
            ("", f"{low.text.rstrip('x')} to {high.text.rstrip('x')}", _words(*clips)),
        )


def _calculated(book: Book) -> Saving:
    work = (book.computed.find(PAPER_CASE, "flops giant", variant) for variant in ("none", "running_cell_50"))
    macs = _pair(*work, "FLOPs of ViT-g: run the case `paper`")
    memory = _pair(*computed_memory(book, "giant", "flash"), "memory of ViT-g: run the case `paper`")
    return Saving(
        f"calculated: {SIZES['giant']}, fused attention",
        _number(_over(macs, "values.macs_ours")),
        None,
        _number(_over(memory, HELD)),
        behind=(_from_to(macs, "values.macs_ours", "macs"), "no GPU has run it", _from_to(memory, HELD, "bytes")),
    )


def _pair(first: Row | None, dual: Row | None, about: str) -> Pair:
    assert first is not None, f"{ROWS} has no row of {about}"
    assert dual is not None, f"{ROWS} has no row of {about}"
    return first, dual


def _over(pair: Pair, field: str) -> Inline:
    return derived("a/b", [(row, field) for row in pair], "ratio")


def _number(shown: Inline) -> Cell:
    assert isinstance(shown, Cell), f"no number: {shown!r}"
    return shown


def _from_to(pair: Pair, field: str, quantity: str, about_first: str = "") -> str:
    return _words(*(cell(row, field, quantity) for row in pair), about_first=about_first)


def _words(first: Inline, second: Inline, about_first: str = "") -> str:
    """`28.4 to 15.9 h`: the unit once where both have the same."""
    before, after = _number(first), _number(second)
    number = before.text.removesuffix(before.unit).strip() if before.unit == after.unit else before.text
    return f"{number}{about_first} to {after.text}".replace("\N{NO-BREAK SPACE}", " ")


def table_of(found: list[Saving]) -> str:
    """The table in Markdown."""
    lines = ["| | FLOPs | time of training | memory of a clip |", "|---|---|---|---|"]
    for each in found:
        ratios = (each.flops, each.time, each.memory)
        shown = [_with_words(ratio, words) for ratio, words in zip(ratios, each.behind, strict=True)]
        lines.append(f"| {each.name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _with_words(ratio: Cell | None, words: str) -> str:
    if ratio is None:
        return words
    return f"**{ratio.text}**" + f" ({words})" * bool(words)


def picture_of(found: list[Saving]) -> str:
    """The same ratios as dots, an SVG file on white, since a page may be shown dark."""
    rows = [
        plots.Dots(
            each.name.replace(": ", ":\n", 1),
            tuple(
                plots.Point(ratio.value, 0, *ends) if ratio is not None else None
                for ratio, ends in ((each.flops, ()), (each.time, each.between or ()), (each.memory, ()))
            ),
        )
        for each in found
    ]
    svg = plots.dots(TITLE, ("FLOPs", "time", "memory"), rows, "encoder-only over dual: how many times less")
    opening = svg.index(">") + 1
    return f'{svg[:opening]}<rect width="100%" height="100%" fill="white"/>{svg[opening:]}'


def page_with(page: str, table: str) -> str:
    """README with the table between its markers."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    assert after, f"no {START} ... {END}"
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def main(page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Write both."""
    found = savings(Book.of([ROWS]))
    write_whole(page, page_with(page.read_text(), table_of(found)))
    write_whole(picture, picture_of(found))


if __name__ == "__main__":
    main()
