"""torch.compile in parts: a transformer block, one graph for all blocks of a tower, and the loss where it is one function.

The whole model would be unrolled: a ViT-g has 44 blocks to trace and to compile where two do.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vmae2_ds.errors import ConfigError
from vmae2_ds.host import cxx_compiler
from vmae2_ds.model.attention import AttentionShape, best_time
from vmae2_ds.model.block import Block, Blocks

log = logging.getLogger(__name__)

WORTH = 0.97
"""A compiled block has to take less than this part of an eager one's time, or `auto` leaves it."""


def compile_parts(objective: nn.Module, backend: str) -> None:
    """Have every block of an objective compiled at its first call, with its hooks, and its `loss_function` if it has one.

    Blocks of one shape share a graph: parameters are inputs of it. At ZeRO stage 3 DeepSpeed's hooks on every layer cut a
    block into pieces, which share their graphs as well.

    Raises ConfigError where there is no compiler for `backend`.
    """
    why = why_no_compiler() if backend == "inductor" else None
    if why is not None:
        raise ConfigError(f"--train.compile inductor {why}; install one, or set --train.compile none")
    for module in objective.modules():
        if isinstance(module, Block):
            module.compile(backend=backend, dynamic=False)
    whole: Any = objective
    if hasattr(whole, "loss_function"):
        whole.loss_function = torch.compile(whole.loss_function, backend=backend, dynamic=False)


def why_no_compiler(env: Mapping[str, str] = os.environ) -> str | None:
    """Why nothing can be compiled here; None where it can. On a GPU too: triton builds its launchers with it."""
    names, found = cxx_compiler(env)
    return None if found else f"needs a C++ compiler, and {' or '.join(names)} is not here"


def choose_compile(
    objective: nn.Module, shapes_BNHK: Sequence[AttentionShape], dtype: torch.dtype, *, stage: int, missing: str | None
) -> str:
    """What `auto` stands for: inductor where a block of the first tower is faster compiled, forward and backward; else none.

    Ranks may measure differently: let one choose and tell the others.

    Args:
        objective: on the device that is measured, its attention chosen.
        shapes_BNHK: of attention in a micro step, the first tower's first.
        stage: of ZeRO; at 3 a block is in pieces, and nothing is measured.
        missing: what a rank says of its compiler (`why_no_compiler`), where one has none.
    """
    if stage == 3 or missing is not None:
        log.info("compile auto: none, as %s", missing or "ZeRO stage 3 would cut each block into pieces")
        return "none"
    tower = next(module for module in objective.modules() if isinstance(module, Blocks))
    device = next(tower.parameters()).device
    eager = time_block(tower, shapes_BNHK[0], dtype, device)
    began = time.perf_counter()
    try:
        compiled = time_block(tower, shapes_BNHK[0], dtype, device, backend="inductor")
    except Exception as error:  # a compiler fails in ways of its own, and auto may do without it
        log.warning("compile auto: none, as compiling failed: %s", str(error).strip().splitlines()[0])
        return "none"
    chosen = "inductor" if compiled < WORTH * eager else "none"
    times = f"{1e3 * eager:.3g} ms eager, {1e3 * compiled:.3g} ms compiled"
    log.info("compile auto: %s (a block: %s; measured in %.0f s)", chosen, times, time.perf_counter() - began)
    return chosen


def time_block(
    tower: Blocks, shape_BNHK: AttentionShape, dtype: torch.dtype, device: torch.device, backend: str | None = None
) -> float:
    """Seconds of a block's forward and backward pass, on a block like the tower's that is thrown away."""
    num_clips, tokens, heads, head_width = shape_BNHK
    if device.type == "cpu":
        num_clips = min(num_clips, 2)  # ranks the two as a large batch does, in less time
    block = Block(tower.config, drop_path=0.0)
    first: Any = tower[0]
    block.attn.attend = first.attn.attend
    draws = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws) / parameter.shape[-1] ** 0.5
    block.to(device, dtype)
    if backend is not None:
        block.compile(backend=backend, dynamic=False)
    x_BND = torch.randn(num_clips, tokens, heads * head_width, generator=draws).to(device, dtype).requires_grad_()
    out_BND = torch.randn(x_BND.shape, generator=draws).to(device, dtype)

    def run() -> None:
        block.zero_grad()
        x_BND.grad = None
        block(x_BND).backward(out_BND)

    return best_time(run, device)
