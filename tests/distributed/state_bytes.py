"""Bytes that DeepSpeed really allocates and exchanges in optimizer steps on made-up clips.

As a module it is one rank that runs a list of variants, one after another, in one process. Everything lies in host
memory here, so what would be on a GPU and what is offloaded add up.
"""

from __future__ import annotations

import functools
import gc
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed.ranks import answer, of_all
from tests.distributed.steps import NUM_VIDEOS, make_clips
from tests.downstream.tad.end_to_end_steps import make_batch, steps_config
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.dist import Ranks
from vmae2_ds.train.build import build_engine

UNLEARNED = 2  # micro steps in which stage 3 learns the order of the modules
FLAGS = 16
"""Bytes; smaller messages are flags and norms."""
LARGE = {
    "wide": 2 << 20,
    "small": 8 << 20,
    "detector": 1 << 20,
}  # an allocation worth a look at what is alive, in bytes

MODELS = {
    "wide": ModelConfig(  # ViT-B's shapes at half the width in fewer blocks, 7.2 M parameters
        encoder=TowerConfig(width=384, depth=3, heads=6, mlp=1536),
        decoder=TowerConfig(width=192, depth=2, heads=3, mlp=768),
        attention="math",
    ),
    "small": ModelConfig(
        encoder=TowerConfig(width=96, depth=4, heads=2, mlp=384),
        decoder=TowerConfig(width=50, depth=2, heads=2, mlp=201),  # odd on purpose: shards are padded
        attention="math",
    ),
}


def detector_config() -> TadConfig:
    """A frozen encoder with adapters and a pyramid on top: 10 M parameters, a quarter of which learn."""
    made = steps_config()
    tower = TowerConfig(width=384, depth=4, heads=6, mlp=1536)
    head = HeadConfig.model_validate(made.model.head.model_dump() | {"width": 256})
    return made.changed(model={"encoder": tower, "head": head})


def make_config(
    model: str, policy_file: Path, world_size: int, precision: str, accumulation: int, checkpointing: str
) -> PretrainConfig | TadConfig:
    """One clip of 32 tokens to a micro step, or a window of 32: activations weigh little beside the states."""
    if model == "detector":
        return detector_config().changed(
            train={
                "global_batch": world_size * accumulation,
                "max_steps": UNLEARNED + 1,
                "precision": precision,
                "ds_config": str(policy_file),
            }
        )
    return PretrainConfig(
        model=MODELS[model].model_copy(update={"checkpointing": checkpointing}),
        data=PretrainDataConfig(num_frames=4, size=64, views=1),
        train=TrainConfig(
            global_batch=world_size * accumulation,
            micro_batch=1,
            max_steps=UNLEARNED + 1,
            precision=precision,
            ds_config=str(policy_file),
        ),
    )


@functools.cache
def is_tensor(kind: type) -> bool:
    """Asked of every object that is alive, and torch's own answer is slow."""
    return issubclass(kind, torch.Tensor)


class Watch(TorchDispatchMode):
    """Adds up the collectives that reach torch, and looks at what is alive whenever something large was allocated."""

    ALLOCATES = ("cat", "_to_copy", "empty", "zeros", "clone")
    SENDS = {  # noqa: RUF012  # operator -> the argument whose bytes DeepSpeed's comms logger counts
        "allreduce_": ("all_reduce", 0),
        "_allgather_base_": ("all_gather", 1),
        "_reduce_scatter_base_": ("reduce_scatter", 1),
        "reduce_": ("reduce", 0),
        "broadcast_": ("broadcast", 0),
        "allgather_": ("all_gather", 1),
        "alltoall_base_": ("exchange", 1),
    }

    def __init__(self, ignored: set[int], large: int) -> None:
        super().__init__()
        self.ignored, self.large = ignored, large
        self.peak = 0
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        """Collectives, without flags and norms."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "c10d":
            kind, position = self.SENDS.get(name, (name, 0))
            tensors = args[position] if isinstance(args[position], (list, tuple)) else [args[position]]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.sent[kind] += size
            self.calls[kind] += size > FLAGS
        elif name in self.ALLOCATES and out.numel() * out.element_size() >= self.large:
            self.look()
        return out

    def look(self) -> None:
        """Note what is alive if it is more than ever before."""
        if self.alive() > self.peak:
            self.peak = max(self.peak, self.settled())

    def settled(self) -> int:
        """What stays alive when nothing goes on: gloo's thread lets go of a finished message in its own time."""
        gc.collect()  # tensors in dead cycles do not count
        time.sleep(0.1)
        return self.alive()

    def alive(self) -> int:
        """Bytes of all tensors that are alive, each storage once."""
        alive: dict[int, int] = {}
        for thing in gc.get_objects():
            if not is_tensor(type(thing)) or thing.device.type == "meta":
                continue
            tensors = [thing, thing.grad] if thing.is_leaf and thing.grad is not None else [thing]
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.ignored:
                    alive[storage.data_ptr()] = storage.nbytes()
        return sum(alive.values())


@contextmanager
def only_new_tensors() -> Iterator[None]:
    """Hide what exists already from gc.get_objects, which also makes looking fast."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure(variant: dict[str, Any], world_size: int, rank: int) -> dict[str, Any]:
    """An optimizer step, after those in which stage 3 learns the order of the modules and Adam makes its moments."""
    from deepspeed.comm.comm import comms_logger

    policy = ZeroPolicy(**variant["policy"])
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    ds_config = dict.fromkeys(auto, "auto") | {
        "zero_optimization": policy.zero_optimization(),
        "comms_logger": {"enabled": True, "verbose": False, "prof_all": True, "debug": False},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, only_new_tensors():
        json.dump(ds_config, file)
        file.flush()
        accumulation = variant.get("accumulation", 1)
        config = make_config(
            variant["model"], Path(file.name), world_size, variant["precision"], accumulation,
            variant.get("checkpointing", "none"),
        ).changed(optim={"optimizer": variant.get("optimizer", "adamw")})  # fmt: skip
        plan = plan_run(config, NUM_VIDEOS, world_size)
        batches: list[Any] = [
            make_batch(config, step, rank) if isinstance(config, TadConfig) else make_clips(config, step, rank, 1)
            for step in range(accumulation)
        ]
        engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
        known = [*engine.objective.buffers(), *(tensor for batch in batches for tensor in batch)]
        ignored = {tensor.untyped_storage().data_ptr() for tensor in known if isinstance(tensor, torch.Tensor)}
        for _ in range(-(-UNLEARNED // accumulation)):
            for batch in batches:
                engine.micro_step(batch)
            assert engine.update().applied
        comms_logger.comms_dict.clear()
        backward, step = (Watch(ignored, LARGE[variant["model"]]) for _ in range(2))
        with backward:
            for batch in batches:
                engine.micro_step(batch)
        with step:
            step.look()
            assert engine.update().applied
        gc.collect()
        result = {
            "resident": step.settled(),
            "backward": backward.peak,
            "step": step.peak,
            "sent": dict(backward.sent + step.sent),
            "calls": dict(backward.calls + step.calls),
            "logged": {
                name: sum(size * row[0] for size, row in sizes.items())
                for name, sizes in comms_logger.comms_dict.items()
            },
        }
        engine.deepspeed.destroy()
        del engine
        gc.collect()
    return result


def measure_all(variants: dict[str, dict[str, Any]], ranks: Ranks) -> dict[str, list[Any]]:
    """Every rank's figures, by the name of the variant."""
    results = {}
    for name, variant in variants.items():
        start = time.process_time()
        results[name] = of_all(measure(variant, ranks.size, ranks.rank), ranks)
        print(f"{name}: {time.process_time() - start:.1f} s", flush=True)
    return results


if __name__ == "__main__":
    answer(measure_all)
