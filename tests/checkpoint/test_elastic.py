"""When a checkpoint is converted, when a conversion is used again, and what is refused. Tensors are tested with real ranks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from tests.runs.test_folder import write_checkpoint
from vmae2_ds.checkpoint import elastic
from vmae2_ds.checkpoint.elastic import fitting
from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.whole import WHOLE
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import CheckpointError


def fit(source: Path, stage: int = 2, **policy: Any) -> Path:
    """What an engine of one rank would load; the source is of one rank at stage 1."""
    engine: Any = SimpleNamespace(stage=stage, zero_policy={"stage": stage, **policy})
    return fitting(engine, source, Ranks())


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources converted so far, by a converter that writes one small file."""
    made: list[Path] = []

    def convert(source: Path, target: Path, world_size: int, stage: int, ranks: Ranks) -> HashedFiles:
        assert (world_size, stage) == (1, 1)
        made.append(source)
        files = HashedFiles(target)
        files.save({"param": torch.ones(3)}, target / "zero" / "w" / "fp32.pt")
        return files

    monkeypatch.setattr(elastic, "convert", convert)
    return made


def test_the_same_layout_is_loaded_as_it_is(tmp_path: Path, conversions: list[Path]) -> None:
    source = write_checkpoint(tmp_path, 3)
    assert fit(source, stage=1) == source
    assert not conversions


def test_another_layout_of_the_same_stage_is_converted(tmp_path: Path, conversions: list[Path]) -> None:
    source = write_checkpoint(tmp_path, 3)
    whole = json.loads((source / WHOLE).read_text())
    (source / WHOLE).write_text(json.dumps({**whole, "zero": {"stage": 1, "sub_group_size": 100}}))
    assert fit(source, stage=1) == tmp_path / "ckpt" / "universal" / source.name
    assert conversions == [source]


def test_a_whole_conversion_is_used_again(tmp_path: Path, conversions: list[Path]) -> None:
    source = write_checkpoint(tmp_path, 3)
    assert fit(source) == fit(source, stage=3)
    assert len(conversions) == 1


@pytest.mark.parametrize("what", ["source", "conversion"])
def test_it_is_made_again_where_something_changed(what: str, tmp_path: Path, conversions: list[Path]) -> None:
    """A step that was done again has the same name; a conversion may rot as anything else."""
    source = write_checkpoint(tmp_path, 3)
    target = fit(source)
    if what == "source":
        (source / WHOLE).write_text((source / WHOLE).read_text() + " ")
    else:
        path = target / "zero" / "w" / "fp32.pt"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    fit(source)
    assert len(conversions) == 2
    assert torch.load(target / "zero" / "w" / "fp32.pt", weights_only=True)["param"].tolist() == [1, 1, 1]


def test_what_an_earlier_start_left_is_removed(tmp_path: Path, conversions: list[Path]) -> None:
    source = write_checkpoint(tmp_path, 3)
    left = tmp_path / "ckpt" / "universal" / f".{source.name}.unfinished"
    (left / "zero").mkdir(parents=True)
    (left / "zero" / "half").write_bytes(b"1")
    fit(source)
    assert [path.name for path in left.parent.iterdir()] == [source.name]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path, 3)
    monkeypatch.setattr(elastic.shutil, "disk_usage", lambda path: Usage(100, 93, 7))
    with pytest.raises(CheckpointError, match=r"its universal form needs about 8e-09 GB and .* has 7e-09 GB free"):
        fit(source)
    assert not conversions


def test_a_disk_that_fills_up_leaves_the_source_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in source.iterdir()}

    def convert(source: Path, target: Path, *others: Any) -> HashedFiles:
        (target / "half").write_bytes(b"1")
        files = HashedFiles(target)
        files.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return files

    monkeypatch.setattr(elastic, "convert", convert)
    with pytest.raises(
        CheckpointError, match=r"could not be converted .*No space left on device.*; it is as it was"
    ) as told:
        fit(source)
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "ckpt" / "universal").iterdir())
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


class TwoRanks(Ranks):
    """Rank 0 of two, of which the other could not read a file."""

    def first_said(self, text: str | None) -> str | None:
        return text or "step00000003: a shard of rank 7 is damaged"

    def from_first(self, function: Any) -> Any:
        return function()


def test_a_file_that_one_rank_alone_cannot_read_ends_the_conversion_on_all(
    tmp_path: Path, conversions: list[Path]
) -> None:
    source = write_checkpoint(tmp_path, 3)
    engine: Any = SimpleNamespace(stage=2, zero_policy={"stage": 2})
    with pytest.raises(CheckpointError, match=r"step00000003: a shard of rank 7 is damaged"):
        fitting(engine, source, TwoRanks(0, 0, 2))
    assert conversions == [source]
    assert not list((tmp_path / "ckpt" / "universal").iterdir())


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"offload_optimizer": {"device": "nvme"}}, "keeps optimizer states on nvme"),
        ({"offload_param": {"device": "nvme"}}, "keeps parameters on nvme"),
        ({"mics_shard_size": 8}, "partitions over mics_shard_size ranks"),
        ({"parameter_alignment": 64}, "aligns parameters"),
    ],
)
def test_what_is_not_covered_is_one_line(policy: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason) as told:
        fit(write_checkpoint(tmp_path, 3), stage=3, **policy)
    assert "\n" not in str(told.value)
