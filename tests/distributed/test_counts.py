"""What ranks count of their data, summed over real ranks: the same on all, whichever of them met which source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks


@pytest.mark.slow
def test_two_ranks_with_different_sources(tmp_path: Path) -> None:
    asked = {
        "names": ["k710", "ssv2", "ava"],
        "used": [{"k710": 3, "ava": 1}, {"ssv2": 2, "k710": 2}],
        "before": {"k710": 100, "ava": 7},
        "memory": [[0.5, 4.0], [1.5, 2.0]],
    }
    found = run_ranks("tests.distributed.counts", asked, tmp_path / "out.json", 2)
    assert found == [[{"k710": 105, "ssv2": 2, "ava": 8}, [1.5, 4.0]]] * 2
