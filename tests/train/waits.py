"""Counts where a step waits for the device, on a CPU engine in the place of a CUDA one."""

from __future__ import annotations

import traceback
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Waits(TorchDispatchMode):
    """Each number that leaves a tensor of the device, by the place in the code that asks for it.

    A tensor made of Python's numbers lies on the host, and so does what is computed of such tensors alone: with the device
    being the CPU, that is how the two are told apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.is_on = False
        self._on_host: list[Tensor] = []  # kept, so that no other tensor gets the place of one

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [arg for arg in tree_leaves(args) if isinstance(arg, Tensor)]
        if func is torch.ops.aten.lift_fresh.default or (tensors and all(map(self._is_on_host, tensors))):
            self._on_host += [result] if isinstance(result, Tensor) else []
        if func is torch.ops.aten._local_scalar_dense.default and not self._is_on_host(args[0]):
            self._note()
        return result

    def __enter__(self) -> Waits:
        to_list = Tensor.tolist

        def listed(tensor: Tensor) -> Any:
            if tensor.dim() and not self._is_on_host(tensor):
                self._note()
            return to_list(tensor)

        self._patch = mock.patch.object(Tensor, "tolist", listed)
        self._patch.start()
        self.is_on = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.is_on = False
        self._patch.stop()

    def _is_on_host(self, tensor: Tensor) -> bool:
        return any(tensor is other for other in self._on_host)

    def _note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        ours = [frame for frame in frames if frame.filename != __file__ and "unittest" not in frame.filename]
        self.places.append(f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].name}")
