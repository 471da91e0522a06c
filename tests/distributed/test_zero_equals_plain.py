"""Five steps at every ZeRO stage, by 1 and 2 ranks, equal plain PyTorch AdamW on one process with the whole batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.steps import make_config, plain_losses
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError

FP32_TOLERANCE = 1e-6  # absolute, on losses near 1: the sum over ranks runs in another order
BF16_TOLERANCE = 1e-3  # bf16 gradients are rounded once per micro step and rank

OWNERS = {stage: f"FOLDER/owners{stage}.json" for stage in (1, 2)}
"""Policies as `vmae2 tune` may write them: each gradient is reduced to the rank that updates it."""


def _variants() -> dict[str, dict[str, Any]]:
    fp32 = {f"fp32 zero{stage}": {"train": {"ds_config": f"zero{stage}"}} for stage in range(4)}
    bf16 = {f"bf16 zero{stage}": {"train": {"ds_config": f"zero{stage}", "precision": "bf16"}} for stage in (1, 2, 3)}
    other = {
        "fp32 zero2_offload": {"train": {"ds_config": "zero2_offload"}},
        "fp32 zero3_offload": {"train": {"ds_config": "zero3_offload"}},
        "bf16 zero3_offload": {"train": {"ds_config": "zero3_offload", "precision": "bf16"}},
        "fp32 zero3 zero.Init": {"train": {"ds_config": "zero3", "ds_zero_init": True}},
        "bf16 zero3 zero.Init": {"train": {"ds_config": "zero3", "ds_zero_init": True, "precision": "bf16"}},
        "fp32 zero1 no accumulation": {"accumulation": 1},
        "fp32 cpu": {"train": {"ds_config": "cpu"}},
        # stage 1 with compiled blocks: engine/test_compiled.py
        "fp32 zero3 compiled": {"train": {"ds_config": "zero3", "compile": "aot_eager"}},
    }
    recomputed = {
        f"fp32 zero{stage} checkpointing {mode}": {
            "train": {"ds_config": f"zero{stage}"},
            "model": {"checkpointing": mode},
        }
        for mode, stages in {"decoder": (3,), "every_k": (3,), "all": (1, 3), "deepspeed": (1, 3)}.items()
        for stage in stages
    }
    owners = {f"fp32 zero{stage} reduced to owners": {"train": {"ds_config": OWNERS[stage]}} for stage in (1, 2)}
    return fp32 | bf16 | other | recomputed | owners


VARIANTS = _variants()
ON_ONE_RANK = (
    *("fp32 zero0", "fp32 zero1", "fp32 zero2", "fp32 zero3", "fp32 zero2_offload", "fp32 zero3_offload", "fp32 cpu"),
    *("bf16 zero1", "bf16 zero2", "bf16 zero3", "fp32 zero3 zero.Init"),
)
"""Nothing is cut there; what is compiled, recomputed or reduced to owners is the same as between two, or nothing at all."""


@pytest.fixture(scope="module")
def reference() -> dict[str, list[float]]:
    return {precision: plain_losses(make_config(1, train={"precision": precision})) for precision in ("fp32", "bf16")}


@pytest.fixture(scope="module")
def losses(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[float]]]:
    folder: Path = tmp_path_factory.mktemp("steps")
    for stage, name in OWNERS.items():
        section = ZeroPolicy(stage=stage, reduce_bucket=100_000, multi_rank_allreduce=False).zero_optimization()
        Path(name.replace("FOLDER", str(folder))).write_text(json.dumps({"zero_optimization": section}))
    variants = json.loads(json.dumps(VARIANTS).replace("FOLDER", str(folder)))
    return {
        world_size: run_forked(zygote, "tests.distributed.steps", chosen, folder / f"w{world_size}.json", world_size)
        for world_size, chosen in ((1, {name: variants[name] for name in ON_ONE_RANK}), (2, variants))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "variant"), [*((1, name) for name in ON_ONE_RANK), *((2, name) for name in sorted(VARIANTS))]
)
def test_losses_equal_plain_adamw(
    world_size: int, variant: str, reference: dict[str, list[float]], losses: dict[int, dict[str, list[float]]]
) -> None:
    precision = variant.split()[0]
    tolerance = FP32_TOLERANCE if precision == "fp32" else BF16_TOLERANCE
    assert losses[world_size][variant] == pytest.approx(reference[precision], abs=tolerance, rel=0)


def test_the_reference_learns(reference: dict[str, list[float]]) -> None:
    """Otherwise equality would prove nothing: the steps must move the loss by far more than the tolerance."""
    assert max(reference["fp32"]) - min(reference["fp32"]) > 1e-2


def test_bf16_at_stage_0_is_refused() -> None:
    config = make_config(1, train={"ds_config": "zero0", "precision": "bf16"})
    with pytest.raises(ConfigError, match="zero1"):
        resolve_ds_config(config, plan_run(config, 16, 1), on_cpu=True)
