"""Packages that others import where they find them, and that no run needs for it: kept out while those are imported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """Nothing can import the package; where it is imported already, all stays as it is."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # as Python's import takes it: ImportError
    try:
        yield
    finally:
        sys.modules.pop(package, None)
