"""A dual step as it comes, with compiled blocks, and on a GPU as a CUDA graph: where launches or elementwise work are the time.

One graph serves all blocks of a tower (regional compilation); the CUDA graph has forward and backward, the update is outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.case import Bench, Case, Group, timed
from benchmarks.devices import Step
from benchmarks.filling import step_groups
from benchmarks.harness import Variant, reason_of
from benchmarks.record import Row
from benchmarks.steps import MASKS, Kernels, Precision, Workbench, kernels_of_run, step_config, step_flops
from vmae2_ds.engine.compiled import compile_parts, why_no_compiler

BASE, BLOCKS, GRAPH = "eager", "compiled blocks", "CUDA graph"
MASK = "dual"
MODELS = 2
"""Each variant has a model of its own: compiled blocks stay compiled, and a graph keeps its gradients."""
WARM_UP = 3
"""Steps on a side stream before a capture, as torch asks for."""


def groups(bench: Bench) -> Iterator[Group]:
    """Compiled blocks beside the step as it comes; then, on a GPU, the graph: nothing is lost where it breaks the device."""
    for how in (BLOCKS, GRAPH) if bench.device.type == "cuda" else (BLOCKS,):
        taken = partial(measure, how=how)
        for group in step_groups(bench, taken, masks=(MASKS[MASK],), kernel="sdpa", models=MODELS):
            yield group._replace(name=f"{group.name} {how}") if how == GRAPH else group


def measure(
    bench: Bench, size: str, precision: Precision, batch_size: int, how: str = BLOCKS, backend: str = "inductor"
) -> list[Row]:
    """`values.prepare_s`: wall seconds of compiling or capturing, first step included; building the model is not.

    A graph's row has no memory: a replay asks the allocator for nothing.
    """
    mask, device = MASKS[MASK], bench.device
    kernels = kernels_of_run(size, mask, precision, batch_size, device)
    prepared: dict[str, float] = {}
    makers: dict[str, Callable[[Workbench], Step]] = {
        BASE: lambda workbench: workbench.step(mask, batch_size, kernels),
        BLOCKS: lambda workbench: compiled_step(workbench, batch_size, kernels, backend),
        GRAPH: lambda workbench: graph_step(workbench, batch_size, kernels),
    }

    def build(name: str) -> Step:
        workbench = Workbench(size, precision, device)
        _ = workbench.objective, workbench.update  # built when first asked for
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
        for name in (BASE, how)
    ]
    rows = timed(variants, bench, BASE, peak=precision, launches=True)
    for row in rows:
        if row["variant"] in prepared and not row["error"]:
            row |= {"values": {"prepare_s": prepared[row["variant"]]}, "kind": "measured"}
        if row["variant"] == GRAPH:
            row["memory"] = None
    return rows


def compiled_step(workbench: Workbench, batch_size: int, kernels: Kernels, backend: str) -> Step:
    """The step of a workbench compiled in the parts that a run compiles: blocks and loss.

    Raises ImportError where there is no compiler: it is missing, as a package may be, and nothing has failed.
    """
    why = why_no_compiler() if backend == "inductor" else None
    if why is not None:
        raise ImportError(f"torch.compile {why}")
    compile_parts(workbench.objective, backend)
    return workbench.step(MASKS[MASK], batch_size, kernels)


def graph_step(workbench: Workbench, batch_size: int, kernels: Kernels) -> Step:
    """Forward and backward captured once and replayed; the update launches as it comes. No GPU has run it yet.

    Raises RuntimeError where capturing failed and the device works on: from torch 2.8 that is the error of a broken device.
    """
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
    try:  # where a capture cannot be ended, torch does not put the stream back
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            forward_backward()
    except RuntimeError as error:
        first = error.__context__ or error  # ending the capture raises on top of what went wrong in it
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None
        torch.cuda.synchronize()  # raises where it is the device that is broken
        raise RuntimeError(f"not captured: {reason_of(first)}") from first
    gradients = [parameter.grad for parameter in parameters]

    def step() -> None:
        graph.replay()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # the update before took them off
        update()

    return step


CASE = Case(groups, "a dual step as it comes, with compiled blocks, and on a GPU as a CUDA graph")
