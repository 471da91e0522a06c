"""Training steps to time: one model and optimizer, whose masks, kernels and recomputation change from call to call."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.devices import Step
from vmae2_ds.config.model import CheckpointingName, ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.cost.flops import mae_macs, training_flops
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.masking import MaskCounts, count_masks
from vmae2_ds.model import kernel_support
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.build import attention_shapes, resolve_attention
from vmae2_ds.tune.trial import noise_batch

Precision = Literal["bf16", "fp32"]
Until = Literal["forward", "backward", "update"]
Kernels = tuple[str, str]
"""Attention of encoder and decoder."""
LEARNING_RATE = 1e-4
SEED = 0

MASKS: dict[str, MaskConfig] = {
    "encoder_only": MaskConfig(decoder="none"),
    "dual": MaskConfig(decoder="running_cell", decoder_ratio=0.5, decoder_tokens="official"),
    "dual_disjoint": MaskConfig(decoder="running_cell", decoder_ratio=0.5, decoder_tokens="disjoint"),
}
"""VideoMAE V1; V2 with the published decoder tokens; V2 as the paper's text has it."""

DECODER_MASKS: dict[str, MaskConfig] = {
    "none": MaskConfig(decoder="none"),
    "frame_50": MaskConfig(decoder="frame", decoder_ratio=0.5),
    "random_50": MaskConfig(decoder="random", decoder_ratio=0.5),
    **{f"running_cell_{r}": MaskConfig(decoder="running_cell", decoder_ratio=r / 100) for r in (25, 50, 75)},
}
"""Rows of the paper's Table 1, by the share of cubes that the decoder does not get."""


def geometry_of(size: str) -> ClipGeometry:
    """16 frames of 224 x 224, the published pre-training clip."""
    model = ModelConfig.of_size(size)
    return ClipGeometry(16, 224, 224, model.tubelet, model.patch)


def make_batch(mask: MaskConfig, geometry: ClipGeometry, batch_size: int) -> PretrainBatch:
    """Random uint8 clips with drawn masks."""
    return noise_batch(mask, geometry, batch_size, np.random.default_rng(SEED))


def step_flops(size: str, mask: MaskConfig, batch_size: int, *, embed_all: bool = False) -> float:
    """FLOPs of forward and backward, 6 per multiply-add: of embedding the visible cubes only, or `embed_all`.

    At most 0.5 % more than what runs, because nobody asks for the gradient of the pixels.
    """
    geometry = geometry_of(size)
    counts = count_masks(mask, geometry)
    return batch_size * training_flops(
        mae_macs(ModelConfig.of_size(size), geometry, counts.visible, counts.decode, embed_all=embed_all).total
    )


def step_config(
    size: str, mask_name: str, mask: MaskConfig, precision: Precision, batch_size: int, kernels: Kernels
) -> dict[str, Any]:
    """What a row says about a whole training step of ours."""
    geometry = geometry_of(size)
    counts = count_masks(mask, geometry)
    return {
        "package": "vmae2_ds", "size": size, "mask": mask_name, "precision": precision, "batch_size": batch_size,
        "clip": [geometry.num_frames, geometry.height, geometry.width], "visible": counts.visible,
        "decode": counts.decode, "attention_encoder": kernels[0], "attention_decoder": kernels[1],
        "optimizer": optimizer_name(precision),
    }  # fmt: skip


def sdpa_took(config: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    """`sdpa_took` for a row's config: the kernels that torch's sdpa took, encoder's first; empty where nobody asked it.

    Reads a step's config (`step_config`), or one of attention alone, with its tokens, heads and head width.
    """
    if "head_width" in config:
        kernels = [config.get("attention")]
        shapes = [(config["batch_size"], config["tokens"], config["heads"], config["head_width"])]
    elif "attention_decoder" in config:
        kernels = [config["attention_encoder"], config["attention_decoder"]]
        counts = MaskCounts(config["visible"], config["decode"], None)
        shapes = [*attention_shapes(ModelConfig.of_size(config["size"]), counts, config["batch_size"])]
    else:
        return {}
    if "sdpa" not in kernels:  # of the published style, whose precision is no dtype, among others
        return {}
    took = kernel_support.sdpa_took(kernels, shapes, DTYPES[config["precision"]], device)
    return {"sdpa_took": took} if took else {}


def kernels_of_run(size: str, mask: MaskConfig, precision: Precision, batch_size: int, device: torch.device) -> Kernels:
    """What `--model.attention auto` takes on a GPU at these shapes; math on a CPU, where the committed rows have it."""
    if device.type == "cpu":
        return "math", "math"
    shapes = attention_shapes(ModelConfig.of_size(size), count_masks(mask, geometry_of(size)), batch_size)
    return resolve_attention("auto", shapes, DTYPES[precision], device)


def optimizer_name(precision: Precision) -> str:
    """What a row calls the optimizer of a Workbench."""
    return "fused AdamW" + ", float32 masters" * (precision == "bf16")


class Workbench:
    """A model of one size and precision with its optimizer, built when a step first needs it and shared by all its steps.

    Sharing keeps a group of variants as small as one model, so that whatever trains on the device can be compared on it.
    uint8 clip in; bf16 weights keep float32 masters, as a run under the bf16 ZeRO stages does.
    """

    def __init__(self, size: str, precision: Precision, device: torch.device) -> None:
        self.size, self.precision, self.device = size, precision, device
        self.geometry = geometry_of(size)

    @cached_property
    def model(self) -> MaskedAutoencoder:
        """Weights on the device; buffers stay float32, as under DeepSpeed's bf16, which casts parameters alone."""
        model = MaskedAutoencoder(ModelConfig.of_size(self.size), self.geometry, seed=SEED).to(DTYPES[self.precision])
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    module.register_buffer(name, buffer.float(), persistent=False)
        return model.to(self.device)

    @cached_property
    def objective(self) -> Reconstruct:
        """The reconstruction loss on the model."""
        return Reconstruct(self.model, ObjectiveConfig(), self.geometry)

    @cached_property
    def update(self) -> Step:
        """One optimizer step on the gradients at hand, which it clears."""
        return fused_adamw(list(self.model.parameters()), masters=self.precision == "bf16")

    def batch(self, mask: MaskConfig, batch_size: int) -> PretrainBatch:
        """A batch on the device."""
        return make_batch(mask, self.geometry, batch_size).to(self.device)

    def step(
        self,
        mask: MaskConfig,
        batch_size: int,
        kernels: Kernels,
        *,
        until: Until = "update",
        checkpointing: CheckpointingName = "none",
    ) -> Step:
        """A call that trains one step, or a part of one: each call sets its kernels and recomputed blocks first."""
        batch = self.batch(mask, batch_size)
        update = self.update if until == "update" else partial(self.model.zero_grad, set_to_none=True)
        objective = self.objective  # built now, not in the first timed call

        def step() -> None:
            self.model.zero_grad(set_to_none=True)  # what a step that ran out of memory may have left
            self.set_up(kernels, checkpointing)
            loss = objective(batch).loss
            if until != "forward":
                loss.backward()
                update()

        return step

    def set_up(self, kernels: Kernels, checkpointing: CheckpointingName = "none") -> None:
        """Kernels and recomputed blocks of the step that follows, whatever the one before it had."""
        from torch.utils.checkpoint import checkpoint

        encoder, decoder = ModelConfig.of_size(self.size, checkpointing=checkpointing).recomputed_blocks
        self.model.use_attention(*kernels)
        self.model.use_checkpoint_function(partial(checkpoint, use_reentrant=False))
        self.model.encoder.blocks.recomputed = frozenset(encoder)
        self.model.decoder.blocks.recomputed = frozenset(decoder)


_kept: dict[tuple[str, Precision, torch.device], Workbench] = {}
"""The Workbench that was asked for last."""


def workbench_of(size: str, precision: Precision, device: torch.device) -> Workbench:
    """The Workbench of the call before, with its weights as they are, or a new one: kernels and batches share a model.

    Another one is let go first: two models of the largest size do not fit on a device.
    """
    key = (size, precision, device)
    if key not in _kept:
        let_workbench_go()
        _kept[key] = Workbench(size, precision, device)
    return _kept[key]


def let_workbench_go() -> None:
    """Give the memory of the kept model back."""
    _kept.clear()
    gc.collect()
    torch.cuda.empty_cache()  # nothing happens where CUDA was not used


def fused_adamw(parameters: Sequence[nn.Parameter], masters: bool) -> Step:
    """One fused AdamW step, as `optimizer_step`."""
    return optimizer_step(parameters, masters, partial(torch.optim.AdamW, lr=LEARNING_RATE, fused=True))


def optimizer_step(
    parameters: Sequence[nn.Parameter],
    masters: bool,
    make: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
) -> Step:
    """One step on the gradients at hand, which it drops; `masters`: on float32 copies, written back to the 16-bit weights."""
    if not masters:
        optimizer = make(parameters)

        def plain() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return plain

    copies = [nn.Parameter(parameter.detach().float()) for parameter in parameters]
    gradients = [torch.zeros_like(copy) for copy in copies]
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient
    optimizer = make(copies)

    @torch.no_grad()
    def with_masters() -> None:
        torch._foreach_copy_(gradients, [_gradient(parameter) for parameter in parameters])
        optimizer.step()
        torch._foreach_copy_(list(parameters), list(copies))
        for parameter in parameters:
            parameter.grad = None

    return with_masters


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in the loss"
    return parameter.grad
