"""`train.deterministic`: the flags and variables under which a run computes the same bits each time, on CUDA too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vmae2_ds.errors import ConfigError

WORKSPACE, FIXED_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""cuBLAS adds in a fixed order with one of these workspaces, and reads the variable once (cuBLAS documentation)."""


@contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """Where `wanted`, operators add in a fixed order until the context is left, or raise where they cannot.

    Attention kernels read torch's flag at each call (model/attention.py), compiled blocks when they are compiled. Enter it
    before CUDA starts: the variables of cuBLAS and NCCL are read once, so they stay.

    Raises:
        ConfigError: CUBLAS_WORKSPACE_CONFIG is set to what lets cuBLAS add in any order, or CUDA has started without it.
    """
    if not wanted:
        yield
        return
    if WORKSPACE not in os.environ and torch.cuda.is_initialized():
        raise ConfigError(
            f"--train.deterministic: CUDA has started in this process before; set {WORKSPACE}={FIXED_WORKSPACES[0]} first"
        )
    workspace = os.environ.setdefault(WORKSPACE, FIXED_WORKSPACES[0])
    if workspace not in FIXED_WORKSPACES:
        raise ConfigError(
            f"--train.deterministic: with {WORKSPACE}={workspace} cuBLAS may add in another order each time; "
            f"unset it, or set it to {' or '.join(FIXED_WORKSPACES)}"
        )
    os.environ.setdefault("NCCL_ALGO", "Ring")  # whose order of adding is that of the ranks, whatever the size
    cudnn: Any = torch.backends.cudnn
    fill: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark, fill.fill_uninitialized_memory
    cudnn_sdpa = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        # Nobody here reads what was never written; writing NaN into every new tensor first would cost a pass over each.
        fill.fill_uninitialized_memory = False
        torch.backends.cuda.enable_cudnn_sdp(False)
        yield
    finally:
        mode, cudnn.deterministic, cudnn.benchmark, fill.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cuda.enable_cudnn_sdp(cudnn_sdpa)
