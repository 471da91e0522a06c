"""The closed forms of cost/states.py and cost/comm.py against what DeepSpeed allocates and sends, on 1 and 2 ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.state_bytes import MODELS, detector_config
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.cost.comm import comm_bytes
from vmae2_ds.cost.detection import detector_parameters
from vmae2_ds.cost.parameters import Model, with_muon
from vmae2_ds.cost.states import StateBytes, state_bytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.tune.workload import detector_shape

pytestmark = pytest.mark.slow

STATES_TOLERANCE = 0.02  # activations of 32 tokens, and which gradient stands where when a bucket is full
WIDER_TOLERANCE = {
    "bf16 stage 1 offload": 0.03,  # the share that is on its way to the host while gradients accumulate
    "bf16 stage 3 adapters": 0.05,  # blocks run in several parts, between which more stays gathered than is replayed
}
COMM_TOLERANCE = 1e-3  # flags and norms: some bytes a step

BUCKET = 2_500_000  # below the 7.2 M parameters: several reductions
READ_AHEAD = {
    "prefetch_bucket": 600_000, "max_live": 2_500_000, "max_reuse": 2_500_000, "persistence_threshold": 25_000
}  # fmt: skip
HELD_LITTLE = {"prefetch_bucket": 20_000, "max_live": 100_000, "max_reuse": 0, "persistence_threshold": 100}


def wide(precision: str, stage: int, accumulation: int = 1, **policy: Any) -> dict[str, Any]:
    bucket = {"reduce_bucket": BUCKET} if stage else {}
    read_ahead = READ_AHEAD if stage == 3 else {}
    policy = {"stage": stage, **bucket, **read_ahead, **policy}
    return {"model": "wide", "precision": precision, "accumulation": accumulation, "policy": policy}


def small(precision: str, stage: int, accumulation: int, checkpointing: str = "none", **policy: Any) -> dict[str, Any]:
    bucket = {"reduce_bucket": 300_000} if stage else {}
    policy = {"stage": stage, **bucket, **policy}
    variant = {"model": "small", "precision": precision, "accumulation": accumulation, "policy": policy}
    return variant | {"checkpointing": checkpointing}


def adapted(stage: int, **policy: Any) -> dict[str, Any]:
    read_ahead = {"prefetch_bucket": 1_000_000, "max_live": 4_000_000, "max_reuse": 4_000_000} if stage == 3 else {}
    policy = {"stage": stage, "reduce_bucket": 2_000_000, **read_ahead, **policy}
    return {"model": "detector", "precision": "bf16", "accumulation": 1, "policy": policy}


def model_of(variant: dict[str, Any], checkpointing: str = "none") -> Model:
    if variant["model"] == "detector":
        return detector_parameters(detector_shape(detector_config()))
    model = MODELS[variant["model"]].model_copy(update={"checkpointing": checkpointing})
    return with_muon(model) if "optimizer" in variant else model


STATES = {
    "fp32 stage 0": wide("fp32", 0),
    "bf16 stage 1": wide("bf16", 1, overlap_comm=False),
    "bf16 stage 1 offload": wide("bf16", 1, accumulation=2, offload_optimizer=True),
    "bf16 stage 2": wide("bf16", 2, overlap_comm=True),
    "bf16 stage 2 offload": wide("bf16", 2, accumulation=2, offload_optimizer=True),
    "bf16 stage 3": wide("bf16", 3, overlap_comm=True, sub_group=600_000),
    "fp32 stage 3": wide("fp32", 3),
    "bf16 stage 3 offload": wide("bf16", 3, offload_optimizer=True, offload_param=True),
    "bf16 stage 3 hpZ": wide("bf16", 3, hpz=2),
    **{f"bf16 stage {stage} adapters": adapted(stage) for stage in (1, 2, 3)},
}
ON_ONE_RANK = ("fp32 stage 0", "bf16 stage 2", "bf16 stage 3")

COMM = {
    **{f"fp32 stage 0 x{steps}": small("fp32", 0, steps) for steps in (1, 2)},
    **{f"bf16 stage {stage} x{steps}": small("bf16", stage, steps) for stage in (1, 2) for steps in (1, 2)},
    **{f"bf16 stage 3 x{steps}": small("bf16", 3, steps, **HELD_LITTLE) for steps in (1, 2)},
    "bf16 stage 3 as DeepSpeed has it": small("bf16", 3, 1),
    "bf16 stage 2 reduced to the owners": small("bf16", 2, 1, multi_rank_allreduce=False),
    "fp32 stage 3 x2": small("fp32", 3, 2, **HELD_LITTLE),
    "bf16 stage 3 hpZ": small("bf16", 3, 2, **HELD_LITTLE, hpz=2),
    **{f"bf16 stage {stage} adapters": adapted(stage) for stage in (1, 2)},
    "bf16 stage 1 Muon": small("bf16", 1, 1) | {"optimizer": "muon"},
    **{
        f"bf16 stage 3 checkpointing {mode}": small("bf16", 3, 1, checkpointing=mode, **HELD_LITTLE)
        for mode in ("every_k", "all", "deepspeed")
    },
}


def measured_as(name: str) -> str:
    """What a variant of COMM is measured under: one that is in STATES as well is run once."""
    return name if STATES.get(name) == COMM[name] else f"comm {name}"


@pytest.fixture(scope="module")
def measured(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """World size -> variant -> every rank's measurements."""
    folder: Path = tmp_path_factory.mktemp("bytes")
    both = STATES | {measured_as(name): variant for name, variant in COMM.items()}
    # hpZ goes last: its process group is global, and every later engine of the process would keep a second copy too
    both = dict(sorted(both.items(), key=lambda item: item[1]["policy"].get("hpz", 1)))
    variants = {1: {name: STATES[name] for name in ON_ONE_RANK}, 2: both}
    return {
        world_size: run_forked(
            zygote, "tests.distributed.state_bytes", chosen, folder / f"w{world_size}.json", world_size
        )
        for world_size, chosen in variants.items()
    }


def predicted(variant: dict[str, Any], world_size: int) -> StateBytes:
    return state_bytes(
        model_of(variant),
        ZeroPolicy(**variant["policy"]),
        world_size,
        precision=variant["precision"],
        accumulation=variant["accumulation"],
    )


@pytest.mark.parametrize("moment", ["resident", "backward", "step"])
@pytest.mark.parametrize(
    ("world_size", "name"), [*((1, name) for name in ON_ONE_RANK), *((2, name) for name in STATES)]
)
def test_bytes_alive(measured: dict[int, dict[str, Any]], world_size: int, name: str, moment: str) -> None:
    states = predicted(STATES[name], world_size)
    fullest = max(rank[moment] for rank in measured[world_size][name])
    # a rank's GPU is host memory here
    tolerance = WIDER_TOLERANCE.get(name, STATES_TOLERANCE)
    assert getattr(states, moment) + states.host == pytest.approx(fullest, rel=tolerance)


@pytest.mark.parametrize("name", sorted(COMM))
def test_bytes_sent(measured: dict[int, dict[str, Any]], name: str) -> None:
    variant = COMM[name]
    comm = comm_bytes(
        model_of(variant, variant.get("checkpointing", "none")),
        ZeroPolicy(**variant["policy"]),
        world_size=2,
        num_nodes=1,
        accumulation=variant["accumulation"],
        precision=variant["precision"],
    )
    expected: Counter[str] = Counter()
    expected_calls: Counter[str] = Counter()
    for collective in comm.collectives:
        expected[collective.kind] += collective.payload
        expected_calls[collective.kind] += collective.calls
    ranks = measured[2][measured_as(name)]
    exchanged = [rank["sent"].pop("exchange", 0) for rank in ranks]  # not the same on all ranks, nor through DeepSpeed
    assert sum(exchanged) / len(ranks) == expected.pop("exchange", 0)
    for rank in ranks:
        sent = {kind: total for kind, total in rank["sent"].items() if total > 1000}
        assert sent == pytest.approx(dict(expected), rel=COMM_TOLERANCE)
        assert {kind: calls for kind, calls in rank["calls"].items() if calls} == dict(expected_calls)
        # no collective goes past DeepSpeed's logger
        assert sum(rank["logged"].values()) == sum(rank["sent"].values())
