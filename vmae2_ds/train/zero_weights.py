"""The float32 weights in a checkpoint's ZeRO shards, one parameter at a time, without running what the files may hold."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.layouts import State
from vmae2_ds.model.published import load_plain
from vmae2_ds.model.stored import StoredState
from vmae2_ds.train.checkpoint import WHOLE, why_torn

_MODEL, _OPTIMIZER = "*_model_states.pt", "*_optim_states.pt"
_PREFIX = "model."  # of an objective's model; what else it may have is not the model's


class _Ignored:
    """Stands in for DeepSpeed's own classes: nothing that a shard's weights need."""

    def __init__(self, *values: object) -> None:
        del values


_DEEPSPEED = [
    (_Ignored, f"deepspeed.{name}")
    for name in (
        "runtime.fp16.loss_scaler.LossScaler",
        "runtime.zero.config.ZeroStageEnum",
        "utils.tensor_fragment.fragment_address",
    )
]


class _Piece(NamedTuple):
    """Values `start` to `stop` of tensors that are laid end to end."""

    flat: Sequence[Tensor]
    start: int
    stop: int


class _Place(NamedTuple):
    """Where a parameter lies: its pieces, joined, cut at its size and given its shape."""

    shape: torch.Size
    pieces: list[_Piece]


def read_weights(target: Path) -> State:
    """All float32 weights of the checkpoint in `target` on the host; keys without `model.`. Errors as `open_weights`."""
    return dict(open_weights(target))


def open_weights(target: Path) -> StoredState:
    """The float32 weights of the checkpoint in `target`, each put together from its shards when it is asked for.

    The same values as DeepSpeed's zero_to_fp32 gives, which holds them all at once and runs what its files hold. The files are
    mapped, and given back to the system after each parameter.

    Raises CheckpointError where the checkpoint is not whole, or a file holds anything but plain data and tensors.
    """
    try:
        reason = why_torn(target)
        if reason is not None:
            raise CheckpointError(f"{target}: not a whole checkpoint: {reason}")
        whole = json.loads((target / WHOLE).read_text())
        places = _places(target, whole["stage"], whole["world_size"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{target}: its files are not shards of DeepSpeed as known here ({error!r})") from None
    names = {name.removeprefix(_PREFIX): name for name in places if name.startswith(_PREFIX)}

    def read(name: str) -> Tensor:
        shape, pieces = places[names[name]]
        parts = [part for piece in pieces for part in _cut(piece)]
        if sum(part.numel() for part in parts) < shape.numel():
            raise CheckpointError(f"{target}: the shards end before {name}; they are of another split")
        values = torch.empty(sum(part.numel() for part in parts))
        for place, part in zip(values.split([part.numel() for part in parts]), parts, strict=True):
            place.copy_(part)
            _give_back(part)
        return values[: shape.numel()].view(shape)

    return StoredState({name: tuple(places[theirs].shape) for name, theirs in names.items()}, read)


def _places(target: Path, stage: int, world_size: int) -> dict[str, _Place]:
    """Where each parameter lies; what needs no gradient is not among the optimizer's shards."""
    models = [_load(path) for path in _by_rank(target, _MODEL)[: None if stage == 3 else 1]]
    if stage == 0:
        return {name: _whole([x], x.shape) for name, x in models[0]["module"].items()}
    shapes: list[Mapping[str, torch.Size]] = models[0]["param_shapes"]
    frozen: Mapping[str, torch.Size] = models[0]["frozen_param_shapes"] or {}
    places = {
        name: _whole([x["frozen_param_fragments"][name] for x in models], shape) for name, shape in frozen.items()
    }
    shards = [_load(path)["optimizer_state_dict"] for path in _by_rank(target, _OPTIMIZER)]
    if len(shards) != world_size:
        raise CheckpointError(f"{target} has the optimizer shards of {len(shards)} ranks, and {world_size} wrote it")
    if stage == 3:
        places |= _across_ranks([shard["fp32_flat_groups"] for shard in shards], shapes)
    else:
        groups = [shard["single_partition_of_fp32_groups"] for shard in shards]
        places |= _end_to_end(groups, shapes, shards[0].get("param_alignment_paddings"))
    return places


def _across_ranks(flat_of_rank: list[list[Tensor]], shapes: list[Mapping[str, torch.Size]]) -> dict[str, _Place]:
    """Stage 3: every parameter is cut among the ranks, the last part padded; a rank's parts lie end to end in its groups."""
    places = {}
    start = 0
    for name, shape in ((name, shape) for group in shapes for name, shape in group.items()):
        stop = start + math.ceil(shape.numel() / len(flat_of_rank))
        places[name] = _Place(shape, [_Piece(flat, start, stop) for flat in flat_of_rank])
        start = stop
    return places


def _end_to_end(
    groups_of_rank: list[list[Tensor]], shapes: list[Mapping[str, torch.Size]], paddings: list[list[int]] | None
) -> dict[str, _Place]:
    """Stages 1 and 2: a group's parameters lie end to end, perhaps with gaps, and that vector is cut among the ranks."""
    places = {}
    for number, group in enumerate(shapes):
        flat = [groups[number] for groups in groups_of_rank]
        start = 0
        for place, (name, shape) in enumerate(group.items()):
            places[name] = _Place(shape, [_Piece(flat, start, start + shape.numel())])
            start += shape.numel() + (paddings[number][place] if paddings is not None else 0)
    return places


def _whole(fragments: list[Tensor], shape: torch.Size) -> _Place:
    flat = [fragment.flatten() for fragment in fragments]
    return _Place(shape, [_Piece(flat, 0, sum(x.numel() for x in flat))])


def _cut(piece: _Piece) -> list[Tensor]:
    """The piece's values, where they lie."""
    found = []
    before = 0
    for tensor in piece.flat:
        start, stop = max(piece.start - before, 0), min(piece.stop - before, tensor.numel())
        if start < stop:
            found.append(tensor.detach()[start:stop])
        before += tensor.numel()
    return found


def _by_rank(target: Path, pattern: str) -> list[Path]:
    """Rank 0 first: rank 10 is not behind rank 1."""
    found = sorted(target.glob(pattern), key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    if not found:
        raise CheckpointError(f"{target} has no {pattern}")
    return found


def _load(path: Path) -> dict[str, Any]:
    loaded = load_plain(path, _DEEPSPEED, mapped=True)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a file of a DeepSpeed checkpoint")
    return loaded


def _give_back(part: Tensor) -> None:
    """Let the system have a mapped file's pages again: they stay in its cache, but no longer count as this process's.

    Only for what `load_plain(mapped=True)` gave: pages that are no file's would come back as zeros.
    """
    if not sys.platform.startswith("linux"):
        return
    start = part.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = part.data_ptr() + part.numel() * part.element_size() - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
