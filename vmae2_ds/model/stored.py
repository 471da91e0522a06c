"""Tensors that are read one at a time when they are asked for, and a safetensors file that is written so."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

Shape = tuple[int, ...]

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Their names in a safetensors header (github.com/huggingface/safetensors, Format)."""


class StoredState(Mapping[str, Tensor]):
    """A state dict of float32 tensors of which only names and shapes are in memory: each is read whenever it is asked for."""

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str], Tensor]) -> None:
        self.shapes, self._read = dict(shapes), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shapes by name, without reading a stored tensor."""
    return state.shapes if isinstance(state, StoredState) else {name: tuple(x.shape) for name, x in state.items()}


def save_safetensors(state: Mapping[str, Tensor], out: Path, metadata: Mapping[str, str]) -> None:
    """Write a state dict tensor by tensor; `out` is there only once it is whole.

    The library's `save_file` wants every tensor in memory. Wide types come first, as there, so that each starts where its
    type may.
    """
    shapes = shapes_of(state)
    dtypes = dict.fromkeys(shapes, torch.float32)
    if not isinstance(state, StoredState):
        dtypes = {name: tensor.dtype for name, tensor in state.items()}
    names = sorted(shapes, key=lambda name: -dtypes[name].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        header[name] = {"dtype": _DTYPES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = out.with_name(f".{out.name}.part{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                tensor = state[name].detach().cpu().contiguous()
                assert (tensor.dtype, tuple(tensor.shape)) == (dtypes[name], shapes[name]), (
                    f"{name} as the header has it"
                )
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
