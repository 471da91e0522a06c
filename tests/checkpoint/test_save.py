"""What reaches the disk before what when a checkpoint is written: a power cut leaves whole ones and torn ones, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.host_copies import HostCopies
from vmae2_ds.checkpoint.mirror import Mirror, SecondPlace, fetch_newest
from vmae2_ds.checkpoint.retention import RetentionRules
from vmae2_ds.checkpoint.save import CheckpointSave, save_checkpoint
from vmae2_ds.checkpoint.whole import WHOLE, find_newest_whole, tag_of, why_torn
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import SaveFailed

SHARDS = ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]


class DeepSpeed:
    """What of DeepSpeed's engine writes a checkpoint: shards go through its checkpoint engine."""

    def __init__(self) -> None:
        self.checkpoint_engine = SimpleNamespace(save=None, makedirs=None)

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        assert not save_latest, "DeepSpeed writes `latest` before other ranks are done"
        self.checkpoint_engine.makedirs(os.path.join(folder, tag), exist_ok=True)
        for name in SHARDS:
            self.checkpoint_engine.save({"weight": torch.ones(5), **client_state}, os.path.join(folder, tag, name))
        swapped = Path(folder, tag, "offloaded_tensors", "rank00")
        swapped.mkdir(parents=True)
        (swapped / "0.swp").write_bytes(b"offloaded")

    def _copy_recovery_script(self, path: str) -> None:
        raise AssertionError("is not called here")


def save(folder: Path, step: int, keep: int = 2, *, behind: bool = False) -> Path:
    engine: Any = SimpleNamespace(deepspeed=DeepSpeed(), stage=1, zero_policy={})

    def write_mean(files: HashedFiles) -> None:
        files.save([torch.zeros(3)], files.folder / "ema_rank00000.pt")

    if not behind:
        return save_checkpoint(engine, folder, step, {"step": step}, Ranks(), RetentionRules(keep), write_mean)
    started = CheckpointSave(engine, folder, step, {"step": step}, Ranks(), write_mean, copies=HostCopies())
    writer = threading.Thread(target=started.write)
    writer.start()
    writer.join()
    target = started.declare()
    started.tidy_up(RetentionRules(keep))
    return target


class Disk:
    """What was asked of the disk, in order."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        fsync, unlink, rmtree = os.fsync, Path.unlink, shutil.rmtree

        def name(path: str | Path) -> str:
            return os.path.relpath(path, top).partition(".part")[0]

        def synced(descriptor: int) -> None:
            self.calls.append(f"fsync {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
            fsync(descriptor)

        def renamed(path: Path, target: Path) -> Path:
            self.calls.append(f"rename {name(target)}")
            os.rename(path, target)
            return target

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self.calls.append(f"unlink {name(path)}")
            unlink(path, missing_ok)

        def removed(path: Path, **options: Any) -> None:
            self.calls.append(f"rmtree {name(path)}")
            rmtree(path, **options)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", renamed)
        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Path, "unlink", unlinked)
        monkeypatch.setattr(shutil, "rmtree", removed)


on_linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


@on_linux
@pytest.mark.parametrize("behind", [False, True])
def test_files_reach_the_disk_before_the_list_of_them_and_that_before_an_old_checkpoint_goes(
    behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    disk, tag, oldest = Disk(tmp_path, monkeypatch), tag_of(3), tag_of(1)
    save(tmp_path, 3, behind=behind)
    written = [*SHARDS, "ema_rank00000.pt", "offloaded_tensors/rank00/0.swp"]
    assert disk.calls == [
        *(f"fsync {tag}/{name}" for name in written),
        f"fsync {tag}",
        f"fsync {tag}/.{WHOLE}",
        f"rename {tag}/{WHOLE}",
        f"fsync {tag}",
        "fsync .latest",
        "rename latest",
        "fsync .",
        f"unlink {oldest}/{WHOLE}",
        f"rmtree {oldest}",
    ]
    listed = json.loads((tmp_path / tag / WHOLE).read_text())
    assert sorted(listed["files"]) == sorted(listed["sha256"]) == sorted(written)
    assert (tmp_path / "latest").read_text() == tag
    assert sorted(path.name for path in tmp_path.glob("step*")) == [tag_of(2), tag]


@on_linux
def test_what_is_fetched_from_a_second_place_reaches_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = tmp_path / "run", SecondPlace(str(tmp_path / "there"), "recipe")
    copies = Mirror(place, run)
    copies.put(save(run / "ckpt", 7))
    copies.close(10)
    shutil.rmtree(run / "ckpt")
    (run / "ckpt").mkdir()
    disk, tag, half = Disk(run / "ckpt", monkeypatch), tag_of(7), f".{tag_of(7)}.fetched"
    assert fetch_newest(place, "run", run / "ckpt") == run / "ckpt" / tag
    named = disk.calls.index(f"rename {tag}")
    folders = ["", "/offloaded_tensors", "/offloaded_tensors/rank00"]
    files = [f"/{name}" for name in (*SHARDS, "ema_rank00000.pt", "offloaded_tensors/rank00/0.swp", WHOLE)]
    assert set(disk.calls[:named]) >= {f"fsync {half}{path}" for path in (*folders, *files)}
    assert "fsync ." in disk.calls[named:]


@pytest.mark.parametrize("failing", range(8))
def test_a_disk_that_refuses_one_flush_leaves_no_checkpoint_that_counts(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the list of files and its name the save has failed and is gone; behind it the checkpoint is whole all the same."""
    save(tmp_path, 1)
    fsync, calls = os.fsync, 0

    def refused(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    if failing < 7:  # four files, the folder, the list, the folder again
        with pytest.raises(SaveFailed, match="Input/output error"):
            save(tmp_path, 2)
        assert not (tmp_path / tag_of(2)).exists()
        assert find_newest_whole(tmp_path) == tmp_path / tag_of(1)
    else:
        save(tmp_path, 2)
        assert why_torn(tmp_path / tag_of(2)) is None
