"""The report: index.html and report.md from folders of rows and paper.json, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.report.book import Book
from benchmarks.report.cases import case_sections
from benchmarks.report.dual import dual_masking
from benchmarks.report.front import headline, machines, rerun, sources
from benchmarks.report.page import Section, html_page, markdown_page
from benchmarks.report.science import science
from benchmarks.report.table1 import table1
from benchmarks.report.table2 import absent, table2
from benchmarks.report.visit import visit
from vmae2_ds.disk import write_whole

TITLE = "What dual masking saves: benchmarks"


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write `out`/index.html and `out`/report.md; what has no rows says how to make them. Returns both paths."""
    book = Book.of(folders)
    sections = list(sections_of(book))
    out.mkdir(parents=True, exist_ok=True)
    pages = {out / "index.html": html_page(TITLE, sections), out / "report.md": markdown_page(TITLE, sections)}
    for path, page in pages.items():
        write_whole(path, page)
    return list(pages)


def sections_of(book: Book) -> Iterator[Section]:
    """The report from top to bottom."""
    yield headline(book)
    yield from (section for place in book.places if (section := visit(book, place)))
    yield table2(book)
    yield table1(book)
    if not book.places:
        yield Section(("Dual masking, measured",), (absent("dual_masking"),))
    for place in book.places:
        yield dual_masking(place)
    yield from (section for place in book.places if (section := science(place)))
    yield from case_sections(book)
    yield machines(book)
    yield rerun(book)
    yield sources(book)
