"""Engines of the policies in ds_configs/ on made-up clips: built, stepped, counted and torn down, one after another.

A process joins one process group for good (DeepSpeed), so all engines of a run share it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from benchmarks import flight
from benchmarks.case import Bench
from benchmarks.harness import FAILURES, attempt, reason_of
from benchmarks.steps import MASKS, SEED, Precision
from vmae2_ds.config.ds_config import fill_policy, policy_names, read_policy, zero_stage
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.engine.step import Engine
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.optim import set_learning_rate
from vmae2_ds.tune.trial import LEARNING_RATE, noise_batch

Result = TypeVar("Result")

MASK = "dual"
FLAGS = 16
"""Bytes; smaller messages are flags and norms."""
LAUNCHER_LOOKS_S = 3.0
"""DeepSpeed's launcher looks once a second whether a rank is gone (launcher/launch.py)."""
KINDS = {"all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter"}
"""DeepSpeed's names for what vmae2_ds.cost.comm calls otherwise."""


def policies(precision: Precision, device: torch.device, num_ranks: int) -> dict[str, dict[str, Any]]:
    """The policies that can train so, by name: stage 0 in float32 alone, ZeRO++ over several ranks.

    ZeRO++ on a CPU is hpZ alone: the kernels of its quantisation need a GPU.
    """
    on_cpu, found = device.type == "cpu", {}
    for name in policy_names():
        policy = read_policy(name)
        zero = policy["zero_optimization"]
        if (name == "cpu" and not on_cpu) or (zero_stage(policy) == 0 and precision == "bf16"):
            continue  # of other machines; refused by fill_policy
        if "zero_hpz_partition_size" in zero:
            if num_ranks == 1:
                continue  # stage 3
            for quantized in ("zero_quantized_weights", "zero_quantized_gradients"):
                zero[quantized] = zero[quantized] and not on_cpu
        found[name] = policy
    return dict(sorted(found.items(), key=lambda item: (zero_stage(item[1]), item[0])))


def run_config(
    size: str, precision: Precision, policy: str, attention: str, micro_batch: int, global_batch: int
) -> PretrainConfig:
    """A published size on clips of 16 x 224 x 224 under dual masking, nothing recomputed, one view of a video."""
    return PretrainConfig(
        model=ModelConfig.of_size(size, attention=attention),
        mask=MASKS[MASK],
        data=PretrainDataConfig(views=1),
        train=TrainConfig(
            global_batch=global_batch, micro_batch=micro_batch, max_steps=1, precision=precision, ds_config=policy,
            seed=SEED,
        ),
    )  # fmt: skip


class Trainee(NamedTuple):
    """An engine and what it is fed."""

    engine: Engine
    step: Callable[[], None]
    """One optimizer step on this rank's clips, all of its micro steps."""


def set_up(config: PretrainConfig, policy: dict[str, Any], ranks: Ranks) -> Trainee:
    """An engine whose every step sees the same noise, another one on each rank.

    Raises what the engine raises, torch's out-of-memory error among them; ConfigError where the batch does not divide.
    """
    plan = plan_run(config, config.train.global_batch, ranks.size)
    engine = build_engine(config, fill_policy(policy, config, plan, on_cpu=default_device().type == "cpu"))
    set_learning_rate(engine.parameter_groups, LEARNING_RATE)
    rng = np.random.default_rng((SEED, ranks.rank))
    batch = noise_batch(config.mask, config.geometry, plan.clips_per_micro_step, rng)

    def step() -> None:
        for _ in range(plan.accumulation):
            engine.micro_step(batch)
        engine.update()

    return Trainee(engine, step)


def tear_down() -> None:
    """Let go of all engines of this process, of those too that failed half way; callers drop their references afterwards.

    `destroy` of deepspeed 0.19.8 leaves a stage 3 engine whole, with 15 bytes for each parameter: its module stays in a list
    (zero/parameter_offload.py:FWD_MODULE_STACK), and a cached method holds its coordinator
    (zero/partitioned_param_coordinator.py:__params_to_release). hpZ's process group stays too, and every later engine would
    keep a second copy of its weights over it.
    """
    import deepspeed.comm
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.utils import groups

    gc.collect()
    for thing in gc.get_objects():
        if issubclass(type(thing), deepspeed.DeepSpeedEngine):
            with contextlib.suppress(AttributeError):  # what failed while it was built lacks parts
                thing.destroy()
    for cached in _cached_functions():
        cached.cache_clear()
    parameter_offload.FWD_MODULE_STACK.clear()
    near = groups._get_zero_param_intra_parallel_group()
    if near is not None:
        deepspeed.comm.destroy_process_group(near)


def _cached_functions() -> Iterator[functools._lru_cache_wrapper[Any]]:
    """Of DeepSpeed's modules and their classes, also behind a decorator.

    gc.get_objects() would not list them where a process was frozen after the import.
    """
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith("deepspeed.")]
    classes = [vars(thing) for names in modules for thing in names.values() if isinstance(thing, type)]
    for thing in (thing for names in (*modules, *classes) for thing in names.values()):
        behind = inspect.getclosurevars(thing).nonlocals.values() if isinstance(thing, FunctionType) else ()
        for each in (thing, *behind):
            if isinstance(each, functools._lru_cache_wrapper) and str(each.__module__).startswith("deepspeed."):
                yield each


def meet(device: torch.device, ranks: Ranks) -> None:
    """Wait for all ranks and for what their devices have been asked to do."""
    if ranks.size > 1:
        torch.distributed.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Seconds(NamedTuple):
    """One step's."""

    wall: float
    """From when all ranks are ready until the last one is done."""
    cpu: float
    """CPU time of this rank's process, all of its threads."""


def time_step(step: Callable[[], None], device: torch.device, ranks: Ranks) -> Seconds:
    """Run one step between two meetings of all ranks."""
    meet(device, ranks)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    meet(device, ranks)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


class Traffic(NamedTuple):
    """What one rank handed to collectives in a step, flags and norms left out."""

    payload: dict[str, int]
    """Bytes by kind, as DeepSpeed's logger adds them up: an all_gather's shard, else the whole input."""
    calls: int


def count_traffic(step: Callable[[], None]) -> Traffic:
    """Run one step under DeepSpeed's comms logger, which waits for every collective: a step that is not timed."""
    import deepspeed.comm
    from deepspeed.comm.comm import comms_logger

    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)
    comms_logger.comms_dict.clear()
    try:
        step()
    finally:
        deepspeed.comm.configure(enabled=False)
    payload, calls = Counter[str](), 0
    for name, sizes in comms_logger.get_raw_data().items():
        for size, (count, *_) in sizes.items():
            if size > FLAGS:
                payload[KINDS.get(name, name)] += size * count
                calls += count
    return Traffic(dict(payload), calls)


def lost_before(bench: Bench) -> dict[str, str]:
    """Variants that ended the ranks in an earlier try at this group, and why; the same on every rank."""
    noted = flight.read_flight(bench.folder) if bench.folder and bench.ranks.rank == 0 else None
    return of_all_ranks(dict(noted.lost) if noted else {}, bench.ranks)[0]


def try_variant(bench: Bench, name: str, call: Callable[[], Result], failed: dict[str, str]) -> Result | None:
    """What `call` returns; None, and the reason in `failed`, where it failed and this process is the only one.

    Where others wait in a collective the error goes up: it ends this rank, the launcher ends the others, and the group is
    measured again without this variant.
    """
    if bench.folder and bench.ranks.rank == 0:
        flight.enter(bench.folder, name)
    of_all_ranks(None, bench.ranks)  # nobody fails before that is written
    try:
        result = attempt(name, call, failed) if bench.ranks.size == 1 else call()
    except FAILURES as error:
        # Where another rank was killed, this one sees a broken connection: the launcher finds that first, and says more.
        time.sleep(LAUNCHER_LOOKS_S)
        if bench.folder:
            flight.give_up(bench.folder, name, reason_of(error))
        raise
    if name in failed:
        tear_down()
        gc.collect()
        torch.cuda.empty_cache()  # nothing without CUDA
    if bench.folder and bench.ranks.rank == 0:
        flight.leave(bench.folder)
    return result


def of_all_ranks(value: Any, ranks: Ranks) -> list[Any]:
    """Everybody's (picklable) value, in the order of the ranks, on every rank."""
    if ranks.size == 1:
        return [value]
    values: list[Any] = [None] * ranks.size
    torch.distributed.all_gather_object(values, value)
    return values
