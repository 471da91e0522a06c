"""What tests of the benchmark cases share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.few_blocks import use_few_blocks
from vmae2_ds.config.model import SIZES


@pytest.fixture(scope="module")
def few_blocks() -> Iterator[None]:
    """The size "tiny" is shallow for a file of tests."""
    before = SIZES["tiny"]
    use_few_blocks()
    yield
    SIZES["tiny"] = before
