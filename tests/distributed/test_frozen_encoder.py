"""A decoder learns alone at first: the encoder stays bit for bit at every ZeRO stage, and the rest equals plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.frozen_steps import CUT, FROZEN, STEPS, frozen_config, plain_steps
from tests.distributed.zygote import Zygote, run_forked

pytestmark = pytest.mark.slow
FP32_TOLERANCE = 1e-6  # absolute, on losses near 1: sums over ranks and micro steps run in another order
BF16_TOLERANCE = 3e-3  # bf16 rounds weights, gradients and activations to 8 bits

PARTS: dict[str, tuple[int, str, str]] = {  # name: ranks, policy, precision
    "zero0": (2, "zero0", "fp32"),
    "zero1": (1, "zero1", "fp32"),
    "zero2": (2, "zero2", "fp32"),
    "zero3": (2, "zero3", "fp32"),
    "zero1 bf16": (2, "zero1", "bf16"),
    "zero2 bf16": (1, "zero2", "bf16"),
    "zero3 bf16": (2, "zero3", "bf16"),
    "zero2_offload": (2, "zero2_offload", "fp32"),
    "zero3_offload": (1, "zero3_offload", "fp32"),
}
MUON = "zero1 muon"
"""No plain PyTorch beside it here, but the same bits of an encoder, and the same steps after a rollback."""
BACK = ("zero3", "zero2_offload", "zero3_offload", MUON)
"""They go back to a step with a frozen encoder: of these zero3 keeps gradients from one step to the next."""
RESUMED = {  # name: ranks, policy, precision, whose checkpoint
    "zero3 of zero3": (2, "zero3", "fp32", "zero3"),
    "zero1 of zero3": (1, "zero1", "fp32", "zero3"),
    "zero3 of zero2": (1, "zero3", "fp32", "zero2"),
}


@pytest.fixture(scope="module")
def found(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("frozen")
    results: dict[str, Any] = {}
    for ranks in (2, 1):
        parts = [
            {"name": name, "policy": policy, "precision": precision, "save": str(folder / name)}
            | ({"back": True} if name in BACK else {})
            for name, (size, policy, precision) in {**PARTS, MUON: (1, "zero1", "fp32")}.items()
            if size == ranks
        ]
        parts += [
            {"name": name, "policy": policy, "precision": precision, "load": str(folder / source)}
            for name, (size, policy, precision, source) in RESUMED.items()
            if size == ranks
        ]
        results |= run_forked(zygote, "tests.distributed.frozen_steps", parts, folder / f"{ranks}.json", ranks)
    return results


@pytest.fixture(scope="module")
def reference() -> list[tuple[float, float]]:
    return list(zip(*plain_steps(frozen_config(1)), strict=True))


@pytest.mark.parametrize("part", [*PARTS, *RESUMED, MUON])
def test_the_encoder_stays_bit_for_bit_and_then_learns(part: str, found: dict[str, Any]) -> None:
    first = CUT if part in RESUMED else 0
    states = found[part]["encoder"]
    assert states[0][1] == found["zero1 bf16" if "bf16" in part else "zero1"]["encoder"][0][1]
    assert all(state == states[0] for state in states[: FROZEN - first + 1])
    # its first step has a rate of 0, as the schedule's has
    assert states[FROZEN - first + 1] == states[0] != states[FROZEN - first + 2]


@pytest.mark.parametrize("part", [*PARTS, *RESUMED])
def test_losses_and_norms_are_those_of_plain_pytorch(
    part: str, found: dict[str, Any], reference: list[tuple[float, float]]
) -> None:
    tolerance = BF16_TOLERANCE if "bf16" in part else FP32_TOLERANCE
    expected = reference[CUT if part in RESUMED else 0 :]
    for (loss, norm), (expected_loss, expected_norm) in zip(found[part]["rows"], expected, strict=True):
        assert loss == pytest.approx(expected_loss, abs=tolerance)
        assert norm == pytest.approx(expected_norm, rel=20 * tolerance)


@pytest.mark.parametrize("part", [*PARTS, *RESUMED, MUON])
def test_adams_counters_of_the_encoder_start_when_it_thaws(part: str, found: dict[str, Any]) -> None:
    assert found[part]["counters"] == [STEPS - FROZEN, STEPS]
    if part not in RESUMED:  # its states are there from the first step, so that no step takes more memory than it
        assert found[part]["first_counters"] == [0, 1]


@pytest.mark.parametrize("part", BACK)
def test_a_rollback_to_a_frozen_encoder_counts_no_gradients_of_before(part: str, found: dict[str, Any]) -> None:
    assert found[part]["again"] == found[part]["rows"][CUT:]
