"""`python -m tests.pages`: write the pages that are made from the code."""

from __future__ import annotations

from tests.pages.pages import PAGES

if __name__ == "__main__":
    for path, make in PAGES.items():
        path.write_text(make())
        print(path)
