"""For every test: what it changes in the environment is undone after it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment_put_back() -> Iterator[None]:
    """A run in this process sets rank variables and DS_ACCELERATOR; a later test would take itself for a rank."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
