"""Whole runs on a device: the process group, every way of splitting and recomputing, the feed, checkpoints, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.gpu.commands import PRETRAIN, rows_of, run, run_on_cpu
from vmae2_ds.checkpoint.whole import find_newest_whole
from vmae2_ds.data.feed.ahead import CopyStream
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.train.feed import Feed

STEPS, MICRO_STEPS = 4, 2
# bfloat16 has 8 bits: a loss is a mean over thousands of cubes, of which each rounds on its own. After the first update the
# weights differ too.
FIRST, LATER = 2e-3, 2e-2


def pretrain(runs: Path, videos: SyntheticSet, name: str, options: str) -> list[float]:
    """The losses of a run in its own folder."""
    run(f"{PRETRAIN} --data.manifest {videos.train} --train.run {runs / name} {options}")
    return losses_of(runs / name)


def losses_of(folder: Path) -> list[float]:
    return [row["loss"] for row in rows_of(folder)]


def assert_same(found: list[float], expected: list[float], device: torch.device, first: float = FIRST) -> None:
    assert len(found) == len(expected)
    if device.type == "cpu":  # sums in the same order, but for those of ZeRO-3
        first, later = 1e-4, 1e-3
    else:
        later = max(first, LATER)
    assert found[0] == pytest.approx(expected[0], rel=first)
    assert found == pytest.approx(expected, rel=later)


@pytest.fixture(scope="module")
def plain(device: torch.device, runs: Path, videos: SyntheticSet) -> list[float]:
    """ZeRO-1, clips cut by workers, nothing recomputed."""
    return pretrain(runs, videos, "plain", "--train.ds-config zero1 --train.save-every 2")


def test_a_run_learns_what_it_learns_on_a_cpu(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet, tmp_path: Path
) -> None:
    line = f"{PRETRAIN} --data.manifest {videos.train} --train.run {runs / 'on_cpu'} --train.ds-config zero1"
    run_on_cpu([line], tmp_path / "commands.json")
    assert_same(plain, losses_of(runs / "on_cpu"), device)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
def test_muon_learns_what_it_learns_on_a_cpu(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet, tmp_path: Path
) -> None:
    found = pretrain(runs, videos, "muon", "--train.ds-config zero2 --optim.optimizer muon")
    assert found[:2] == pytest.approx(plain[:2], rel=FIRST)  # the first rate is 0
    if device.type == "cuda":
        line = f"{PRETRAIN} --data.manifest {videos.train} --train.run {runs / 'muon_on_cpu'} --optim.optimizer muon"
        run_on_cpu([line], tmp_path / "commands.json")
        assert_same(found, losses_of(runs / "muon_on_cpu"), device)
    else:
        assert found[2:] != plain[2:]


def test_the_process_group_and_the_rows_are_the_device_s(device: torch.device, plain: list[float], runs: Path) -> None:
    del plain
    assert ("nccl" if device.type == "cuda" else "gloo") in torch.distributed.get_backend()
    about = json.loads((runs / "plain" / "env.json").read_text())
    assert torch.device(about["device"]).type == device.type
    for row in rows_of(runs / "plain"):
        assert 0 <= row["data_wait_share"] <= 1


def test_a_run_is_the_same_however_its_states_are_kept(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet
) -> None:
    policies = ["zero2", "zero2_offload", "zero3", "zero3_offload"]
    for policy in policies if device.type == "cuda" else policies[-1:]:
        assert_same(pretrain(runs, videos, policy, f"--train.ds-config {policy}"), plain, device)
        if policy.endswith("offload"):
            zero = json.loads((runs / policy / "ds.json").read_text())["zero_optimization"]
            assert zero["offload_optimizer"]["pin_memory"] == (device.type == "cuda")


def test_what_is_recomputed_changes_nothing(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet
) -> None:
    modes = ["decoder", "every_k", "all", "deepspeed"]
    for mode in modes if device.type == "cuda" else modes[-1:]:
        options = f"--train.ds-config zero1 --model.checkpointing {mode}"
        assert_same(pretrain(runs, videos, mode, options), plain, device)


def test_clips_cut_on_the_device_train_alike(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet
) -> None:
    """Within one grey level of 256 (tests/gpu/test_crop_gpu.py), on targets of deviation 1."""
    found = pretrain(runs, videos, "cut", "--train.ds-config zero1 --data.crop-on device")
    assert_same(found, plain, device, first=2e-2)


def test_a_compiled_run_is_the_same(device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet) -> None:
    if device.type == "cuda":
        pytest.importorskip("triton")
    how = "inductor" if device.type == "cuda" else "aot_eager"
    found = pretrain(runs, videos, "compiled", f"--train.ds-config zero1 --train.compile {how}")
    assert_same(found, plain, device)


def test_a_run_goes_on_at_another_stage(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet
) -> None:
    """Stopped at a checkpoint of ZeRO-1, gone on with at ZeRO-3: its shards are split again on the way."""
    cut = pretrain(runs, videos, "moved", "--train.ds-config zero1 --train.stop-after-steps 2")
    assert len(cut) == 2
    assert_same(pretrain(runs, videos, "moved", "--train.ds-config zero3"), plain, device)
    newest = find_newest_whole(runs / "moved" / "ckpt")
    assert newest is not None
    assert newest.name == f"step{STEPS:08d}"


def test_a_run_is_fed_by_a_stream_of_copies_one_batch_ahead(
    device: torch.device, plain: list[float], runs: Path, videos: SyntheticSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"sent": 0, "ahead": 0, "pinned": 0}
    send, fetch_ahead = CopyStream.send, Feed.fetch_ahead

    def counted_send(self: CopyStream, move, item):  # type: ignore[no-untyped-def]
        counts["sent"] += 1
        counts["pinned"] += all(tensor.is_pinned() for tensor in item)
        moved = send(self, move, item)
        assert all(tensor.is_cuda for tensor in moved)
        return moved

    def counted_ahead(self: Feed) -> None:
        before = self._ahead
        fetch_ahead(self)
        counts["ahead"] += before is None and self._ahead is not None

    monkeypatch.setattr(CopyStream, "send", counted_send)
    monkeypatch.setattr(Feed, "fetch_ahead", counted_ahead)
    assert_same(pretrain(runs, videos, "fed", "--train.ds-config zero1"), plain, device)
    total = STEPS * MICRO_STEPS if device.type == "cuda" else 0
    # the last call finds the end of the batches, which is kept in the same place
    assert counts == {"sent": total, "ahead": total, "pinned": total}
