"""Memory of a step with no GPU and no weights: storages alive among fake tensors, as bytes that one more clip takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import EncoderConfig, ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig
from vmae2_ds.contracts import AvaBatch, ClipGeometry, LabelledBatch, PretrainBatch
from vmae2_ds.cost.activations import AttentionKind
from vmae2_ds.cost.traffic import ComputePrecision
from vmae2_ds.downstream.ava.objective import ava_objective
from vmae2_ds.masking import count_masks
from vmae2_ds.model.adapters import AdaptedEncoder
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.finetune import classification

FAKE = FakeTensorMode()


class Measured(NamedTuple):
    """Bytes, of a clip or of all."""

    held: float
    """At the end of the forward pass."""
    peak: float
    """Of the forward pass, or with `backward` of the whole step."""


def measure(
    model: ModelConfig,
    masks: MaskConfig,
    geometry: ClipGeometry,
    attention: AttentionKind,
    precision: ComputePrecision,
    *,
    backward: bool = False,
    clips: int = 2,
) -> Measured:
    """Slope from `clips` to twice as many, so that weights drop out.

    On a fake GPU; with `backward` on the CPU, because backward on a fake GPU asks the driver for a context. fp16 stands for
    bf16 under autocast, which refuses bf16 without a GPU; the bytes are the same.
    """
    device = "cpu" if backward else "cuda"
    name = "math" if attention == "math" else "sdpa"
    config = ModelConfig.model_validate(model.model_dump() | {"attention": name})
    objective = _build(config, geometry, precision, device)
    with FAKE, fused_attention(), torch.device(device):
        small, large = (
            _step(objective, _batch(masks, geometry, number), precision, backward) for number in (clips, 2 * clips)
        )
    return Measured(*((more - less) / clips for less, more in zip(small, large, strict=True)))


def measure_published(model: ModelConfig, masks: MaskConfig, geometry: ClipGeometry, clips: int = 2) -> float:
    """Bytes per clip at the end of the published forward pass, on a fake GPU under fp16 autocast with math attention.

    Our blocks, fed as the published code feeds its own (modeling_pretrain.py:124-131, engine_for_pretraining.py:98-113): a
    float32 clip of which all cubes are embedded before the visible ones are chosen, labels from outside, the squared error
    of each label. What the published loop makes of the clip to get the labels is not in it.
    """
    config = ModelConfig.model_validate(model.model_dump() | {"attention": "math"})
    objective = _build(config, geometry, "autocast", "cuda")
    held = []
    with FAKE, torch.device("cuda"):
        for number in (clips, 2 * clips):
            batch = _batch(masks, geometry, number)
            clip_BNP = torch.empty(number, geometry.num_cubes, geometry.cube_values)
            labels_BMP = torch.empty(*batch.decode_BM.shape, geometry.cube_values)
            with LiveBytes() as live, _autocast(True):
                live.note(*_states(objective), clip_BNP, labels_BMP, *batch[1:])
                out = _published_forward(objective.model, clip_BNP, labels_BMP, batch)
                held.append(live.now)
                del out
    return (held[1] - held[0]) / clips


def _published_forward(
    model: MaskedAutoencoder, clip_BNP: Tensor, labels_BMP: Tensor, batch: PretrainBatch
) -> tuple[Tensor, Tensor]:
    """Squared error of each value, and the prediction: a caller that holds both holds what the published loop does."""
    encoder = model.encoder
    every_BN = torch.arange(clip_BNP.shape[1]).expand(clip_BNP.shape[:2])
    tokens_BVD = encoder.embed(clip_BNP, every_BN).take_along_dim(batch.visible_BV[..., None], dim=1)
    seen_BVE = model.bridge(encoder.norm(encoder.blocks(tokens_BVD)))
    pred_BMP = model.decoder(seen_BVE, batch.visible_BV, batch.decode_BM)
    return F.mse_loss(pred_BMP, labels_BMP, reduction="none"), pred_BMP


@lru_cache(maxsize=1)  # tests take one model through several masks
def _build(config: ModelConfig, geometry: ClipGeometry, precision: ComputePrecision, device: str) -> Reconstruct:
    """The objective; 16-bit weights keep float32 positions, as DeepSpeed leaves buffers."""
    # Built where and as it is used: fake tensors on a GPU go through neither .to(device) nor .to(dtype).
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16" else torch.float32)
    try:
        with FAKE, torch.device(device):
            return Reconstruct(MaskedAutoencoder(config, geometry, seed=None), ObjectiveConfig(), geometry)
    finally:
        torch.set_default_dtype(torch.float32)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are alive.

    Unlike torch's MemTracker it takes frozen weights, and a quarter of the time: that one asks what each module holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def note(self, *tensors: Tensor) -> None:
        """Count what was there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.note(*(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)))
        return out


def measure_adapted(
    model: EncoderConfig,
    geometry: ClipGeometry,
    adapters: AdapterConfig,
    clips: int,
    precision: ComputePrecision,
    *,
    backward: bool = False,
) -> Measured:
    """Bytes of a window of `clips` clips through a frozen encoder with adapters, without weights and their gradients.

    On a fake GPU, or with `backward` on fake CPU tensors, as `measure`.
    """

    def window() -> list[Tensor]:
        shape = (1, clips * geometry.num_frames, geometry.height, geometry.width, 3)
        return [torch.empty(shape, dtype=torch.uint8)]

    def step(module: nn.Module, given: Sequence[Tensor]) -> Tensor:
        out: Tensor = module(*given)
        return out

    return _live_bytes(
        lambda: AdaptedEncoder(model, geometry, adapters, seed=None), window, step, precision, backward=backward
    )


def measure_actions(config: AvaConfig, clips: int, precision: ComputePrecision, *, backward: bool = False) -> Measured:
    """Bytes of a clip with all the boxes that it may have, through the model of people's actions and its losses: the slope from
    `clips` to twice as many, so that weights and what is made of them drop out; as `measure_adapted`."""
    geometry, boxes = config.geometry, config.data.most_boxes

    def batch(number: int) -> list[Tensor]:
        return [
            torch.empty(number, geometry.num_frames, geometry.height, geometry.width, 3, dtype=torch.uint8),
            torch.empty(number, boxes, 4, dtype=torch.float32),
            torch.empty(number, boxes, dtype=torch.bool),
            torch.empty(number, boxes, config.model.num_classes, dtype=torch.float32),
        ]

    def step(module: nn.Module, given: Sequence[Tensor]) -> Tensor:
        loss: Tensor = module(AvaBatch(*given)).loss
        return loss

    return _bytes_of_a_clip(lambda: ava_objective(config), batch, step, clips, precision, backward=backward)


def measure_classifier(
    config: FinetuneConfig, clips: int, precision: ComputePrecision, *, backward: bool = False
) -> Measured:
    """Bytes of a clip through a classifier of which something learns, and its loss, as `measure_actions`."""
    geometry = config.geometry

    def batch(number: int) -> list[Tensor]:
        return [
            torch.empty(number, geometry.num_frames, geometry.height, geometry.width, 3, dtype=torch.uint8),
            torch.empty(number, dtype=torch.int64),
            *(torch.empty((), dtype=torch.float32) for _ in range(2)),
        ]

    def step(module: nn.Module, given: Sequence[Tensor]) -> Tensor:
        loss: Tensor = module(LabelledBatch(*given)).loss
        return loss

    return _bytes_of_a_clip(lambda: classification(config), batch, step, clips, precision, backward=backward)


def _bytes_of_a_clip(
    build: Callable[[], nn.Module],
    make_input: Callable[[int], Sequence[Tensor]],
    step: Callable[[nn.Module, Sequence[Tensor]], Tensor],
    clips: int,
    precision: ComputePrecision,
    *,
    backward: bool,
) -> Measured:
    """The slope from `clips` to twice as many, in which weights and what is made of them drop out."""
    small, large = (
        _live_bytes(build, partial(make_input, number), step, precision, backward=backward)
        for number in (clips, 2 * clips)
    )
    return Measured(*((more - less) / clips for less, more in zip(small, large, strict=True)))


def _live_bytes(
    build: Callable[[], nn.Module],
    make_input: Callable[[], Sequence[Tensor]],
    step: Callable[[nn.Module, Sequence[Tensor]], Tensor],
    precision: ComputePrecision,
    *,
    backward: bool,
) -> Measured:
    """What a forward pass, or a whole step, takes beside weights and gradients of weights."""
    with FAKE, fused_attention(), torch.device("cpu" if backward else "cuda"):
        torch.set_default_dtype(torch.bfloat16 if precision == "bf16" else torch.float32)
        try:
            module = build()
        finally:
            torch.set_default_dtype(torch.float32)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter) if backward and parameter.requires_grad else None
        given = make_input()
        with LiveBytes() as live:
            live.note(*_states(module))
            before = live.now
            live.note(*given)
            out = step(module, given)
            held = live.now
            if backward:
                out.sum().backward()
            return Measured(held - before, live.peak - before)


def _batch(masks: MaskConfig, geometry: ClipGeometry, clips: int) -> PretrainBatch:
    visible, decode, _ = count_masks(masks, geometry)
    return PretrainBatch(
        torch.empty(clips, geometry.num_frames, geometry.height, geometry.width, 3, dtype=torch.uint8),
        torch.empty(clips, visible, dtype=torch.int64),
        torch.empty(clips, decode, dtype=torch.int64),
        torch.empty(clips, decode, dtype=torch.bool),
    )


def _step(objective: Reconstruct, batch: PretrainBatch, precision: ComputePrecision, backward: bool) -> tuple[int, int]:
    """Bytes held at the end of the forward pass, and at the peak."""
    if backward:
        # Otherwise the peak of a small batch is the end of the backward pass, when the gradients of all weights are there.
        for parameter in objective.parameters():
            parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live, _autocast(precision == "autocast"):
        live.note(*_states(objective), *batch)
        out = objective(batch)
        held = live.now
        if backward:
            out.loss.backward()
        return held, live.peak


def _states(module: nn.Module) -> list[Tensor]:
    """Weights, buffers, and gradients that are there."""
    gradients = (parameter.grad for parameter in module.parameters() if parameter.grad is not None)
    return [*module.parameters(), *module.buffers(), *gradients]


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """CUDA autocast, which without a GPU would switch itself off."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        torch.autocast("cuda", torch.float16, enabled=enabled),
    ):
        yield


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let sdpa take the fused kernel that it takes on a GPU; with no GPU to ask it falls back on math, n x n scores and all."""
    on_cpu = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not q.is_cuda:
            return on_cpu(q, k, v)
        if q.dtype == torch.float32:
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    with mock.patch.object(F, "scaled_dot_product_attention", attend):
        yield


def saved_shapes(
    model: ModelConfig, masks: MaskConfig, geometry: ClipGeometry, attention: AttentionKind, precision: ComputePrecision
) -> set[tuple[int, ...]]:
    """Shapes of all tensors that autograd saves on a fake GPU."""
    name = "math" if attention == "math" else "sdpa"
    objective = _build(
        ModelConfig.model_validate(model.model_dump() | {"attention": name}), geometry, precision, "cuda"
    )
    shapes = set()

    def note(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with FAKE, fused_attention(), torch.device("cuda"), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        objective(_batch(masks, geometry, 2))
    return shapes
