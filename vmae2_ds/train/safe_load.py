"""Checkpoint files are read as tensors and plain values: no code that a file names is run."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.errors import CheckpointError


def read_state(path: Path | str, map_location: Any = "cpu", *, mmap: bool = False) -> Any:
    """What torch.save wrote to `path`, with torch's restricted unpickler and the three plain classes DeepSpeed 0.19 puts there.

    With `mmap` tensors stay on disk until they are touched. Raises CheckpointError where the file asks for anything else,
    or is damaged.
    """
    with torch.serialization.safe_globals(_deepspeed_classes()):
        try:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f"names {named[1]}" if named else "is no plain pickle"
            raise CheckpointError(f"{path} holds more than tensors and plain values: it {what}; not opened") from None
        except (RuntimeError, EOFError, KeyError) as error:
            raise CheckpointError(
                f"{path} is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}"
            ) from None


def _deepspeed_classes() -> list[Any]:
    """Data holders without behaviour at unpickling: what `get_unsafe_globals_in_checkpoint` lists for ZeRO 1, 2 and 3."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]
