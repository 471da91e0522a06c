"""A dual step as it comes, with compiled blocks, and on a GPU as a CUDA graph: where launches or elementwise work are the time.

One graph serves all blocks of a tower (regional compilation); the CUDA graph has forward and backward, the update is outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.case import Bench, Case, timed
from benchmarks.devices import Step
from benchmarks.filling import step_groups
from benchmarks.harness import Variant
from benchmarks.record import Row
from benchmarks.steps import MASKS, Kernels, Precision, Workbench, kernels_of_run, step_config, step_flops

BASE = "eager"
MASK = "dual"
MODELS = 3
"""Each variant has a model of its own: compiled blocks stay compiled, and a graph keeps its gradients."""
WARM_UP = 3
"""Steps on a side stream before a capture, as torch asks for."""


def measure(bench: Bench, size: str, precision: Precision, batch_size: int, backend: str = "inductor") -> list[Row]:
    """`values.prepare_s`: wall seconds of compiling or capturing, first step included."""
    mask, device = MASKS[MASK], bench.device
    kernels = kernels_of_run(size, mask, precision, batch_size, device)
    prepared: dict[str, float] = {}
    makers: dict[str, Callable[[Workbench], Step]] = {
        BASE: lambda workbench: workbench.step(mask, batch_size, kernels),
        "compiled blocks": lambda workbench: compiled_step(workbench, batch_size, kernels, backend),
    }
    if device.type == "cuda":
        makers["CUDA graph"] = lambda workbench: graph_step(workbench, batch_size, kernels)

    def build(name: str) -> Step:
        workbench = Workbench(size, precision, device)
        began = time.perf_counter()
        step = makers[name](workbench)
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        prepared[name] = time.perf_counter() - began
        return step

    config = step_config(size, MASK, mask, precision, batch_size, kernels)
    variants = [
        Variant(name, partial(build, name), config | {"how": name}, step_flops(size, mask, batch_size))
        for name in makers
    ]
    rows = timed(variants, bench, BASE, peak=precision, launches=True)
    for row in rows:
        if row["variant"] in prepared and not row["error"]:
            row |= {"values": {"prepare_s": prepared[row["variant"]]}, "kind": "measured"}
    return rows


def compiled_step(workbench: Workbench, batch_size: int, kernels: Kernels, backend: str) -> Step:
    """The step of a workbench whose blocks are compiled one by one."""
    for tower in (workbench.model.encoder, workbench.model.decoder):
        for block in tower.blocks:
            block.compile(backend=backend)
    return workbench.step(MASKS[MASK], batch_size, kernels)


def graph_step(workbench: Workbench, batch_size: int, kernels: Kernels) -> Step:
    """Forward and backward captured once and replayed; the update launches as it comes. No GPU has run it yet."""
    batch, objective, update = workbench.batch(MASKS[MASK], batch_size), workbench.objective, workbench.update
    parameters = list(workbench.model.parameters())
    workbench.set_up(kernels)

    def forward_backward() -> None:
        objective(batch).loss.backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            workbench.model.zero_grad(set_to_none=True)
            forward_backward()
    torch.cuda.current_stream().wait_stream(side)
    workbench.model.zero_grad(set_to_none=True)  # the capture makes gradients in the graph's own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward_backward()
    gradients = [parameter.grad for parameter in parameters]

    def step() -> None:
        graph.replay()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # the update before took them off
        update()

    return step


CASE = Case(
    partial(step_groups, measure=measure, masks=(MASKS[MASK],), kernel="sdpa", models=MODELS),
    "a dual step as it comes, with compiled blocks, and on a GPU as a CUDA graph",
)
