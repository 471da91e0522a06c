"""The case `checkpoint`: real files of the sizes that the closed form says, under every ZeRO layout, and none left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases import checkpoint
from benchmarks.cases.zero_engine import run_config
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.cost.flops import count_parameters

OVERHEAD = 0.05
"""Names and settings of a few hundred tensors beside ViT-Ti's 7 MB; the .pth keeps the storage of what was permuted."""


pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> dict[int, dict[str, Any]]:
    """Ranks -> what tests.benchmarks.engine_ranks saw, and the folder it wrote to."""
    folder, wanted = tmp_path_factory.mktemp("checkpoints"), ["checkpoint", "restored"]
    found = {n: run_forked(zygote, "tests.benchmarks.engine_ranks", wanted, folder / f"w{n}.json", n) for n in (1, 2)}
    return {n: {**each, "folder": folder / f"w{n}"} for n, each in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_was_saved_comes_back(seen: dict[int, dict[str, Any]], ranks: int) -> None:
    assert seen[ranks]["restored"] == dict.fromkeys(checkpoint.POLICIES, True)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_files_have_the_bytes_of_the_closed_form(seen: dict[int, dict[str, Any]], ranks: int) -> None:
    rows = {row["variant"]: row for row in seen[ranks]["checkpoint"]}
    assert list(rows) == [f"{policy} {name}" for policy in checkpoint.POLICIES for name in checkpoint.OPERATIONS]
    for variant, row in rows.items():
        values = row["values"]
        assert row["error"] is None
        assert row["clock"] == "wall"
        assert len(row["samples_s"]) == row["rounds"] == 2
        assert 1 <= values["bytes"] / values["expected_bytes"] < 1 + OVERHEAD, variant
        assert values["bytes_per_s"] == pytest.approx(values["bytes"] / row["time_s"]["median"])
        assert row["config"]["ranks"] == ranks
    assert not (seen[ranks]["folder"] / checkpoint.SCRATCH).exists()


@pytest.mark.parametrize(
    ("policy", "precision", "stage", "expected"),
    [("zero0", "fp32", 0, 12), ("zero2", "bf16", 2, 14), ("zero2", "fp32", 2, 16), ("zero3", "bf16", 3, 12)],
)
def test_bytes_for_each_parameter(policy: str, precision: Any, stage: int, expected: int) -> None:
    config = run_config("giant", precision, policy, "math", 1, 1)
    assert checkpoint.shard_bytes(config, stage) == expected * count_parameters(config.model).total


def test_pages_are_dropped_and_bytes_counted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    (tmp_path / "b").write_bytes(b"y" * 7)
    checkpoint.drop_from_cache(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x" * 5000
    assert checkpoint.bytes_of(tmp_path) == 5007
    assert checkpoint.bytes_of(tmp_path / "b") == 7
    assert checkpoint.file_system_of(tmp_path) != "unknown"
