"""Gradients: added up over micro batches and ranks, measured, clipped, and thrown away where they are not finite.

The optimizer is SGD with rate 1, so that what a step changes in the float32 weights is the gradient that DeepSpeed has made.
"""

from __future__ import annotations

import math

import torch

from benchmarks.deepspeed.bench import Bench
from benchmarks.deepspeed.case import ALL, BOTH, IN_FP32, OTHERS, SUITE, Found, same
from benchmarks.deepspeed.toy import INPUT, SAMPLES, Batch, Dial, batch_of, every_rank, moved

IN_BF16 = (*(setting for setting in BOTH if setting.precision == "bf16"), *OTHERS[:5])
STEP_COUNTS = "engine/step.py tells DeepSpeed the number of micro batches; each has one backward pass"


@SUITE.case(
    "The gradient of three micro batches on each of two ranks is the mean of all six.",
    issue="DeepSpeed #7985",
    settings=ALL,
)
def accumulated_gradient(bench: Bench) -> Found:
    engine, plain, batches = bench.engine(accumulation=3), bench.plain(), bench.batches(0, 3)
    before = engine.weights()
    engine.step(batches[bench.ranks.rank])
    first = plain.weights()
    plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case(
    "63 micro batches with a gradient of 1/512 count after one with a gradient of 1: their sum is 1.123, and 1 where it is "
    "kept in bf16.",
    issue="DeepSpeed #1800",
    settings=IN_BF16,
)
def small_gradients_after_a_large_one(bench: Bench) -> Found:
    engine = bench.engine(Dial(), accumulation=64)
    before = engine.weights()
    shown = [torch.full((SAMPLES, INPUT), 1.0 if micro_step == 0 else 1 / 512) for micro_step in range(64)]
    batches = [Batch(x, torch.zeros(SAMPLES, 3), torch.tensor(True)) for x in shown]
    engine.step(batches)
    plain = bench.plain(Dial())
    first = plain.weights()
    plain.step([batches] * bench.ranks.size)
    return same(64 * moved(first, plain.weights())[:1], 64 * moved(before, engine.weights())[:1])


@SUITE.case(
    "Two backward passes in one step, the first marked as not the last, add up.",
    issue="DeepSpeed #7981",
    settings=BOTH + OTHERS[:5],
    why_not_ours=STEP_COUNTS,
)
def two_backward_passes_marked(bench: Bench) -> Found:
    return _two_passes(bench, marked=True)


@SUITE.case(
    "Two backward passes before `step`, without a word to DeepSpeed, add up as they do in PyTorch.",
    issue="open-instruct #1498",
    settings=IN_FP32,
    why_not_ours=STEP_COUNTS,
)
def two_backward_passes_unmarked(bench: Bench) -> Found:
    return _two_passes(bench, marked=False)


def _two_passes(bench: Bench, marked: bool) -> Found:
    made, plain, batches = bench.engine(), bench.plain(), bench.batches(0, 2)
    before, engine = made.weights(), made.engine
    for micro_step, batch in enumerate(batches[bench.ranks.rank]):
        if marked:
            engine.set_gradient_accumulation_boundary(micro_step == 1)
        engine.backward(engine(batch).loss)
    engine.step()
    first = plain.weights()
    plain.step(batches, shares=bench.ranks.size)
    return same(moved(first, plain.weights()), moved(before, made.weights()))


@SUITE.case(
    "The norm that is told after three micro batches is that of the whole gradient.",
    issue="DeepSpeed #7967",
    ours="engine/step.py: at stage 0 the norm is taken by us",
)
def norm_of_the_gradient(bench: Bench) -> Found:
    engine, batches = bench.engine(accumulation=3, clip=1e6), bench.batches(0, 3)
    norm = engine.step(batches[bench.ranks.rank])
    if math.isnan(norm):
        raise LookupError("DeepSpeed tells no norm here")
    return same(torch.tensor([bench.plain().step(batches)]), torch.tensor([norm]))


@SUITE.case("With two micro batches, a gradient ten times too long is cut to the length that is set.")
def clipped_gradient(bench: Bench) -> Found:
    batches = bench.batches(0, 2)
    clip = bench.plain().step(batches) / 10
    engine, plain = bench.engine(accumulation=2, clip=clip), bench.plain()
    before, first = engine.weights(), plain.weights()
    engine.step(batches[bench.ranks.rank])
    plain.step(batches, clip=clip)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case(
    "A gradient that is infinite on one rank changes no weight on any, and the next step is as if it had not been.",
    issue="DeepSpeed #8035",
    settings=ALL,
    ours="config/ds_config.py asks for bf16.check_grad_overflow; engine/step.py watches the norm at every stage",
)
def gradient_that_is_not_finite(bench: Bench) -> Found:
    engine, plain, batches = bench.engine(), bench.plain(), bench.batches(0, 1)
    before, first = engine.weights(), plain.weights()
    bad = batch_of(5, 0, bench.ranks.rank)
    if bench.ranks.rank == 1:
        bad = bad._replace(y=torch.full_like(bad.y, float("inf")))
    engine.step([bad])
    engine.step(batches[bench.ranks.rank])
    plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case("A layer that only the first of two micro batches uses keeps that gradient.", issue="DeepSpeed #545")
def layer_used_in_one_micro_batch(bench: Bench) -> Found:
    engine, plain = bench.engine(accumulation=2), bench.plain()
    batches = [[batch_of(0, k, rank, switch=k == 0) for k in range(2)] for rank in range(bench.ranks.size)]
    before, first = engine.weights(), plain.weights()
    engine.step(batches[bench.ranks.rank])
    plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case("A look at the loss without gradients, between two micro batches, changes nothing.", settings=IN_FP32)
def evaluation_between_micro_batches(bench: Bench) -> Found:
    engine, plain, batches = bench.engine(accumulation=2), bench.plain(), bench.batches(0, 2)
    before, first = engine.weights(), plain.weights()
    mine = batches[bench.ranks.rank]
    engine.micro_step(mine[0])
    with torch.no_grad():
        engine.engine(every_rank(7, 1, bench.ranks.size)[bench.ranks.rank][0])
    engine.step(mine[1:])
    plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))
