"""docs/CLI.md and docs/RECIPES.md, made from the code; `python -m tests.pages` writes them."""
