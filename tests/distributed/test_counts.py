"""What ranks count of their data, summed over real ranks, and what else they agree on: the same on all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.counts import agreements
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.dist import Ranks


@pytest.mark.slow
def test_two_ranks_with_different_sources_know_the_same(zygote: Zygote, tmp_path: Path) -> None:
    asked = {
        "names": ["k710", "ssv2", "ava"],
        "used": [{"k710": 3, "ava": 1}, {"ssv2": 2, "k710": 2}],
        "before": {"k710": 100, "ava": 7},
        "memory": [[0.5, 4.0], [1.5, 2.0]],
    }
    found = run_forked(zygote, "tests.distributed.counts", asked, tmp_path / "out.json", 2)
    assert [mine[:2] for mine in found] == [[{"k710": 105, "ssv2": 2, "ava": 8}, [1.5, 4.0]]] * 2
    on_all = ["late", None, "rank 0", "rank 0 cannot read it"]
    assert [mine[2] for mine in found] == [[True, [0, 1], *on_all], [True, None, *on_all]]


def test_one_process_agrees_with_itself_without_a_group() -> None:
    assert agreements(Ranks()) == [False, [0], None, None, "rank 0", "rank 0 cannot read it"]
    assert (Ranks().sum(1.5, 2), Ranks().max(1.5, 2)) == ([1.5, 2], [1.5, 2])
