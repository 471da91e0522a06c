"""80 steps killed at 7 random moments, on one rank and on two in turn, are the 80 steps of a run that nobody disturbed."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.distributed.ranks import rank_environment, tiny_pretraining
from tests.distributed.zygote import Rank, Zygote
from vmae2_ds.errors import EXIT_OK
from vmae2_ds.host import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NUM_STEPS, KILLS, SAVE_EVERY, CLIPS_PER_STEP = 80, 7, 5, 8
TOLERANCE = 1e-5  # absolute, on losses near 1, over 80 steps: two ranks add up gradients in another order than one


class Chaos:
    """One run folder, and the starts of ranks on it."""

    def __init__(self, zygote: Zygote, folder: Path, manifest: Path) -> None:
        self.zygote, self.folder, self.manifest = zygote, folder, manifest
        self.starts = 0

    def start(self, ranks: int, policy: str) -> list[Rank]:
        words = (
            f"--train.save-every {SAVE_EVERY} --train.ds-config {policy} --train.precision fp32 --train.micro-batch 2"
        )
        words += " --data.workers 0 --data.read-timeout-s 0 --optim.warmup-epochs 5"
        words += " --model.encoder.depth 2 --model.encoder.width 96 --model.encoder.mlp 192 --model.decoder.width 48"
        command = [*tiny_pretraining(self.manifest, self.folder / "run", NUM_STEPS), *words.split()]
        self.starts += 1
        port, used = free_port(), {"VMAE2_TEST_USED": str(self.folder / "used"), "VMAE2_TEST_START": str(self.starts)}
        return [
            self.zygote.start(
                command, {**rank_environment(rank, ranks, port), **used}, self.log(rank), "tests.distributed.recorded"
            )
            for rank in range(ranks)
        ]

    def log(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.log"

    def rows(self) -> dict[int, dict]:
        path = self.folder / "run" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {row["step"]: row for row in map(json.loads, lines) if row}

    def wait_for_step(self, step: int, processes: list[Rank]) -> None:
        path = self.folder / "run" / "metrics.jsonl"
        while not (path.exists() and f'"step": {step},' in path.read_text()):
            assert all(process.poll() is None for process in processes), self.log(0).read_text()[-3000:]
            time.sleep(0.02)

    def finish(self, ranks: int, policy: str) -> None:
        processes = self.start(ranks, policy)
        assert [process.wait(600) for process in processes] == [EXIT_OK] * ranks, self.log(0).read_text()[-3000:]

    def clips_by_step(self) -> dict[int, list[str]]:
        """What each step is made of: a step that was done again counts as it was done last."""
        starts: dict[int, dict[int, list[str]]] = {}
        for path in self.folder.glob("used.rank*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                starts.setdefault(line["step"], {}).setdefault(line["start"], []).extend(line["clips"])
        return {step: sorted(found[max(found)]) for step, found in starts.items()}


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Chaos:
    run = Chaos(zygote, tmp_path_factory.mktemp("undisturbed"), manifest)
    run.finish(2, "zero1")
    return run


@pytest.fixture(scope="module")
def disturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Chaos:
    run = Chaos(zygote, tmp_path_factory.mktemp("disturbed"), manifest)
    rng = random.Random(7)
    for number, step in enumerate(sorted(rng.sample(range(1, NUM_STEPS), KILLS))):
        processes = run.start(*((2, "zero1"), (1, "zero2"), (2, "zero3"), (1, "zero1"))[number % 4])
        run.wait_for_step(step, processes)
        time.sleep(rng.uniform(0, 0.2))  # anywhere in a step or in a save
        for process in rng.sample(processes, len(processes)):
            process.kill()
            process.wait(60)
    run.finish(1, "zero1")
    return run


def test_the_loss_of_every_step_is_the_same(undisturbed: Chaos, disturbed: Chaos) -> None:
    assert disturbed.starts == KILLS + 1
    expected, found = undisturbed.rows(), disturbed.rows()
    assert list(expected) == list(found) == list(range(1, NUM_STEPS + 1))
    worst = max(abs(found[step]["loss"] - expected[step]["loss"]) for step in expected)
    print(f"worst difference of a loss: {worst:.2g}")
    assert worst <= TOLERANCE


def test_every_sample_is_seen_exactly_once(undisturbed: Chaos, disturbed: Chaos) -> None:
    found = disturbed.clips_by_step()
    assert found == undisturbed.clips_by_step(), "each step is made of the same clips"
    times_seen = Counter(clip for clips in found.values() for clip in clips)
    assert len(times_seen) == NUM_STEPS * CLIPS_PER_STEP
    assert set(times_seen.values()) == {1}


def test_the_checkpoint_goes_from_one_number_of_ranks_to_the_other(disturbed: Chaos) -> None:
    log = disturbed.log(0).read_text()
    for change in (
        "from 2 ranks at ZeRO stage 1 to 1",
        "from 1 rank at ZeRO stage 2 to 2 ranks at ZeRO stage 3",
    ):
        assert change in log
