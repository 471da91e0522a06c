"""Tensors that are read one at a time when they are asked for, and a safetensors file that is written so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vmae2_ds.disk import whole_file
from vmae2_ds.errors import CheckpointError

Shape = tuple[int, ...]

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""Names of dtypes in a safetensors header (github.com/huggingface/safetensors, Format)."""


class StoredState(Mapping[str, Tensor]):
    """A state dict of which only names, shapes and dtypes are in memory: a tensor is read whenever it is asked for."""

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        read: Callable[[str], Tensor],
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        """`dtypes`: of every tensor; default: all float32."""
        self.shapes, self._read = dict(shapes), read
        self.dtypes = dict.fromkeys(self.shapes, torch.float32) if dtypes is None else dict(dtypes)

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


def dtypes_of(state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Dtypes by name, without reading a stored tensor."""
    return state.dtypes if isinstance(state, StoredState) else {name: x.dtype for name, x in state.items()}


def in_dtype(state: Mapping[str, Tensor], dtype: torch.dtype) -> StoredState:
    """These tensors in another floating point type, each converted when it is asked for.

    Reading one raises CheckpointError where finite values become infinite.
    """

    def read(name: str) -> Tensor:
        tensor = state[name]
        converted = tensor.to(dtype)
        if not converted.isfinite().all() and tensor.isfinite().all():
            largest, short = tensor.abs().max().item(), str(dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name} holds {largest:g}, and {short} ends at {torch.finfo(dtype).max:g}; take float32 or bfloat16"
            )
        return converted

    shapes = shapes_of(state)
    return StoredState(shapes, read, dict.fromkeys(shapes, dtype))


def save_safetensors(state: Mapping[str, Tensor], out: Path, metadata: Mapping[str, str]) -> None:
    """Write a state dict tensor by tensor; `out` is there only once it is whole.

    By hand, for `safetensors.torch.save_file` (0.8) takes the addresses of all tensors at once: writing a ViT-B of 359 MiB from
    a ZeRO-3 checkpoint took 361 MiB more with it, and 26 so; the largest tensor has 9. The shards that huggingface_hub plans
    would only bound that by the size of a shard. Wide types come first, as in the library's files, so that each starts where
    its type may.
    """
    shapes, dtypes = shapes_of(state), dtypes_of(state)
    if unknown := [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in _DTYPES]:
        raise CheckpointError(f"{unknown[0]}, which .safetensors has no place for; take another --dtype")
    names = sorted(shapes, key=lambda name: -dtypes[name].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        header[name] = {"dtype": _DTYPES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(out) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = state[name].detach().cpu().contiguous()
            assert (tensor.dtype, tuple(tensor.shape)) == (dtypes[name], shapes[name]), f"{name} as the header has it"
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
