"""The float32 weights in a checkpoint's ZeRO shards, one parameter at a time."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from vmae2_ds.checkpoint.whole import WHOLE, why_torn
from vmae2_ds.checkpoint.zero_shards import MASTER, MEAN, ZeroShards, as_known, mean_file
from vmae2_ds.errors import CheckpointError
from vmae2_ds.weights.layouts import StateDict
from vmae2_ds.weights.lazy_state import StoredState

_PREFIX = "model."  # of an objective's model; what else it may have is not the model's


def read_weights(target: Path, *, mean: bool = False) -> StateDict:
    """All float32 weights of the checkpoint in `target` on the host; keys without `model.`. As `open_weights`."""
    return dict(open_weights(target, mean=mean))


def open_weights(target: Path, *, mean: bool = False) -> StoredState:
    """The float32 weights of the checkpoint in `target`, each put together from its shards when it is asked for.

    The same values as DeepSpeed's zero_to_fp32 gives, which holds them all at once and runs what its files hold.

    Args:
        mean: take the running mean of those that learn.

    Raises CheckpointError where the checkpoint is not whole, a file holds anything but plain data and tensors, or there is no
    running mean.
    """
    with as_known(target):
        reason = why_torn(target)
        if reason is not None:
            raise CheckpointError(f"{target}: not a whole checkpoint: {reason}")
        whole = json.loads((target / WHOLE).read_text())
        shards = ZeroShards(target, whole["world_size"], whole["stage"])
    shapes = {
        name.removeprefix(_PREFIX): tuple(shape)
        for name, shape in (shards.shapes | shards.frozen_shapes).items()
        if name.startswith(_PREFIX)
    }
    if mean and not (target / mean_file(0)).is_file():
        raise CheckpointError(f"{target} holds no running mean of the weights")

    def read(name: str) -> Tensor:
        return shards.whole(_PREFIX + name, MEAN if mean and _PREFIX + name in shards.shapes else MASTER)

    return StoredState(shapes, read)
