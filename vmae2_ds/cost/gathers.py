"""ZeRO-3's micro step, replayed: which weights DeepSpeed gathers, how often, and how many are alive at once.

A closed form would be wrong: DeepSpeed keeps a weight that comes up again within `max_reuse` elements, and prefetches
`prefetch_bucket` more elements at *every* module call until `max_live` are alive. This file runs those rules
(deepspeed/runtime/zero/partitioned_param_coordinator.py, 0.19.8) over the list of module calls of a micro step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

from vmae2_ds.cost.module_calls import Call
from vmae2_ds.cost.parameters import Model, all_shapes, module_tree, parameter_shapes
from vmae2_ds.cost.zero import ZeroPolicy


class Gathers(NamedTuple):
    """Weights gathered in one micro step, in elements of one rank's shard (padded to the ranks, without persistent)."""

    first: tuple[str, ...]
    """Weights gathered while no rank holds a newer copy, in order."""
    again: tuple[str, ...]
    """Weights gathered a second or third time in the micro step: for the recomputation or the backward pass."""
    calls: int
    """Collectives that gather them: a module's own weights together, and each look ahead."""
    peak: int
    """Most elements allocated at once for gathered weights, whole and padded, without the persistent ones, and for the
    flat copy of a bucket of gradients while it is reduced."""


def persistent(model: Model, policy: ZeroPolicy) -> frozenset[str]:
    """Weights small enough to stay gathered (parameter_offload.py:mark_persistent_parameters)."""
    shapes = all_shapes(model)
    return frozenset(name for name, shape in shapes.items() if prod(shape) <= policy.persistence_threshold)


def replay_gathers(model: Model, policy: ZeroPolicy, world_size: int, *, accumulates: bool = False) -> Gathers:
    """One micro step at stage 3, from the third on."""
    read = ZeroPolicy(  # what a replay depends on: policies that differ elsewhere share one
        stage=3,
        reduce_bucket=policy.reduce_bucket,
        prefetch_bucket=policy.prefetch_bucket,
        max_live=policy.max_live,
        max_reuse=policy.max_reuse,
        persistence_threshold=policy.persistence_threshold,
    )
    return _replay(model, read, world_size, accumulates)


@lru_cache(maxsize=4096)
def _replay(model: Model, policy: ZeroPolicy, world_size: int, accumulates: bool) -> Gathers:
    """The third micro step.

    The first records the order of the calls. The second is the first to look ahead, and whether it releases a weight
    after a call is decided for ever (an lru_cache on __params_to_release). Where gradients accumulate no optimizer step
    lies between the two, so the persistent weights that the first released are gathered by the second as well.
    """
    calls = [*module_tree(model).forward(), *module_tree(model).backward()]
    order = [call.module for call in calls if call.enters]
    if world_size == 1:  # nothing is gathered, so nothing is released either: only gradients are on their way
        behind = [call for call in calls if call.is_backward and not call.enters]
        return _Coordinator(model, policy, world_size, order).run(behind)
    second = _Coordinator(model, policy, world_size, order)
    if accumulates:
        second.available.clear()
    second.run(calls)
    third = _Coordinator(model, policy, world_size, order)
    third.released = second.released
    return third.run(calls)


def count_modules(model: Model) -> int:
    """Modules that DeepSpeed puts hooks around."""
    return sum(call.enters for call in module_tree(model).forward())


@dataclass
class _Handle:
    """A gather under way. Several weights come in one flat buffer, and are copied out of it when waited for."""

    names: list[str]
    flat: int
    """Elements of the flat buffer; 0 where a single weight was gathered in place."""
    is_complete: bool = False
    waited: set[str] = field(default_factory=set)


class _Coordinator:
    """PartitionedParameterCoordinator with a complete trace, on names instead of tensors."""

    def __init__(self, model: Model, policy: ZeroPolicy, world_size: int, order: list[str]) -> None:
        self.policy = policy
        self.numel: dict[str, int] = {}
        self.padded: dict[str, int] = {}
        self.own: dict[str, list[str]] = {}
        self.learning = parameter_shapes(model)
        for name, shape in all_shapes(model).items():
            numel = prod(shape)
            self.numel[name] = numel
            self.padded[name] = -(-numel // world_size) * world_size
            self.own.setdefault(name.rpartition(".")[0], []).append(name)
        self.persistent = persistent(model, policy)
        self.available: set[str] = set(self.persistent)
        self.inflight: dict[str, _Handle] = {}
        self.released: dict[tuple[str, int], frozenset[str]] = {}
        self.gathered: list[str] = []
        self.alive = self.peak = self.num_available = self.step = self.filled = self.calls = 0
        self.world_size = world_size
        self.last_use: dict[str, int] = {}
        self.queue = deque((name, step) for step, module in enumerate(order) for name in self.own.get(module, ()))
        self.before = [0, *accumulate(sum(self.numel[name] for name in self.own.get(m, ())) for m in order)]
        self.uses: dict[str, list[int]] = {}
        for step, module in enumerate(order):
            self.uses.setdefault(module, []).append(step)

    def run(self, calls: list[Call]) -> Gathers:
        for call in calls:
            if call.enters:
                self._fetch(call.module)
            else:
                if call.is_backward:  # its gradients stand beside its weights
                    self._note(sum(self.numel[name] for name in self._gradients(call.module)))
                self._release(call.module)
                if call.is_backward:
                    self._reduce(call.module)
        self._note(self.filled)
        first: list[str] = []
        again: list[str] = []
        for name in self.gathered:
            (again if name in first else first).append(name)
        return Gathers(tuple(first), tuple(again), self.calls, self.peak)

    def _fetch(self, module: str) -> None:
        """_fetch_sub_module_impl: what the module needs now, then what comes next."""
        wanted = self.own.get(module, [])
        self._gather([name for name in wanted if not self._is_here(name)])
        for name in wanted:
            self._wait(name)
        unseen = {name for name in wanted if self.last_use.get(name, -1) < self.step}
        popped: set[str] = set()
        while self.queue and len(popped) < len(unseen):
            name, step = self.queue.popleft()
            self.last_use[name] = step
            popped.add(name)
        assert popped == unseen, f"the trace at step {self.step} expected {popped}, the module has {unseen}"
        self._prefetch()
        self.step += 1

    def _prefetch(self) -> None:
        room = min(self.policy.max_live - self.num_available, self.policy.prefetch_bucket)
        chosen: list[str] = []
        fetched = 0
        while self.queue and fetched < room:
            name, step = self.queue.popleft()
            self.last_use[name] = max(self.last_use.get(name, -1), step)
            if not self._is_here(name) and name not in chosen:
                chosen.append(name)
                fetched += self.numel[name]
        self._gather(chosen)

    def _gather(self, names: list[str]) -> None:
        """partition_parameters.py:all_gather_coalesced, on one rank _no_gather_coalesced: its shard is the weight."""
        if not names or self.world_size == 1:
            return
        self.calls += 1
        size = sum(self.padded[name] for name in names)
        handle = _Handle(names, size if len(names) > 1 else 0)
        for name in names:
            self.inflight[name] = handle
        self.gathered += names
        self.num_available += sum(self.numel[name] for name in names)
        self._allocate(size)

    def _wait(self, name: str) -> None:
        """AllGatherCoalescedHandle.wait copies every weight of the handle; its buffer goes with the last waiter."""
        handle = self.inflight.pop(name, None)
        if handle is None:
            return
        if handle.flat and not handle.is_complete:
            self._allocate(sum(self.numel[each] for each in handle.names))
        handle.is_complete = True
        self.available.add(name)
        handle.waited.add(name)
        if len(handle.waited) == len(handle.names):
            self.alive -= handle.flat

    def _release(self, module: str) -> None:
        """release_sub_module, as decided when this call was first seen."""
        call = module, self.step
        if call not in self.released:
            self.released[call] = self._to_release(module)
        for name in self.own.get(module, ()):
            if name in self.released[call] and name in self.available:
                self.available.discard(name)
                self.num_available -= self.numel[name]
                self.alive -= self.numel[name]

    def _to_release(self, module: str) -> frozenset[str]:
        """__params_to_release: unless it is used again soon, or a prefetch counted on it."""
        uses = self.uses[module]
        following = bisect_left(uses, self.step)
        if following < len(uses) and self.before[uses[following]] - self.before[self.step] < self.policy.max_reuse:
            return frozenset()
        names = frozenset(self.own.get(module, ())) - self.persistent
        return frozenset(name for name in names if self.last_use.get(name, -1) <= self.step)

    def _reduce(self, module: str) -> None:
        """stage3.py:reduce_independent_p_g_buckets_and_remove_grads, coalesced_collectives.py:reduce_scatter_coalesced."""
        for name in reversed(self._gradients(module)):
            if self.filled and self.filled + self.numel[name] > self.policy.reduce_bucket:
                self._note(self.filled + self.numel[name])  # the gradient that did not fit waits
                self.filled = 0
            self.filled += self.padded[name]

    def _gradients(self, module: str) -> list[str]:
        return [name for name in self.own.get(module, ()) if name in self.learning]

    def _is_here(self, name: str) -> bool:
        return name in self.available or name in self.inflight

    def _allocate(self, elements: int) -> None:
        self.alive += elements
        self._note(0)

    def _note(self, elements: int) -> None:
        self.peak = max(self.peak, self.alive + elements)
