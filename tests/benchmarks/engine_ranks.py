"""One rank that puts engines of the cases `zero` and `checkpoint` to use; rank 0 writes what it saw to argv[2] as JSON."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import flight
from benchmarks.case import Bench, Options
from benchmarks.cases import checkpoint, zero
from benchmarks.cases.zero_engine import of_all_ranks, policies, run_config, set_up, tear_down, try_variant
from benchmarks.record import Row
from tests.benchmarks.few_blocks import use_few_blocks
from vmae2_ds.checkpoint.retention import RetentionRules
from vmae2_ds.checkpoint.save import load_checkpoint, save_checkpoint
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.engine.step import Engine

DEVICE = torch.device("cpu")


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Whole weights on every rank."""
    import deepspeed

    named = dict(engine.objective.named_parameters())
    with deepspeed.zero.GatheredParameters(list(named.values()), enabled=engine.stage == 3):
        return {name: parameter.detach().clone() for name, parameter in named.items()}


def steps_agree(ranks: Ranks) -> dict[str, float]:
    """How far the weights are from the first policy's after two steps, as a share of the way they went, by policy."""
    found, first = {}, None
    for name, policy in policies("fp32", DEVICE, ranks.size).items():
        config = run_config("tiny", "fp32", name, "math", 1, ranks.size)
        engine, step = set_up(config, policy, ranks)
        before = weights_of(engine)
        step()
        step()
        after = weights_of(engine)
        first = after if first is None else first
        found[name] = _distance(after, first) / _distance(after, before)
        tear_down()
        del engine, step
    return found


def what_comes_back(ranks: Ranks, folder: Path) -> dict[str, bool]:
    """By policy: are loaded weights those that were saved, after a step away from them, and the exported ones too?"""
    found, checkpoints = {}, folder / "restored"
    for name in checkpoint.POLICIES:
        config = run_config("tiny", "fp32", name, "math", 1, ranks.size)
        engine, step = set_up(config, policies("fp32", DEVICE, ranks.size)[name], ranks)
        step()
        saved = weights_of(engine)
        target = save_checkpoint(engine, checkpoints / name, 1, {}, ranks, RetentionRules())
        step()
        moved = not _equal(weights_of(engine), saved)
        load_checkpoint(engine, target, ranks)
        exported = {f"model.{key}": value for key, value in read_weights(target).items()}
        found[name] = moved and _equal(weights_of(engine), saved) and _equal(exported, saved)
        tear_down()
        del engine, step
    return found


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([(one[key] - other[key]).norm() for key in one]).norm())


def failure_is_given_back(ranks: Ranks) -> dict[str, Any]:
    """A variant that fails after its engine was built, where this rank is the only one: bytes alive before and after it."""
    bench, failed = Bench(Options(device="cpu"), ranks=Ranks()), dict[str, str]()
    config, policy = run_config("tiny", "fp32", "zero3", "math", 1, 1), policies("fp32", DEVICE, 1)["zero3"]

    def call() -> None:
        set_up(config, policy, ranks).step()
        raise torch.OutOfMemoryError("made")

    alive = [_alive()]
    try_variant(bench, "zero3", call, failed)
    alive.append(_alive())
    return {"failed": failed, "grown": alive[1] - alive[0]}


def _alive() -> int:
    gc.collect()
    storages = [t.untyped_storage() for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and not t.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def rows_of_zero(ranks: Ranks, folder: Path) -> dict[str, list[Row]]:
    """Weak scaling of one clip a rank in bf16; a rank alone also takes strong scaling's two clips, under few policies."""
    if ranks.rank == 0:
        flight.begin(folder, "zero", "made", "0")
    of_all_ranks(None, ranks)
    loads = [zero.Load("weak", "tiny", "bf16", 1, ranks.size), zero.Load("strong", "tiny", "bf16", 1, 2)]
    return {load.scaling: zero.measure(_bench(ranks, folder), load) for load in loads[: 3 - ranks.size]}


def rows_of_checkpoint(ranks: Ranks, folder: Path) -> list[Row]:
    """The whole case, in float32, which has every stage."""
    if ranks.rank == 0:
        flight.begin(folder, "checkpoint", "made", "0")
    of_all_ranks(None, ranks)
    return checkpoint.measure(_bench(ranks, folder), "tiny", "fp32")


def _bench(ranks: Ranks, folder: Path) -> Bench:
    return Bench(
        Options(device="cpu", sizes=("tiny",), rounds=2, warmup=0, quick=ranks.size == 1), ranks=ranks, folder=folder
    )


def main() -> None:
    """Do what argv[1] names, a JSON list."""
    torch.set_num_threads(1)
    use_few_blocks()
    gc.freeze()  # else each collection would look through all that was imported
    ranks, out = start_ranks(), Path(sys.argv[2])
    folder = out.with_suffix("")
    wanted = {
        "agree": lambda: steps_agree(ranks),
        "failure": lambda: failure_is_given_back(ranks),
        "zero": lambda: rows_of_zero(ranks, folder),
        "checkpoint": lambda: rows_of_checkpoint(ranks, folder),
        "restored": lambda: what_comes_back(ranks, folder),
    }
    found = {name: wanted[name]() for name in json.loads(sys.argv[1])}
    if ranks.rank == 0:
        out.write_text(json.dumps(found))
    stop_ranks(ranks)


if __name__ == "__main__":
    main()
