"""A checkpoint that is written behind training holds what training had when it was saved, on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.elastic_steps import CUT, NUM_STEPS
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.checkpoint.whole import tag_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("policy", ["zero1", "zero3"])
def test_what_two_ranks_write_behind_training_are_the_bytes_of_a_save_that_training_waits_for(
    policy: str, zygote: Zygote, tmp_path: Path
) -> None:
    """The disk answers only after the next step; the second save copies into the memory of the first."""
    found = run_forked(zygote, "tests.distributed.saves_behind", policy, tmp_path / "out.json", 2)
    assert list(found["behind"]) == [tag_of(CUT), tag_of(NUM_STEPS)]
    for tag, written in found["behind"].items():
        assert written == found["waits"][tag], tag
        assert sum("optim_states" in name for name in written) == sum("ema" in name for name in written) == 2
    assert found["waits"][tag_of(CUT)] != found["waits"][tag_of(NUM_STEPS)]
    assert found["was_whole"] == [False, False], "before it is on disk it counts nowhere"
    during, again = found["losses"][CUT : CUT + 2]
    assert during == again, "the step beside the write, and the same one after a resume from what was written"
