"""Each generated page, and what makes its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.docs_figures import ROOT
from tests.pages.cli_page import cli_page
from tests.pages.recipes_page import recipes_page

PAGES: dict[Path, Callable[[], str]] = {ROOT / "docs" / "CLI.md": cli_page, ROOT / "docs" / "RECIPES.md": recipes_page}
