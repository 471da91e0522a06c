"""A disk that is full or read-only, and two jobs on one folder: one line each, and what is lost is one save."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.test_resume import NUM_STEPS, SAVE_EVERY, Run
from tests.distributed.zygote import Zygote
from vmae2_ds.checkpoint.whole import find_newest_whole, tag_of
from vmae2_ds.errors import EXIT_NOT_SAVED, EXIT_OK, EXIT_USER_ERROR

pytestmark = pytest.mark.slow


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for one checkpoint of 13.3 MB and not for two."""
    folder = tmp_path / "run"
    folder.mkdir()
    try:
        mount(folder, "size=20m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_the_save_and_not_the_run(zygote: Zygote, small_disk: Path, manifest: Path) -> None:
    """The second save fails and training goes on; the last one fails and the run ends unfinished; with room it is finished."""
    run = Run(zygote, small_disk, manifest)
    processes = run.start()
    assert [process.wait(240) for process in processes] == [EXIT_NOT_SAVED] * len(processes)
    log = run.log(0).read_text()
    assert "will not fit: make room, or lower --train.keep" in log, "told before the first step"
    assert f"the checkpoint of step {2 * SAVE_EVERY} could not be written" in log
    assert "No space left on device" in log
    assert f"training goes on, the next try is after step {NUM_STEPS}" in log
    assert f"the newest whole checkpoint is {tag_of(SAVE_EVERY)}" in log
    assert [path.name for path in sorted((small_disk / "ckpt").glob("step*"))] == [tag_of(SAVE_EVERY)], (
        "what was torn is gone"
    )
    assert [row["step"] for row in run.rows()] == list(range(1, NUM_STEPS + 1))
    before = run.losses()
    mount_options = "remount,size=200m"
    subprocess.run(["mount", "-o", mount_options, str(small_disk)], check=True)
    run.finish()
    assert run.losses() == before, "steps done again give the same bits"
    newest = find_newest_whole(small_disk / "ckpt")
    assert newest is not None
    assert newest.name == tag_of(NUM_STEPS)


def test_saves_that_fail_in_a_row_stop_the_run(zygote: Zygote, small_disk: Path, manifest: Path) -> None:
    run = Run(zygote, small_disk, manifest, "--train.save-every", "3", "--train.max-failed-saves", "2")
    assert [process.wait(240) for process in run.start(ranks=1)] == [EXIT_NOT_SAVED]
    assert "2 saves in a row failed: the newest whole checkpoint is step00000003" in run.log(0).read_text()
    assert 9 <= run.rows()[-1]["step"] <= 12, "told at a step after the save, at the latest by the next one"


def test_a_read_only_folder_is_told_before_training(zygote: Zygote, small_disk: Path, manifest: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run = Run(zygote, small_disk, manifest)
    assert [process.wait(240) for process in run.start(ranks=1)] == [EXIT_USER_ERROR]
    log = run.log(0).read_text()
    assert "no run folder can be opened: Read-only file system" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(2, ("--train.log-every", "100")), (1, ("--train.tensorboard",))],
    ids=["found by a save", "found by a row, with TensorBoard"],
)
def test_a_run_whose_folder_is_removed_ends_with_one_line(
    ranks: int, options: tuple[str, ...], zygote: Zygote, tmp_path: Path, manifest: Path
) -> None:
    """And leaves no folder with checkpoints that are nobody's."""
    run = Run(zygote, tmp_path / "run", manifest, *options)
    trouble = {"VMAE2_TEST_TROUBLE": f"remove:0:{SAVE_EVERY + 1}"}
    processes = run.start("tests.distributed.trouble", trouble, ranks=ranks)
    assert [process.wait(240) for process in processes] == [74] * ranks, "as for a checkpoint that could not be written"
    assert not run.folder.exists()
    log = run.log(0).read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("vmae2: ")]
    assert f"the run folder {run.folder} was removed while it trained: stopped at step " in line
    assert "Traceback" not in log


def test_a_second_job_on_a_run_folder_is_turned_away(zygote: Zygote, tmp_path: Path, manifest: Path) -> None:
    run = Run(zygote, tmp_path / "run", manifest)
    first = run.start(ranks=1)
    run.wait_for_step(1, first)
    second = Run(zygote, tmp_path / "run", manifest)
    second.log = lambda rank: tmp_path / f"second{rank}.log"  # type: ignore[method-assign]
    assert [process.wait(240) for process in second.start(ranks=1)] == [EXIT_USER_ERROR]
    assert "is held by another job" in second.log(0).read_text()
    assert [process.wait(240) for process in first] == [EXIT_OK]
    assert [row["step"] for row in run.rows()] == list(range(1, NUM_STEPS + 1))


def test_a_run_goes_on_from_its_copy_when_its_disk_is_gone(zygote: Zygote, tmp_path: Path, manifest: Path) -> None:
    run = Run(zygote, tmp_path / "run", manifest, "--train.copy-to", f"file://{tmp_path}/there")
    first = run.start(ranks=1)
    assert [process.wait(240) for process in first] == [EXIT_OK]
    before = run.losses()
    copies = tmp_path / "there" / "vit_ti_pretrain_desk" / "run"
    assert "copied to" in run.log(0).read_text()
    assert (copies / "ckpt" / tag_of(NUM_STEPS) / "whole.json").is_file(), "the end of a run waits for its last copy"
    shutil.rmtree(copies / "ckpt" / tag_of(NUM_STEPS))
    (copies / "finished.json").unlink()
    shutil.rmtree(run.folder)
    assert [process.wait(240) for process in run.start(ranks=1)] == [EXIT_OK]
    log = run.log(0).read_text()
    assert f"fetched {tag_of(2 * SAVE_EVERY)} of run" in log
    assert f"going on from step {2 * SAVE_EVERY}" in log
    assert run.losses() == before[2 * SAVE_EVERY :]
