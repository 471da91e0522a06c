"""DeepSpeed's files are read as tensors and plain values: no code that a file names is run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.published import load_plain

CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""What `get_unsafe_globals_in_checkpoint` lists for ZeRO 1, 2 and 3 (0.19): data holders without behaviour at unpickling."""


class _Ignored:
    """Stands in for DeepSpeed's own classes, which take seconds to import."""

    def __init__(self, *values: object) -> None:
        del values


def read_state(path: Path | str, map_location: Any = "cpu", *, mmap: bool = False) -> Any:
    """What torch.save wrote to `path`, with DeepSpeed's objects as its engine wants them back; errors as `load_plain`.

    With `mmap` tensors stay on disk until they are touched.
    """
    found = [name.rpartition(".") for name in CLASSES]
    classes = [getattr(import_module(module), name) for module, _, name in found]
    return load_plain(Path(path), classes, map_location, mapped=mmap)


def read_shard(path: Path) -> Any:
    """The tensors and plain values in a shard, left in the file until they are touched; DeepSpeed is not needed."""
    loaded = load_plain(path, [(_Ignored, name) for name in CLASSES], mapped=True)
    if not isinstance(loaded, dict | list):
        raise CheckpointError(f"{path} is not a file of a DeepSpeed checkpoint")
    return loaded
