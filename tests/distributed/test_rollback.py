"""Two ranks, a spike on one of them: the run goes back, and is from there on the run that never saw those samples."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.distributed.test_resume import RANKS, Run
from tests.distributed.zygote import Zygote
from vmae2_ds.errors import EXIT_HUNG, EXIT_OK

pytestmark = pytest.mark.slow
GUARD = ("--guard.on-spike", "rollback", "--guard.history", "8")
NAN, SPIKE = 2, 9
"""Steps before the troubled one. The spike comes behind the checkpoint of step 8."""


@pytest.mark.parametrize("stage", [1, 3])
def test_after_a_rollback_the_run_is_the_one_without_those_samples(
    stage: int, zygote: Zygote, tmp_path: Path, manifest: Path
) -> None:
    """Bit for bit; at stage 3 also where the run is killed two steps after it went back, before it saved again."""
    options = (*GUARD, "--train.ds-config", f"zero{stage}")
    run, reference = (Run(zygote, tmp_path / name, manifest, *options) for name in ("run", "reference"))
    nan = f"nan:1:{NAN}"
    trouble = f"{nan},spike:1:{SPIKE}" + f",die:0:{SPIKE + 3}" * (stage == 3)
    processes = run.start("tests.distributed.trouble", {"VMAE2_TEST_TROUBLE": trouble})
    codes = [process.wait(240) for process in processes]
    assert codes == ([-signal.SIGKILL, EXIT_HUNG] if stage == 3 else [EXIT_OK] * RANKS), run.log(0).read_text()[-3000:]
    in_place = run.losses()
    if stage == 3:
        assert len(in_place) == SPIKE + 1
        run.finish()
    plain = {"VMAE2_TEST_TROUBLE": nan, "VMAE2_TEST_LEAVE_OUT": str(SPIKE)}
    assert [process.wait(240) for process in reference.start("tests.distributed.trouble", plain)] == [EXIT_OK] * RANKS
    assert run.losses() == reference.losses()
    assert in_place == reference.losses()[: len(in_place)]

    log = run.log(0).read_text()
    assert f"step {NAN + 1}: the loss of rank 1 is not finite (nan): update left out" in log
    assert f"step {SPIKE + 1}: the loss" in log
    last = run.rows()[-1]
    assert (last["step"], last["spikes"], last["rollbacks"], last["skipped_steps"]) == (12, 1, 1, 1)
    samples = [json.loads(line) for line in (run.folder / "skipped_samples.jsonl").read_text().splitlines()]
    assert [(sample["window"], sample["rank"]) for sample in samples] == [
        (window, rank) for window in (NAN, SPIKE) for rank in range(RANKS) for _ in range(2)
    ]
    assert reference.rows()[-1]["rollbacks"] == 0
