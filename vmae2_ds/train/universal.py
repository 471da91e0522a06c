"""A checkpoint as whole tensors by parameter name, in DeepSpeed's universal layout: any ranks at any stage can start from it.

    ckpt/universal/stepN/   zero/NAME/{fp32,exp_avg,exp_avg_sq,step,ema}.pt zero/optimizer_state.pt *_model_states.pt whole.json

The tensors are those of DeepSpeed's own ds_to_universal (a test compares them), but nothing pickled is run, all ranks share
the work, the folder appears whole or not at all, and the running mean of the weights comes along.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vmae2_ds.dist import World
from vmae2_ds.errors import CheckpointError
from vmae2_ds.train.hashed_files import HashedFiles
from vmae2_ds.train.safe_load import read_state

FOLDER = "universal"
"""Beside the checkpoints of a run."""
MOMENTS = ("exp_avg", "exp_avg_sq")
MEAN = "ema"


def mean_file(rank: int) -> str:
    """Where a rank keeps its shards of the running mean, in a checkpoint's folder."""
    return f"ema_rank{rank:05d}.pt"


class Fragment(NamedTuple):
    """A run of elements of one parameter, in one shard of one rank; a parameter's fragments follow each other."""

    rank: int
    shard: int
    offset: int
    numel: int


class SplitStates:
    """The states of a checkpoint that ranks wrote, put together parameter by parameter; tensors stay on disk until asked for.

    Args:
        source: the checkpoint's folder.
        world_size: ranks that wrote it.
        stage: their ZeRO stage.
    """

    def __init__(self, source: Path, world_size: int, stage: int) -> None:
        self.stage = stage
        self.shapes: dict[str, torch.Size] = {}
        """Of the trained parameters, in the order they are stored."""
        self._fragments: dict[str, list[Fragment]] = {}
        self._shards: list[dict[str, list[torch.Tensor]]] = []  # by rank: state -> shards
        self._steps: list[list[Any]] = []  # by rank and shard
        names = [f"zero_pp_rank_{rank}_" if stage == 3 else "" for rank in range(world_size if stage == 3 else 1)]
        models = [read_state(source / f"{name}mp_rank_00_model_states.pt", mmap=True) for name in names]
        self.model = models[0]
        for rank in range(world_size if stage > 0 else 1):
            self._open_rank(source, rank, world_size)
        self.frozen: dict[str, torch.Tensor] = self._read_frozen(models)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """State -> whole tensor of the trained parameter `name`: fp32, and as saved exp_avg, exp_avg_sq, ema, step."""
        fragments = self._fragments[name]
        whole = {
            state: torch.cat([self._part(state, fragment) for fragment in fragments]).view(self.shapes[name])
            for state in self._shards[0]
        }
        step = self._steps[fragments[0].rank][fragments[0].shard]
        return whole if step is None else {**whole, "step": step.clone()}

    def hyperparameters(self) -> list[dict[str, Any]]:
        """The optimizer's groups as they were saved."""
        return self._groups

    def _part(self, state: str, fragment: Fragment) -> torch.Tensor:
        return self._shards[fragment.rank][state][fragment.shard].flatten().narrow(0, fragment.offset, fragment.numel)

    def _open_rank(self, source: Path, rank: int, world_size: int) -> None:
        if self.stage == 0:
            optimizer = self.model["optimizer"]
            order = [name for group in optimizer["param_groups"] for name in group["param_names"]]
            masters = [self.model["module"][name].float() for name in order]
            for shard, (name, master) in enumerate(zip(order, masters, strict=True)):
                self._place(name, master.shape, Fragment(rank, shard, 0, master.numel()))
        else:
            path = next(source.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"), None)
            if path is None:
                raise CheckpointError(f"{source} lacks the optimizer's shard of rank {rank}")
            saved = read_state(path, mmap=True)["optimizer_state_dict"]
            optimizer = saved["optimizer_state_dict" if self.stage == 3 else "base_optimizer_state"]
            masters = saved["fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"]
            if self.stage == 3:
                self._place_stage3(rank, world_size)
            else:
                shapes = {name: shape for group in self.model["param_shapes"] for name, shape in group.items()}
                for shard, places in enumerate(saved["param_slice_mappings"]):
                    for name, place in places.items():
                        self._place(name, shapes[name], Fragment(rank, shard, place.start, place.numel))
        self._groups = optimizer["param_groups"]
        moments = [optimizer["state"].get(shard, {}) for shard in range(len(masters))]
        shards = {"fp32": list(masters)}
        shards |= {key: [state[key] for state in moments] for key in MOMENTS if all(key in state for state in moments)}
        if (source / mean_file(rank)).is_file():
            shards[MEAN] = read_state(source / mean_file(rank), mmap=True)
        self._shards.append(shards)
        self._steps.append([state.get("step") for state in moments])

    def _place(self, name: str, shape: torch.Size, fragment: Fragment) -> None:
        self.shapes.setdefault(name, shape)
        self._fragments.setdefault(name, []).append(fragment)

    def _place_stage3(self, rank: int, world_size: int) -> None:
        """Each parameter is cut in `world_size` equal parts, the last ones padded, and each rank strings its parts together."""
        for shard, shapes in enumerate(self.model["param_shapes"]):
            offset = 0
            for name, shape in shapes.items():
                part = math.ceil(shape.numel() / world_size)
                self._place(name, shape, Fragment(rank, shard, offset, max(0, min(part, shape.numel() - rank * part))))
                offset += part

    def _read_frozen(self, models: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self.stage < 3:
            return {name: value for name, value in self.model["module"].items() if name not in self.shapes}
        return {
            name: torch.cat([model["frozen_param_fragments"][name].flatten() for model in models])[
                : shape.numel()
            ].view(shape)
            for name, shape in (self.model["frozen_param_shapes"] or {}).items()
        }


def convert(source: Path, target: Path, world_size: int, stage: int, world: World) -> HashedFiles:
    """Write the universal form of `source` into the folder `target`, each rank its share of the parameters.

    Returns this rank's files, whose `error` holds what the disk refused. Raises CheckpointError where the source is not as
    DeepSpeed writes it.
    """
    states = SplitStates(source, world_size, stage)
    files = HashedFiles(target)
    names = [*states.shapes, *states.frozen]
    for name in names[world.rank :: world.size]:
        tensors = states.tensors(name) if name in states.shapes else {"fp32": states.frozen[name].float()}
        for state, tensor in tensors.items():
            # cat_dim: as ds_to_universal writes it for stages 1 and 2, which DeepSpeed's loaders of every stage understand
            files.save(
                tensor if state == "step" else {"param": tensor, "cat_dim": 0}, target / "zero" / name / f"{state}.pt"
            )
    if world.rank == 0:
        step = next((states.tensors(name).get("step") for name in states.shapes), None)
        groups = states.hyperparameters()
        files.save(
            {
                "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": groups},
                "param_groups": groups,
                "ds_version": states.model["ds_version"],
            },
            target / "zero" / "optimizer_state.pt",
        )
        # what is not a tensor of the model, under the name that stages below 3 look for and the one of stage 3
        model = {**states.model, "module": {}, "optimizer": None, "frozen_param_fragments": None}
        for prefix in ("", "zero_pp_rank_0_"):
            files.save(model, target / f"{prefix}mp_rank_00_model_states.pt")
    return files


class WholeStates:
    """Reads a universal checkpoint; tensors stay on disk until they are touched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def client_state(self) -> dict[str, Any]:
        """What was saved beside the model: counters, and the caller's own state."""
        return read_state(self._folder / "mp_rank_00_model_states.pt")

    def read(self, name: str, state: str) -> torch.Tensor | None:
        """The flattened tensor of one state of a parameter; None where it was not saved."""
        path = self._folder / "zero" / name / f"{state}.pt"
        if not path.is_file():
            return None
        found = read_state(path, mmap=True)
        return found if state == "step" else found["param"].flatten()


def remove(folder: Path) -> None:
    """Remove a universal checkpoint, or what is left of one, so that it does not count from the first moment on."""
    if folder.exists():
        for manifest in folder.glob("*.json"):
            manifest.unlink()
        shutil.rmtree(folder)
