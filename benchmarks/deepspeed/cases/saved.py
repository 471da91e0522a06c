"""Checkpoints: gone on with on the same ranks, read back as whole weights, and taken to another number of ranks."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from benchmarks.deepspeed.bench import Bare, Bench
from benchmarks.deepspeed.case import BOTH, IN_FP32, SUITE, Found, folder_of, same
from benchmarks.deepspeed.setting import Setting
from benchmarks.deepspeed.toy import Toy, Weights, adamw, every_rank, flat, moved

STEP, MICRO_BATCHES = 2, 2
LOSES = (*IN_FP32, *(Setting(policy, "bf16") for policy in ("zero1", "zero3")), Setting("zero3", "fp32", "hpZ"))
ELSEWHERE = tuple(setting for setting in BOTH if setting.policy != "zero0" and "offload" not in setting.policy)


def _three_steps(bench: Bench, folder: Path, frozen: str = "") -> Bare:
    """Two steps, a checkpoint, and a third."""
    engine = bench.engine(Toy(frozen=frozen), adamw, MICRO_BATCHES)
    for step in range(STEP + 1):
        if step == STEP:
            engine.save(folder, STEP)
        engine.step(bench.batches(step, MICRO_BATCHES)[bench.ranks.rank])
    return engine


def _gone_on(bench: Bench, folder: Path, frozen: str = "") -> Weights:
    """The third step of a model that had other weights before it loaded those."""
    engine = bench.engine(Toy(frozen=frozen, seed=9), adamw, MICRO_BATCHES)
    engine.load(folder, STEP)
    engine.step(bench.batches(STEP, MICRO_BATCHES)[bench.ranks.rank])
    return engine.weights()


def _folder(bench: Bench, name: str) -> Path:
    return folder_of(bench.folder, name, bench.setting, bench.way)


@SUITE.case(
    "The step after a checkpoint is loaded is that of the run that was not stopped, to the bit.", settings=LOSES
)
def step_after_loading(bench: Bench) -> Found:
    folder = _folder(bench, "loading")
    expected = _three_steps(bench, folder).weights()
    return same(flat(expected), flat(_gone_on(bench, folder)), exact=True)


@SUITE.case(
    "The same with a frozen layer, whose weights come back too.",
    issue="DeepSpeed #3090",
    settings=LOSES,
    ours="engine/shards.py: forget_second_copies",
)
def frozen_layer_after_loading(bench: Bench) -> Found:
    folder = _folder(bench, "frozen")
    expected = _three_steps(bench, folder, "hidden").weights()
    return same(flat(expected), flat(_gone_on(bench, folder, "hidden")), exact=True)


@SUITE.case(
    "The whole float32 weights read from a checkpoint's shards (zero_to_fp32) are those of the engine, frozen ones included.",
    issue="DeepSpeed #3090",
    settings=tuple(setting for setting in LOSES if setting.policy != "zero0"),
    ours="checkpoint/zero_shards.py reads the shards",
)
def weights_read_from_shards(bench: Bench) -> Found:
    folder = _folder(bench, "shards")
    engine = bench.engine(Toy(frozen="hidden"), adamw)
    engine.step(bench.batches(0, 1)[bench.ranks.rank])
    expected = engine.weights()
    engine.save(folder, STEP)
    if bench.way == "ours":
        from vmae2_ds.checkpoint.whole import tag_of
        from vmae2_ds.checkpoint.zero_shards import ZeroShards

        shards = ZeroShards(folder / tag_of(STEP), bench.ranks.size, engine.stage)
        got = {name: shards.whole(name) for name in expected}
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        got = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=f"step{STEP}")
    if lost := sorted(expected.keys() - got.keys()):
        return Found(math.inf, f"{len(expected)} tensors", f"all but {', '.join(lost)}")
    return same(flat(expected), flat({name: got[name] for name in expected}), exact=True)


@SUITE.case("Two ranks save, for one that goes on; the universal form holds their weights.", settings=ELSEWHERE)
def saved_for_another_number_of_ranks(bench: Bench) -> Found:
    folder = _folder(bench, "ranks")
    engine = _three_steps(bench, folder)
    before = Toy().state_dict()
    expected = engine.weights()
    if bench.ranks.rank == 0:
        torch.save({"expected": expected, "before": before}, folder / "expected.pt")
    if bench.way == "bare":
        bench.ranks.from_first(lambda: _make_universal(folder / f"step{STEP}"))
    plain = bench.plain(optimizer_of=adamw)
    for step in range(STEP + 1):
        plain.step(bench.batches(step, MICRO_BATCHES))
    return same(moved(before, plain.weights()), moved(before, expected))


def _make_universal(source: Path) -> None:
    """DeepSpeed's own conversion."""
    from deepspeed.checkpoint.ds_to_universal import main

    asked = {"input_folder": str(source), "output_folder": f"{source}_universal", "inject_missing_state": False}
    alone = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    main(argparse.Namespace(**asked, **alone))


@SUITE.case(
    "One rank that loads the checkpoint of two, as it is, and takes the third step, comes to the same weights.",
    issue="DeepSpeed #2898",
    settings=ELSEWHERE,
    why_not_ours="checkpoint/elastic.py converts: see the next case",
    ranks=1,
)
def another_number_of_ranks(bench: Bench) -> Found:
    return _on_one_rank(bench, universal=False)


@SUITE.case(
    "One rank that loads the universal form of two ranks' checkpoint, and takes the third step, comes to the same weights, "
    "with the rate, decay and counter of each group.",
    issue="DeepSpeed #2921",
    settings=ELSEWHERE,
    ours="engine/shards.py: take_over fills shards and leaves groups alone",
    ranks=1,
)
def another_number_of_ranks_universal(bench: Bench) -> Found:
    return _on_one_rank(bench, universal=True)


def _on_one_rank(bench: Bench, universal: bool) -> Found:
    folder = _folder(bench, "ranks")
    saved = torch.load(folder / "expected.pt")
    ours = bench.way == "ours"
    more = {"checkpoint": {"load_universal": True}} if universal and not ours else {}
    engine = bench.engine(Toy(seed=9), adamw, 2 * MICRO_BATCHES, more=more)
    if ours:
        engine.load(folder, STEP)
    else:
        engine.engine.load_checkpoint(str(folder), tag=f"step{STEP}" + "_universal" * universal)
    batches = [batch for mine in every_rank(STEP, MICRO_BATCHES, 2) for batch in mine]
    engine.step(batches)
    return same(moved(saved["before"], saved["expected"]), moved(saved["before"], engine.weights()))
