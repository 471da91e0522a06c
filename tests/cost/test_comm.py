"""Traffic against the ZeRO papers' counts. Against DeepSpeed's own logger: tests/distributed/test_state_bytes.py."""

from __future__ import annotations

from typing import Any

import pytest

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.cost.comm import CommBytes, comm_bytes
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.zero import ZeroPolicy

GIANT = ModelConfig.of_size("giant")
BYTES = 2 * count_parameters(GIANT).total  # one copy of the weights, bf16
RANKS, NODES = 16, 2
KEEP_NOTHING: dict[str, Any] = {"prefetch_bucket": 0, "max_live": 0, "max_reuse": 0, "persistence_threshold": 0}


def traffic(policy: ZeroPolicy, *, nodes: int = 1, accumulation: int = 1, model: ModelConfig = GIANT) -> CommBytes:
    return comm_bytes(model, policy, world_size=RANKS, num_nodes=nodes, accumulation=accumulation, precision="bf16")


def copies(comm: CommBytes) -> float:
    """Bytes a GPU sends, in copies of the weights, undone of the ring's (G-1)/G."""
    return (comm.intra_node + comm.inter_node) / BYTES * RANKS / (RANKS - 1)


def test_one_rank_sends_nothing() -> None:
    for stage in (1, 2, 3):
        comm = comm_bytes(GIANT, ZeroPolicy(stage=stage), world_size=1, num_nodes=1, accumulation=4, precision="bf16")
        assert comm == CommBytes((), 0, 0)


@pytest.mark.parametrize(
    ("policy", "accumulation", "expected"),
    [
        (ZeroPolicy(stage=1), 1, 3),  # all-reduce 2, all-gather 1: not the paper's 2
        (ZeroPolicy(stage=1), 4, 3),
        (ZeroPolicy(stage=1, multi_rank_allreduce=False), 4, 2),
        (ZeroPolicy(stage=2), 1, 3),
        (ZeroPolicy(stage=2), 4, 9),
        (ZeroPolicy(stage=3, **KEEP_NOTHING), 1, 3),  # arXiv 1910.02054 section 7.2.2: 1.5 times data parallel
        (ZeroPolicy(stage=3, **KEEP_NOTHING), 4, 12),
        (ZeroPolicy(stage=3, max_reuse=10**10, max_live=10**10), 1, 2),
    ],
)
def test_copies_of_the_weights_sent(policy: ZeroPolicy, accumulation: int, expected: float) -> None:
    assert copies(traffic(policy, accumulation=accumulation)) == pytest.approx(expected, rel=2e-3)


def test_recomputation_gathers_again() -> None:
    """What recomputes and what is kept meet in the last layer of a block, which is gathered once for both."""
    recomputed = GIANT.model_copy(update={"checkpointing": "all"})
    plain, again = (copies(traffic(ZeroPolicy(stage=3, **KEEP_NOTHING), model=model)) for model in (GIANT, recomputed))
    fc2_share = 40 * 1408 * 6144 / count_parameters(GIANT).total
    assert again - plain == pytest.approx(1 - fc2_share, abs=0.02)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_rank_of_a_node_crosses_the_network(stage: int) -> None:
    near, far = traffic(ZeroPolicy(stage=stage)), traffic(ZeroPolicy(stage=stage), nodes=NODES)
    assert near.inter_node == 0
    assert far.intra_node + far.inter_node == pytest.approx(near.intra_node, rel=1e-6)
    assert far.inter_node == pytest.approx(near.intra_node * NODES / RANKS, rel=1e-6)


def test_zeropp_keeps_to_the_node() -> None:
    """arXiv 2306.10209 table 1: 3 copies between nodes become 0.75 (0.5 + 0 + 0.25)."""
    plain = traffic(ZeroPolicy(stage=3, **KEEP_NOTHING), nodes=NODES)
    near = traffic(ZeroPolicy(stage=3, hpz=8, **KEEP_NOTHING), nodes=NODES)
    assert near.inter_node == pytest.approx(plain.inter_node * 2 / 3, rel=0.01)
    assert near.intra_node < plain.intra_node * 1.05
    quantized = traffic(
        ZeroPolicy(stage=3, hpz=8, quantized_weights=True, quantized_gradients=True, **KEEP_NOTHING), nodes=NODES
    )
    assert quantized.inter_node < near.inter_node / 2
    assert {each.kind for each in quantized.collectives} == {"all_gather", "all_to_all", "reduce_scatter"}
