"""Training steps to time: ours and transformers', each a call that does forward, loss, backward and optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Step
from vmae2_ds.config import SIZES, MaskConfig, ModelConfig, ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry, PretrainBatch
from vmae2_ds.cost.flops import mae_macs, training_flops
from vmae2_ds.masking import count_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.peak import DTYPES
from vmae2_ds.tune.trial import noise_batch

Precision = Literal["bf16", "fp32"]
LEARNING_RATE = 1e-4
SEED = 0

MASKS: dict[str, MaskConfig] = {
    "encoder_only": MaskConfig(decoder="none"),
    "dual": MaskConfig(decoder="running_cell", decoder_ratio=0.5, decoder_tokens="official"),
    "dual_disjoint": MaskConfig(decoder="running_cell", decoder_ratio=0.5, decoder_tokens="disjoint"),
}
"""VideoMAE V1; V2 with the published decoder tokens; V2 as the paper's text has it."""


def geometry_of(size: str) -> ClipGeometry:
    """16 frames of 224 x 224, the published pre-training clip."""
    model = ModelConfig.of_size(size)
    return ClipGeometry(16, 224, 224, model.tubelet, model.patch)


def make_batch(mask: MaskConfig, geometry: ClipGeometry, batch_size: int) -> PretrainBatch:
    """Random uint8 clips with drawn masks."""
    return noise_batch(mask, geometry, batch_size, np.random.default_rng(SEED))


def step_flops(size: str, mask: MaskConfig, batch_size: int) -> float:
    """FLOPs of forward and backward as they are really computed: only visible cubes are embedded."""
    geometry = geometry_of(size)
    counts = count_masks(mask, geometry)
    return batch_size * training_flops(
        mae_macs(ModelConfig.of_size(size), geometry, counts.visible, counts.decode).total
    )


def our_step(
    size: str,
    mask: MaskConfig,
    precision: Precision,
    batch_size: int,
    attention: tuple[str, str],
    *,
    with_optimizer: bool = True,
) -> Step:
    """vmae2_ds: uint8 clip in; bf16 weights keep float32 masters, as a run under the bf16 ZeRO stages does."""
    geometry = geometry_of(size)
    model = MaskedAutoencoder(ModelConfig.of_size(size), geometry, seed=SEED).to(DTYPES[precision])
    _floats_kept(model)
    model.use_attention(*attention)
    objective = Reconstruct(model, ObjectiveConfig(), geometry)
    batch = make_batch(mask, geometry, batch_size)
    update = _update(list(model.parameters()), masters=precision == "bf16")

    def step() -> None:
        objective(batch).loss.backward()
        if with_optimizer:
            update()
        else:
            model.zero_grad(set_to_none=True)

    return step


def _floats_kept(model: nn.Module) -> None:
    """Buffers stay float32, as under DeepSpeed's bf16, which casts parameters alone."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module.register_buffer(name, buffer.float(), persistent=False)


def _update(parameters: Sequence[nn.Parameter], masters: bool) -> Step:
    """One fused AdamW step; with `masters` on float32 copies, written back to the 16-bit weights."""
    if not masters:
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

        def plain() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return plain

    copies = [nn.Parameter(parameter.detach().float()) for parameter in parameters]
    gradients = [torch.zeros_like(copy) for copy in copies]
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient
    optimizer = torch.optim.AdamW(copies, lr=LEARNING_RATE, fused=True)

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


def transformers_step(
    size: str, precision: Precision, batch_size: int, attention: Literal["eager", "sdpa"], *, masters: bool
) -> Step:
    """transformers' VideoMAEForPreTraining, encoder-only: the clip is already float and normalised, which it does not
    pay for; without `masters` its bf16 weights are updated in place, the cheapest step it can take.
    """
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    encoder, decoder, patch = SIZES[size]
    geometry = geometry_of(size)
    config = VideoMAEConfig(
        image_size=geometry.height, patch_size=patch, num_frames=geometry.num_frames, tubelet_size=geometry.tubelet,
        hidden_size=encoder.width, num_hidden_layers=encoder.depth, num_attention_heads=encoder.heads,
        intermediate_size=encoder.mlp, decoder_hidden_size=decoder.width, decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads, decoder_intermediate_size=decoder.mlp, norm_pix_loss=True,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model: nn.Module = VideoMAEForPreTraining(config)
    model.set_attn_implementation(attention)  # type: ignore[operator]
    model = model.to(dtype=DTYPES[precision]).train()
    batch = make_batch(MASKS["encoder_only"], geometry, batch_size)
    pixels_BTCHW = (batch.clip_BTHWC.permute(0, 1, 4, 2, 3).float() / 255 - 0.45) / 0.225
    pixels_BTCHW = pixels_BTCHW.to(DTYPES[precision]).contiguous()
    is_hidden_BN = torch.ones(batch_size, geometry.num_cubes, dtype=torch.bool)
    is_hidden_BN.scatter_(1, batch.visible_BV, False)
    update = _update(list(model.parameters()), masters=masters)

    def step() -> None:
        model(pixels_BTCHW, bool_masked_pos=is_hidden_BN).loss.backward()
        update()

    return step


def matmul_step(precision: Precision, edge: int) -> Step:
    """A square matrix product of 2 * edge^3 FLOPs."""
    left, right = (torch.randn(edge, edge).to(DTYPES[precision]) for _ in range(2))
    out = torch.empty(edge, edge, dtype=DTYPES[precision])

    def step() -> None:
        torch.mm(left, right, out=out)

    return step
