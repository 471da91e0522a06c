"""DeepSpeed's files are read as tensors and plain values: no code that a file names is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmae2_ds.errors import CheckpointError
from vmae2_ds.weights.files import load_plain


class _Ignored:
    """Stands in for one of DeepSpeed's classes, which take seconds to import."""

    def __init__(self, *values: object) -> None:
        del values


STAND_INS = [
    (_Ignored, f"deepspeed.{name}")
    for name in (
        "runtime.fp16.loss_scaler.LossScaler",
        "runtime.zero.config.ZeroStageEnum",
        "utils.tensor_fragment.fragment_address",
    )
]


def read_state(path: Path | str, map_location: Any = "cpu", *, mmap: bool = False) -> Any:
    """What torch.save wrote to `path`, with DeepSpeed's objects as its engine wants them back; errors as `load_plain`.

    With `mmap` tensors stay on disk until they are touched.
    """
    # Data holders without behaviour at unpickling: what `get_unsafe_globals_in_checkpoint` lists for ZeRO 1, 2 and 3 (0.19).
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return load_plain(Path(path), [LossScaler, ZeroStageEnum, fragment_address], map_location, mapped=mmap)


def read_shard(path: Path) -> Any:
    """The tensors and plain values in a shard, left in the file until they are touched; DeepSpeed is not needed."""
    loaded = load_plain(path, STAND_INS, mapped=True)
    if not isinstance(loaded, dict | list):
        raise CheckpointError(f"{path} is not a file of a DeepSpeed checkpoint")
    return loaded
