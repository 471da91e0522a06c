"""Runs that commit 743b256 made are gone on with and exported: tests/golden/README.md says how they came to be."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import REPOSITORY, rank_environment
from tests.distributed.zygote import Zygote
from vmae2_ds.host import free_port
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.weights.files import read_published

BEFORE = REPOSITORY / "tests" / "golden" / "run_743b256"
CUT, END = 4, 8
AFTER = json.loads((BEFORE / "after.json").read_text())
"""What 743b256 itself gave: rows of the steps after the cut, exports at the cut and at the end, and on which CPU. Pixels are
normalised and the loss is summed by fewer operations since, which round otherwise: no longer to the last digit on any CPU."""
FIGURES = ("step", "epoch", "lr", "bad_videos", "source_videos/synthetic", "source_videos/broken")
"""Functions of the step and the seed: the same anywhere."""
COMPUTED = ("loss", "flat_loss", "grad_norm", "val_loss")
TOLERANCE = {"pretrain": 1e-6, "finetune": 2e-3}
"""Absolute, near 1: float32 sums in another order, and bfloat16 gradients rounded elsewhere, as in test_elastic.py."""


def digests(file: Path) -> dict[str, Any]:
    """Of each tensor of an export: shape, norm and the hash of its bytes."""
    return {
        name: [list(x.shape), x.norm().item(), hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]]
        for name, x in sorted(read_published(file).items())
    }


def go_on(zygote: Zygote, stage: str, run: Path, ranks: int) -> str:
    """Start the command that is written down in the run's env.json again, in `run`; what rank 0 says."""
    words = json.loads((run / "env.json").read_text())["command"][1:-2]  # without --train.stop-after-steps 4
    words[words.index("--train.run") + 1] = str(run)
    port, logs = free_port(), [run.with_name(f"{stage}.rank{rank}.log") for rank in range(ranks)]
    started = [zygote.start(words, rank_environment(rank, ranks, port), log) for rank, log in enumerate(logs)]
    assert [rank.wait(240) for rank in started] == [0] * ranks, logs[0].read_text()[-3000:]
    return logs[0].read_text()


def rows_after(run: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[:CUT] == [json.loads(line) for line in (BEFORE / stage / "metrics.jsonl").read_text().splitlines()]
    return rows[CUT:]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks"), [("pretrain", 2), ("finetune", 2), ("finetune", 1)])
def test_a_run_of_before_goes_on_as_it_did(zygote: Zygote, tmp_path: Path, stage: str, ranks: int) -> None:
    """On as many ranks as before, and on one, where all states are converted first."""
    run = shutil.copytree(BEFORE / stage, tmp_path / stage)
    log, expected = go_on(zygote, stage, run, ranks), AFTER[stage]["rows"]
    assert f"going on from step {CUT}" in log
    rows, tolerance = rows_after(run, stage), TOLERANCE[stage]
    assert all(row.keys() >= of_then.keys() for row, of_then in zip(rows, expected, strict=True)), "a column is gone"
    for name in FIGURES:
        assert [row[name] for row in rows] == [row[name] for row in expected], name
    for name in COMPUTED:
        told = [[row.get(name) for row in some] for some in (rows, expected)]
        assert told[0] == [x and pytest.approx(x, abs=tolerance) for x in told[1]], name
    export_weights(ExportArguments(source=run, out=tmp_path / "w.safetensors"))
    tensors, of_then = digests(tmp_path / "w.safetensors"), AFTER[stage]["exports"][str(END)]
    assert {name: shape for name, (shape, *_) in tensors.items()} == {
        name: shape for name, (shape, *_) in of_then.items()
    }
    norms = {name: pytest.approx(norm, abs=10 * tolerance) for name, (_, norm, _) in of_then.items()}
    assert {name: norm for name, (_, norm, _) in tensors.items()} == norms


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_checkpoint_of_before_is_exported_as_it_was(stage: str, tmp_path: Path) -> None:
    """ZeRO stages 2 and 3, two ranks' shards; of the fine-tuned run the running mean. Nothing is computed: bit for bit."""
    export_weights(ExportArguments(source=BEFORE / stage, out=tmp_path / "w.safetensors"))
    assert digests(tmp_path / "w.safetensors") == AFTER[stage]["exports"][str(CUT)]
