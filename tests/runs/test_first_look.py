"""What a first look reads, warns of and leaves to the start-up check."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.errors import DataError
from vmae2_ds.host import Cores
from vmae2_ds.recipes import get_recipe
from vmae2_ds.runs import first_look as looking
from vmae2_ds.runs.first_look import first_look


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "CROSS_SIZE",
        "GROUP_WORLD_SIZE",
        "LOCAL_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, **more: str) -> None:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "w1", **more}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)


def config_of(listed: Path, workers: int = 1) -> PretrainConfig:
    return get_recipe("pretrain", "vit_ti_pretrain_desk").changed(data={"manifest": listed, "workers": workers})


def test_ranks_of_one_host_are_told_of_a_missing_list_and_those_of_several_meet_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On several hosts a rank that ended here would leave the others waiting: the start-up check names its host."""
    config = config_of(tmp_path / "nowhere.csv")
    for env in ({"LOCAL_WORLD_SIZE": "2"}, {"CROSS_SIZE": "1"}, {"GROUP_WORLD_SIZE": "1"}):
        with monkeypatch.context() as patch:
            as_rank(patch, 1, 2, **env)
            with pytest.raises(DataError, match=r"nowhere\.csv"):
                first_look(config)
    as_rank(monkeypatch, 1, 2, LOCAL_WORLD_SIZE="1")
    first_look(config)


@pytest.mark.parametrize(("workers", "ranks", "warned"), [(8, 1, False), (9, 1, True), (4, 2, False), (5, 2, True)])
def test_more_than_four_workers_for_each_core_are_warned_of(
    workers: int, ranks: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(looking.host, "cores", lambda: Cores(machine=64, bound=64, quota=2.5))
    as_rank(monkeypatch, 0, 4, LOCAL_WORLD_SIZE=str(ranks))
    with caplog.at_level(logging.WARNING):
        first_look(config_of(tmp_path / "elsewhere.csv", workers))
    told = [record.getMessage() for record in caplog.records]
    assert [f"--data.workers {workers}" in line for line in told] == ([True] if warned else [])
