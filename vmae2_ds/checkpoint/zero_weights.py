"""The float32 weights in a checkpoint's ZeRO shards, one parameter at a time."""

from __future__ import annotations

import json
from pathlib import Path

from vmae2_ds.checkpoint.whole import WHOLE, why_torn
from vmae2_ds.checkpoint.zero_shards import ZeroShards, as_known
from vmae2_ds.errors import CheckpointError
from vmae2_ds.weights.layouts import StateDict
from vmae2_ds.weights.lazy_state import StoredState

_PREFIX = "model."  # of an objective's model; what else it may have is not the model's


def read_weights(target: Path) -> StateDict:
    """All float32 weights of the checkpoint in `target` on the host; keys without `model.`. Errors as `open_weights`."""
    return dict(open_weights(target))


def open_weights(target: Path) -> StoredState:
    """The float32 weights of the checkpoint in `target`, each put together from its shards when it is asked for.

    The same values as DeepSpeed's zero_to_fp32 gives, which holds them all at once and runs what its files hold.

    Raises CheckpointError where the checkpoint is not whole, or a file holds anything but plain data and tensors.
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
    return StoredState(shapes, lambda name: shards.whole(_PREFIX + name))
