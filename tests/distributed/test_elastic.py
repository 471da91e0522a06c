"""Runs go on with other numbers of ranks and at other ZeRO stages, as if nothing had changed: compared with plain PyTorch."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.elastic_steps import CUT, FROZEN, NUM_STEPS, groups_of, make_config, make_objective, plain_steps
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.checkpoint.whole import tag_of

pytestmark = pytest.mark.slow
FP32_TOLERANCE = 1e-6  # absolute, on losses near 1: sums over ranks and micro steps run in another order
BF16_TOLERANCE = 2e-3  # bf16 gradients are rounded once per micro step and rank, so another split rounds elsewhere

WRITERS = {  # name: ranks, policy, precision
    "2 zero3": (2, "zero3", "fp32"),
    "2 zero2": (2, "zero2", "fp32"),
    "2 zero3 bf16": (2, "zero3", "bf16"),
    "1 zero1": (1, "zero1", "fp32"),
    "1 zero0": (1, "zero0", "fp32"),
}
READERS = {  # name: ranks, policy, what it reads
    "1 zero2 of 2 zero3": (1, "zero2", "2 zero3"),
    "1 zero0 of 2 zero3": (1, "zero0", "2 zero3"),
    "1 zero2 of 2 zero3 bf16": (1, "zero2", "2 zero3 bf16"),
    "1 zero3 of 1 zero1": (1, "zero3", "1 zero1"),
    "3 zero3 of 2 zero2": (3, "zero3", "2 zero2"),
    "3 zero1 of 2 zero3": (3, "zero1", "2 zero3"),
    "3 zero2 of 1 zero0": (3, "zero2", "1 zero0"),
    "3 zero3_offload of 2 zero3": (3, "zero3_offload", "2 zero3"),
}


def run_parts(zygote: Zygote, parts: list[dict[str, Any]], ranks: int, folder: Path) -> dict[str, Any]:
    """Run the parts one after another on `ranks` ranks; what rank 0 found."""
    out = folder / f"{ranks}.{parts[0]['name']}.json"
    return run_forked(zygote, "tests.distributed.elastic_steps", parts, out, ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def written(zygote: Zygote, folder: Path) -> dict[str, Any]:
    """Losses up to the cut, by writer; the checkpoints are in FOLDER/WRITER."""
    results: dict[str, Any] = {}
    for ranks in (1, 2):
        parts = [
            {"name": name, "policy": policy, "precision": precision, "save": str(folder / name)}
            for name, (size, policy, precision) in WRITERS.items()
            if size == ranks
        ]
        results |= run_parts(zygote, parts, ranks, folder)
    return results


@pytest.fixture(scope="module")
def sources(written: dict[str, Any], folder: Path) -> dict[str, bytes]:
    """Every file of every checkpoint before it is read."""
    return {str(path): path.read_bytes() for path in folder.glob("*/step*/*")}


@pytest.fixture(scope="module")
def read(zygote: Zygote, folder: Path, sources: dict[str, bytes]) -> dict[str, Any]:
    """Losses from the cut on, by reader."""
    results: dict[str, Any] = {}
    for ranks in (1, 3):
        parts = [
            {"name": name, "policy": policy, "precision": WRITERS[writer][2], "load": str(folder / writer)}
            for name, (size, policy, writer) in READERS.items()
            if size == ranks
        ]
        results |= run_parts(zygote, parts, ranks, folder)
    return results


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], dict[str, torch.Tensor]]:
    return plain_steps(make_config("zero1", "fp32"))


@pytest.mark.parametrize("reader", READERS)
def test_the_losses_are_those_of_a_run_that_was_never_cut(
    reader: str, written: dict[str, Any], read: dict[str, Any], reference: tuple[list[float], Any]
) -> None:
    writer = READERS[reader][2]
    losses = written[writer]["losses"] + read[reader]["losses"]
    assert len(losses) == NUM_STEPS
    tolerance = BF16_TOLERANCE if WRITERS[writer][2] == "bf16" else FP32_TOLERANCE
    assert losses == pytest.approx(reference[0], abs=tolerance)


@pytest.mark.parametrize("reader", READERS)
def test_what_deepspeeds_loader_gets_wrong_is_right(reader: str, read: dict[str, Any]) -> None:
    """0.19.8 gives every group the hyper-parameters of the first, and all shards one step counter, which then runs ahead."""
    config = make_config("zero1", "fp32")
    groups = groups_of(make_objective(config), config)
    expected = [[group["weight_decay"], group["lr_scale"]] for group in groups]
    assert len({tuple(group) for group in expected}) == len(groups), "or the test would not notice"
    assert read[reader]["groups"] == expected
    assert set(read[reader]["counters"]) == {CUT}
    assert read[reader]["shared_counters"] == 0


@pytest.mark.parametrize("reader", [name for name in READERS if "bf16" not in name])
def test_the_running_mean_goes_on(
    reader: str, read: dict[str, Any], folder: Path, reference: tuple[Any, dict[str, torch.Tensor]]
) -> None:
    mean = torch.load(folder / f"{READERS[reader][2]}.{reader}.pt", weights_only=True)
    for name, expected in reference[1].items():
        torch.testing.assert_close(mean[name.removeprefix("model.")], expected, rtol=0, atol=2e-5, msg=name)


def test_the_source_is_never_touched(read: dict[str, Any], sources: dict[str, bytes]) -> None:
    assert {path: Path(path).read_bytes() for path in sources} == sources


@pytest.mark.parametrize("writer", ["2 zero3", "2 zero2", "2 zero3 bf16"])
def test_the_tensors_are_those_of_deepspeeds_own_converter(
    writer: str, read: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(folder / writer / tag_of(CUT)), output_folder=str(tmp_path), num_extract_workers=1,
            num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
        )
    )  # fmt: skip
    ours = folder / writer / "universal" / tag_of(CUT) / "zero"
    theirs = sorted(path.relative_to(tmp_path / "zero") for path in (tmp_path / "zero").glob("*/*.pt"))
    trained = {name for name, p in make_objective(make_config("zero1", "fp32")).named_parameters() if p.requires_grad}
    assert trained <= {path.parent.name for path in theirs}
    for path in theirs:
        one, other = (torch.load(base / path, weights_only=True) for base in (tmp_path / "zero", ours))
        one, other = (found["param"] if isinstance(found, dict) else found for found in (one, other))
        assert torch.equal(one.flatten(), other.flatten()), path
    assert (ours / f"model.{FROZEN}" / "fp32.pt").is_file()


def test_deepspeeds_own_loader_reads_what_we_write(
    zygote: Zygote, read: dict[str, Any], written: dict[str, Any], folder: Path, reference: tuple[list[float], Any]
) -> None:
    """Universal checkpoints are for other tools as well; what its loader gets wrong is put right by the test here."""
    readers = {"zero3 of 2 zero2": ("zero3", "2 zero2"), "zero2 of 2 zero3": ("zero2", "2 zero3")}
    parts = [
        {"name": name, "policy": policy, "precision": "fp32", "load": str(folder / writer), "by_deepspeed": True}
        for name, (policy, writer) in readers.items()
    ]
    for name, found in run_parts(zygote, parts, 1, folder).items():
        losses = written[readers[name][1]]["losses"] + found["losses"]
        assert losses == pytest.approx(reference[0], abs=FP32_TOLERANCE), name


def test_a_conversion_killed_anywhere_is_made_again(
    zygote: Zygote, written: dict[str, Any], folder: Path, tmp_path: Path, reference: tuple[list[float], Any]
) -> None:
    """At ten random points: half-way through writes, before fsyncs, renames, new and removed folders."""
    shutil.copytree(folder / "2 zero3" / tag_of(CUT), tmp_path / "before" / tag_of(CUT))
    asked = {"work": "convert", "policy": "zero1", "points": 10}
    found = run_forked(zygote, "tests.distributed.kill_points", asked, tmp_path / "out.json", 1)
    assert len(found["results"]) == 10
    for result in found["results"]:
        assert result["losses"] == pytest.approx(reference[0][CUT:], abs=FP32_TOLERANCE), result
        assert result["untouched"], "the source is only read"
        assert not result["unfinished"], "what was left is gone"
