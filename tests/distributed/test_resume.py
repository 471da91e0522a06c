"""A run that is stopped, killed, or killed while it saves goes on to the same losses, bit for bit."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.distributed.ranks import rank_environment, tiny_pretraining
from tests.distributed.zygote import Rank, Zygote
from vmae2_ds.checkpoint.whole import find_newest_whole, tag_of, why_torn
from vmae2_ds.errors import EXIT_BAD_DATA, EXIT_HUNG, EXIT_OK, EXIT_PREEMPTED
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow
NUM_STEPS, SAVE_EVERY, RANKS = 12, 4, 2


class Run:
    """A two-rank pre-training in its own run folder, started as a user would, again and again."""

    def __init__(self, zygote: Zygote, folder: Path, manifest: Path, *options: str) -> None:
        self.zygote, self.folder, self.manifest, self.options = zygote, folder, manifest, options

    def start(
        self,
        module: str = "vmae2_ds",
        env: dict[str, str] | None = None,
        ranks: int = RANKS,
        options: tuple[str, ...] = (),
    ) -> list[Rank]:
        words = [*tiny_pretraining(self.manifest, self.folder, NUM_STEPS), "--train.save-every", str(SAVE_EVERY)]
        words += [*self.options, *options]
        port = free_port()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return [
            self.zygote.start(words, {**rank_environment(rank, ranks, port), **(env or {})}, self.log(rank), module)
            for rank in range(ranks)
        ]

    def log(self, rank: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}.rank{rank}.log")

    def finish(self) -> None:
        codes = [process.wait(240) for process in self.start()]
        assert codes == [EXIT_OK] * RANKS, self.log(0).read_text()[-3000:]

    def rows(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def losses(self) -> list[tuple[int, float, float]]:
        return [(row["step"], row["loss"], row["grad_norm"]) for row in self.rows()]

    def wait_for_step(self, step: int, processes: list[Rank]) -> None:
        deadline = time.monotonic() + 240
        while not any(row["step"] >= step for row in self.rows()):
            assert time.monotonic() < deadline, f"step {step} never came"
            assert all(process.poll() is None for process in processes), self.log(0).read_text()[-3000:]
            time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, manifest: Path
) -> list[tuple[int, float, float]]:
    run = Run(zygote, tmp_path_factory.mktemp("runs") / "whole", manifest)
    run.finish()
    losses = run.losses()
    assert [step for step, *_ in losses] == list(range(1, NUM_STEPS + 1))
    return losses


def stop_by_sigterm(run: Run) -> None:
    processes = run.start()
    run.wait_for_step(SAVE_EVERY + 1, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(120) for process in processes] == [EXIT_PREEMPTED] * RANKS
    newest = find_newest_whole(run.folder / "ckpt")
    assert newest is not None
    assert newest.name > f"step{SAVE_EVERY:08d}", "the signal must lead to a save of its own"


def stop_by_sigusr1_and_by_the_time_limit(run: Run) -> None:
    """The signal as a queue sends it: to every process of one host, readers and loader workers too, which must live on."""
    processes = run.start()
    run.wait_for_step(SAVE_EVERY + 1, processes)
    rank = psutil.Process(processes[1].pid)
    for process in (*rank.children(recursive=True), rank):
        process.send_signal(signal.SIGUSR1)
    assert [process.wait(120) for process in processes] == [EXIT_PREEMPTED] * RANKS
    assert "stopped by a signal and saved at step" in run.log(0).read_text()
    assert run.rows()[-1]["bad_videos"] == 0
    processes = run.start(options=("--train.time-limit", "1s"))  # over before the first step
    assert [process.wait(120) for process in processes] == [EXIT_PREEMPTED] * RANKS
    assert "stopped at the end of --train.time-limit 1s and saved at step" in run.log(0).read_text()


def kill_between_saves(run: Run) -> None:
    processes = run.start()
    run.wait_for_step(SAVE_EVERY + 2, processes)
    for process in processes:
        process.kill()
        process.wait(60)


def kill_in_the_middle_of_a_save(run: Run) -> None:
    torn = f"step{2 * SAVE_EVERY:08d}"
    processes = run.start("tests.distributed.killed_save", {"VMAE2_TEST_KILL_AT": torn})
    assert processes[1].wait(240) == -signal.SIGKILL
    processes[0].kill()
    processes[0].wait(60)
    assert (run.folder / "ckpt" / torn).is_dir()
    assert why_torn(run.folder / "ckpt" / torn) is not None
    newest = find_newest_whole(run.folder / "ckpt")
    assert newest is not None
    assert newest.name == f"step{SAVE_EVERY:08d}"


def kill_a_loader_worker(run: Run) -> None:
    """Rank 1 alone loses its data; all ranks save and stop together."""
    processes = run.start()
    run.wait_for_step(SAVE_EVERY + 1, processes)
    for worker in psutil.Process(processes[1].pid).children():
        worker.kill()
    assert [process.wait(120) for process in processes] == [EXIT_BAD_DATA] * RANKS, run.log(1).read_text()[-3000:]
    assert "loader worker died" in run.log(1).read_text()


def flip_a_bit(run: Run) -> None:
    """In the shard of rank 1: both ranks go on from the checkpoint before."""
    processes = run.start(options=("--train.stop-after-steps", str(2 * SAVE_EVERY)))
    assert [process.wait(240) for process in processes] == [EXIT_OK] * RANKS
    shard = next((run.folder / "ckpt" / tag_of(2 * SAVE_EVERY)).glob("*pp_rank_1_*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    assert find_newest_whole(run.folder / "ckpt") == shard.parent, "by the sizes of its files it is"


def lose_a_rank_and_hang(run: Run) -> None:
    """Nobody but the ranks themselves ends the others: here is no launcher."""
    processes = run.start("tests.distributed.trouble", {"VMAE2_TEST_TROUBLE": f"die:0:{SAVE_EVERY + 1}"})
    assert [process.wait(120) for process in processes] == [-signal.SIGKILL, EXIT_HUNG]
    assert "rank 0 on 127.0.0.1 is gone" in run.log(1).read_text()
    trouble = {"VMAE2_TEST_TROUBLE": "hold_the_lock:1:2"}
    processes = run.start("tests.distributed.trouble", trouble, options=("--guard.hang-minutes", "0.25"))
    assert [process.wait(120) for process in processes] == [EXIT_HUNG] * RANKS
    stacks = {path.name[:5]: path.read_text() for path in (run.folder / "stacks").iterdir() if path.stat().st_size}
    assert "in hold_the_lock" in stacks["rank1"]
    assert "in wait" in stacks["rank0"], "in a collective"
    for rank in range(RANKS):
        assert f"rank {rank}: no step was finished within 15 s after step {SAVE_EVERY + 2}" in run.log(rank).read_text()


@pytest.mark.parametrize(
    "interrupt",
    [
        stop_by_sigterm,
        stop_by_sigusr1_and_by_the_time_limit,
        kill_between_saves,
        kill_in_the_middle_of_a_save,
        kill_a_loader_worker,
        lose_a_rank_and_hang,
        flip_a_bit,
    ],
)
def test_resumed_losses_are_bit_identical(
    interrupt: Callable[[Run], None],
    zygote: Zygote,
    tmp_path: Path,
    manifest: Path,
    uninterrupted: list[tuple[int, float, float]],
) -> None:
    run = Run(zygote, tmp_path / "run", manifest)
    interrupt(run)
    assert len(run.rows()) < NUM_STEPS
    run.finish()
    assert run.losses() == uninterrupted
    assert "going on from" in run.log(0).read_text()


def test_a_reader_chosen_by_measurement_stays_for_the_whole_run(zygote: Zygote, tmp_path: Path, manifest: Path) -> None:
    """Another choice at resume would be other frames: readers differ by a grey level here and there."""
    run = Run(zygote, tmp_path / "run", manifest, "--data.reader", "auto")
    kill_between_saves(run)
    run.finish()
    assert [step for step, *_ in run.losses()] == list(range(1, NUM_STEPS + 1))
    log = run.log(0).read_text()
    assert "going on from" in log
    chosen = re.findall(r"take --data\.reader (\w+)", log)
    assert len(chosen) == 1, "only the first start measures"
    named = Run(zygote, tmp_path / "named", manifest, "--data.reader", *chosen)
    named.finish()
    assert run.losses() == named.losses()
