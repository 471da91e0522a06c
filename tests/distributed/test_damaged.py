"""Saves killed anywhere, checkpoints damaged afterwards: the newest sound one is found, and the losses are the same bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.elastic_steps import CUT, NUM_STEPS
from tests.distributed.kill_points import DAMAGES
from tests.distributed.zygote import Zygote, run_forked

pytestmark = pytest.mark.slow


def test_a_save_behind_training_killed_at_20_random_points_loses_that_save_at_most(
    zygote: Zygote, tmp_path: Path
) -> None:
    """Before copies to host memory; half-way through writes, while a piece is hashed; before fsyncs, renames, and the removal
    of the checkpoint that goes for the new one."""
    asked = {"work": "save", "policy": "zero1", "points": 20}
    found = run_forked(zygote, "tests.distributed.kill_points", asked, tmp_path / "out.json", 1)
    assert len(found["results"]) == 20
    assert len({result["at"] for result in found["results"]}) >= 4, "writes and much else"
    whole_at = found["events"].index("replace")  # whole.json appears: from here on the new one counts
    for result in found["results"]:
        assert result["first"] == (CUT if result["event"] <= whole_at else CUT + 1), result
        assert result["losses"] == found["undisturbed"][result["first"] :], "to the last bit"
        assert result["untouched"]
    assert set(Counter(result["first"] for result in found["results"])) == {CUT, CUT + 1}


@pytest.fixture(scope="module")
def resumed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("damaged")
    found = run_forked(
        zygote, "tests.distributed.kill_points", {"work": "damage", "policy": "zero3"}, folder / "out.json", 1
    )
    return {**found, "log": (folder / "out.rank0.log").read_text()}


REASONS = {
    "bit flip": "its SHA-256 differs",
    "torn": "bytes instead of",
    "missing shard": "is missing",
    "missing manifest": "never finished",
    "latest points nowhere": None,  # that file is for other tools
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage: str, resumed: dict[str, Any]) -> None:
    reason = REASONS[damage]
    first = CUT if reason is None else 2
    assert resumed[damage]["first"] == first
    assert resumed[damage]["losses"] == resumed["undisturbed"][first:NUM_STEPS]
    said = [line for line in resumed["log"].splitlines() if f"/{damage}/" in line]
    assert len(said) == (0 if reason is None else 1)
    assert all(str(reason) in line and "passed over" in line for line in said)
