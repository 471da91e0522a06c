"""Options that are new and large: what a step with each of them does, where it runs on a CPU at all."""

from __future__ import annotations

from benchmarks.deepspeed.bench import Bench
from benchmarks.deepspeed.case import SUITE, Found, same
from benchmarks.deepspeed.setting import Setting
from benchmarks.deepspeed.toy import adamw, moved

NOT_OURS = "no policy in ds_configs/ has it"


def _three_steps(bench: Bench) -> Found:
    engine, plain = bench.engine(optimizer_of=adamw), bench.plain(optimizer_of=adamw)
    before, first = engine.weights(), plain.weights()
    for step in range(3):
        batches = bench.batches(step, 1)
        engine.step(batches[bench.ranks.rank])
        plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case(
    "Three steps with DeepCompile are PyTorch's.",
    settings=(Setting("zero3", "fp32", "deepcompile"),),
    why_not_ours=NOT_OURS,
)
def deepcompile(bench: Bench) -> Found:
    return _three_steps(bench)


@SUITE.case(
    "Three steps with ZenFlow, which puts off the small gradients by design, are PyTorch's.",
    settings=(Setting("zero2_offload", "fp32", "zenflow"),),
    why_not_ours=NOT_OURS,
)
def zenflow(bench: Bench) -> Found:
    return _three_steps(bench)


@SUITE.case(
    "Three steps with SuperOffload are PyTorch's.",
    settings=(Setting("zero3_offload", "bf16", "superoffload"),),
    why_not_ours=NOT_OURS,
)
def superoffload(bench: Bench) -> Found:
    return _three_steps(bench)
