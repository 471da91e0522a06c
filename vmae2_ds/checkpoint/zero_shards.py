"""What ranks wrote of a model and its optimizer, put together one parameter at a time; tensors stay on disk until asked for.

The files are mapped and given back to the system after each parameter, and nothing that they may hold is run.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmae2_ds.checkpoint.safe_load import read_shard
from vmae2_ds.console.progress import counted
from vmae2_ds.errors import CheckpointError

MASTER = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""States of AdamW, and of Muon, which has one of its own; a shard of the weights has those of one of them."""
MEAN = "ema"


def mean_file(rank: int) -> str:
    """Path of the file with a rank's shards of the running mean, inside a checkpoint's folder."""
    return f"ema_rank{rank:05d}.pt"


@contextlib.contextmanager
def as_known(source: Path) -> Iterator[None]:
    """Turn what a file of another kind makes of the code that reads it into a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{source}: its files are not shards of DeepSpeed as known here ({error!r})") from None


class Fragment(NamedTuple):
    """A run of elements of one parameter, in one shard of one rank; a parameter's fragments follow each other."""

    rank: int
    shard: int
    offset: int
    numel: int


class _Place(NamedTuple):
    """Where a parameter begins: in the vector of its group at stages 0 to 2, in each rank's shard of it at stage 3."""

    shard: int
    start: int


class _RankStates(NamedTuple):
    """What one rank wrote: tensors by state and shard, and Adam's counter of each shard."""

    shards: dict[str, list[Tensor]]
    steps: list[Any]


class ZeroShards:
    """The states of a checkpoint that ranks wrote. Files of ranks but the first are opened where they hold what is asked for.

    Args:
        source: the checkpoint's folder.
        world_size: ranks that wrote it.
        stage: their ZeRO stage.

    Raises CheckpointError, when made or when asked for a tensor, where a rank's shards are not there, the files are not as
    DeepSpeed writes them, or one holds anything but plain data and tensors.
    """

    def __init__(self, source: Path, world_size: int, stage: int) -> None:
        self._source, self._stage, self._ranks = source, stage, world_size
        self.shapes: dict[str, torch.Size] = {}
        """Shapes of the trained parameters, in the order they are stored."""
        self.frozen_shapes: dict[str, torch.Size] = {}
        """Shapes of the other parameters."""
        self._frozen: list[dict[str, Tensor]] = []  # by rank
        self._places: dict[str, _Place] = {}
        self._opened: dict[int, _RankStates] = {}
        self._groups: list[dict[str, Any]] | None = None
        with as_known(source):
            self._models = self._by_rank("*_model_states.pt", world_size if stage == 3 else 1)
            self.model: dict[str, Any] = read_shard(self._models[0])
            """What was saved with the model, as rank 0 wrote it."""
            if stage == 0:
                self._open_unsplit()
            else:
                self._open_split(world_size)
            self._find_frozen()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """State -> whole tensor of the trained parameter `name`: fp32, and as saved its moments, ema, step."""
        first = self.fragments(name)[0]
        with as_known(self._source):
            saved = self._of(first.rank).shards
            states = [
                state for state, shards in saved.items() if shards[first.shard].numel()
            ]  # not the other optimizer's
        whole = {state: self.whole(name, state) for state in states}
        step = self.step(name)
        return whole if step is None else {**whole, "step": step}

    def step(self, name: str) -> Tensor | None:
        """Adam's counter of the trained parameter `name`; None where it was not saved."""
        first = self.fragments(name)[0]
        with as_known(self._source):
            step = self._of(first.rank).steps[first.shard]
        return None if step is None else step.clone()

    def whole(self, name: str, state: str = MASTER) -> Tensor:
        """One state of a parameter, or the only one of a frozen one; float32, in its shape."""
        with as_known(self._source):
            if name in self.frozen_shapes:
                shape = self.frozen_shapes[name]
                pieces = [(part, 0, part.numel()) for part in self._frozen_parts(name)]
            else:
                shape = self.shapes[name]
                found = self.fragments(name)
                pieces = [(self._of(x.rank).shards[state][x.shard], x.offset, x.numel) for x in found]
        values = torch.empty(sum(numel for _, _, numel in pieces))
        if values.numel() < shape.numel() or any(x.numel() < offset + numel for x, offset, numel in pieces):
            raise CheckpointError(f"{self._source}: the shards end before {name}; they are of another split")
        for place, (stored, offset, _) in zip(values.split([numel for _, _, numel in pieces]), pieces, strict=True):
            _take(place, stored.detach(), offset)
        return values[: shape.numel()].view(shape)

    def fragments(self, name: str) -> list[Fragment]:
        """Where the elements of the trained parameter `name` lie, in their order. Opens no file."""
        shard, start = self._places[name]
        numel = self.shapes[name].numel()
        if self._stage == 3:
            # each parameter is cut in equal parts, the last ones padded; a rank strings its parts together
            part = max(1, math.ceil(numel / self._ranks))
            return [
                Fragment(rank, shard, start, min(part, numel - rank * part)) for rank in range(math.ceil(numel / part))
            ]
        # the vector of a group is cut in equal parts, the last one padded
        size = self._of(0).shards[MASTER][shard].numel()
        ranks = range(start // size, math.ceil((start + numel) / size)) if self._stage else range(1)
        starts = [max(start, rank * size) for rank in ranks]
        stops = [*starts[1:], start + numel]
        return [
            Fragment(rank, shard, first - rank * size, stop - first)
            for rank, first, stop in zip(ranks, starts, stops, strict=True)
        ]

    def hyperparameters(self) -> list[dict[str, Any]]:
        """The optimizer's groups as they were saved. Raises CheckpointError where weights alone can be read."""
        if self._groups is None:
            raise CheckpointError(f"{self._source}: the optimizer's states are not there, or not as known here")
        return self._groups

    def _open_unsplit(self) -> None:
        optimizer = self.model["optimizer"]
        if optimizer is None:
            return  # all that there is, is the module's
        order = [name for group in optimizer["param_groups"] for name in group["param_names"]]
        masters = [self.model["module"][name] for name in order]
        for shard, (name, master) in enumerate(zip(order, masters, strict=True)):
            self.shapes[name] = master.shape
            self._places[name] = _Place(shard, 0)
        self._groups, self._opened[0] = self._states(0, masters, optimizer)

    def _open_split(self, world_size: int) -> None:
        self._optimizers = self._by_rank("*_optim_states.pt", world_size)
        saved = read_shard(self._optimizers[0])["optimizer_state_dict"]
        self._groups, self._opened[0] = self._split_states(0, saved)
        paddings = saved.get("param_alignment_paddings")
        for shard, shapes in enumerate(self.model["param_shapes"]):
            self.shapes |= shapes
            start = 0
            for place, (name, shape) in enumerate(shapes.items()):
                self._places[name] = _Place(shard, start)
                start += math.ceil(shape.numel() / world_size) if self._stage == 3 else shape.numel()
                start += paddings[shard][place] if paddings and self._stage < 3 else 0

    def _of(self, rank: int) -> _RankStates:
        if rank not in self._opened:
            saved = read_shard(self._optimizers[rank])["optimizer_state_dict"]
            _, self._opened[rank] = self._split_states(rank, saved)
        return self._opened[rank]

    def _split_states(self, rank: int, saved: dict[str, Any]) -> tuple[list[dict[str, Any]] | None, _RankStates]:
        masters = saved["fp32_flat_groups" if self._stage == 3 else "single_partition_of_fp32_groups"]
        optimizer = saved.get("optimizer_state_dict" if self._stage == 3 else "base_optimizer_state")
        return self._states(rank, masters, optimizer)

    def _states(
        self, rank: int, masters: list[Tensor], optimizer: Any
    ) -> tuple[list[dict[str, Any]] | None, _RankStates]:
        """Groups and states. In `optimizer` only Adam's dict of states is known; elastic_checkpoint writes a list."""
        groups, states = None, dict[int, dict[str, Any]]()
        if isinstance(optimizer, dict):
            groups, states = optimizer["param_groups"], optimizer["state"]
        moments = [states.get(shard, {}) for shard in range(len(masters))]
        shards = {MASTER: list(masters)}
        none = torch.empty(0)
        found = [key for key in MOMENTS if any(key in state for state in moments)]
        shards |= {key: [state.get(key, none) for state in moments] for key in found}
        mean = self._source / mean_file(rank)
        if mean.is_file():
            shards[MEAN] = read_shard(mean)
        return groups, _RankStates(shards, [state.get("step") for state in moments])

    def _find_frozen(self) -> None:
        """They keep the type they were trained in."""
        if self._stage == 3:
            self.frozen_shapes = dict(self.model["frozen_param_shapes"] or {})
        else:
            self._frozen = [{name: value for name, value in self.model["module"].items() if name not in self.shapes}]
            self.frozen_shapes = {name: value.shape for name, value in self._frozen[0].items()}

    def _frozen_parts(self, name: str) -> list[Tensor]:
        if not self._frozen:
            self._frozen = [read_shard(path)["frozen_param_fragments"] for path in self._models]
        return [parts[name] for parts in self._frozen]

    def _by_rank(self, pattern: str, ranks: int) -> list[Path]:
        """Rank 0 first: rank 10 is not behind rank 1."""
        found = self._source.glob(pattern)
        paths = sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
        if len(paths) != ranks:
            raise CheckpointError(
                f"{self._source} has {pattern} of {counted(len(paths), 'rank')}, and of {ranks} they should be"
            )
        return paths


def _take(place: Tensor, stored: Tensor, offset: int) -> None:
    """Fill `place` with the values of a mapped tensor from `offset` on."""
    part = stored.flatten().narrow(0, offset, place.numel())
    place.copy_(part)
    if stored.is_contiguous():  # else `part` is a copy on the heap
        _give_back(part)


def _give_back(part: Tensor) -> None:
    """Let the system have a mapped file's pages again: they stay in its cache, but no longer count as this process's.

    Only for what `read_shard` gave: pages that are no file's would come back as zeros.
    """
    if not sys.platform.startswith("linux"):
        return
    start = part.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = part.data_ptr() + part.numel() * part.element_size() - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
