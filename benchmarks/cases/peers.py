"""The same work in transformers' VideoMAEForPreTraining, which has encoder-only masking alone, and in the published style."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from benchmarks.case import Bench, Case, timed
from benchmarks.devices import Step
from benchmarks.filling import step_groups
from benchmarks.harness import Variant, paired_ratio
from benchmarks.published import AutocastName, PublishedBench
from benchmarks.record import Row
from benchmarks.steps import (
    MASKS,
    SEED,
    Precision,
    fused_adamw,
    geometry_of,
    make_batch,
    optimizer_name,
    step_config,
    step_flops,
    workbench_of,
)
from vmae2_ds.config.model import SIZES, ModelConfig
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.masking import count_masks
from vmae2_ds.train.build import attention_shapes, resolve_attention

BASE, BASE_WITHOUT_IT = "transformers_eager", "published_encoder_only_autocast"
MODELS = 4
"""States of a group, in those of one model of ours: transformers' keep no masters but in one variant."""
KERNEL = "math"
"""What the batch is planned for: the one that takes most memory is among the variants."""
LEAST_CLIPS = 2
"""One clip says nothing of who is faster: ViT-g beside the others' states on a GPU of 80 GB is left out."""
STYLES: dict[Precision, dict[str, AutocastName]] = {
    "bf16": {"encoder_only": "autocast", "dual": "autocast", "dual in float32": "fp32"},
    "fp32": {"encoder_only": "fp32", "dual": "fp32"},
}
"""Maskings in the published style beside ours of each precision: 16 bit there is autocast over float32 weights."""


def measure(bench: Bench, size: str, precision: Precision, batch_size: int) -> list[Row]:
    """transformers with either of its kernels, with and without float32 masters; ours with the kernels `auto` finds; and the
    published style, whose float32 weights autocast computes with in 16 bit.
    """
    variants = [
        _theirs(bench.device, size, precision, batch_size, kernel, masters=False) for kernel in ("eager", "sdpa")
    ]
    if precision == "bf16":
        variants.append(_theirs(bench.device, size, precision, batch_size, "eager", masters=True))
    workbench = workbench_of(size, precision, bench.device)
    for name, mask in MASKS.items():
        counts = count_masks(mask, workbench.geometry)
        shapes = attention_shapes(ModelConfig.of_size(size), counts, batch_size)
        kernels = resolve_attention("auto", shapes, DTYPES[precision], bench.device)
        config = step_config(size, name, mask, precision, batch_size, kernels)
        build = partial(workbench.step, mask, batch_size, kernels)
        variants.append(Variant(name, build, config, step_flops(size, mask, batch_size)))
    published = PublishedBench(size, bench.device)
    for masking, how in STYLES[precision].items():
        variants.append(_published(published, masking.split()[0], batch_size, how))
    rows = timed(variants, bench, _base(precision), launches=True)
    _add_ratios(rows)
    return rows


def _base(precision: Precision) -> str:
    """What speed-ups are over: transformers, where it is installed."""
    if importlib.util.find_spec("transformers"):
        return BASE
    return BASE_WITHOUT_IT if precision == "bf16" else "published_encoder_only_fp32"


def _add_ratios(rows: list[Row]) -> None:
    """`values` of our dual steps: how many times faster than the published dual step they are, from the rounds both ran in."""
    by_name = {row["variant"]: row for row in rows if not row["error"]}
    for name in ("dual", "dual_disjoint"):
        values = {}
        for how in get_args(AutocastName):
            if name in by_name and (theirs := by_name.get(f"published_dual_{how}")):
                ratio = paired_ratio(theirs["samples_s"], by_name[name]["samples_s"])
                ends = {"": ratio.median, "_low": ratio.low, "_high": ratio.high}
                values |= {f"over_published_{how}_ratio{end}": each for end, each in ends.items()}
        if values:
            by_name[name] |= {"values": values, "kind": "measured"}


def _published(published: PublishedBench, masking: str, batch_size: int, how: AutocastName) -> Variant:
    mask = MASKS[masking]
    config = step_config(published.size, masking, mask, "fp32", batch_size, ("math", "math"))
    config |= {"package": "published style", "optimizer": "AdamW", "precision": how}
    flops = step_flops(published.size, mask, batch_size, embed_all=True)
    return Variant(f"published_{masking}_{how}", partial(published.step, mask, batch_size, how), config, flops)


def _theirs(
    device: torch.device,
    size: str,
    precision: Precision,
    batch_size: int,
    kernel: Literal["eager", "sdpa"],
    *,
    masters: bool,
) -> Variant:
    mask = MASKS["encoder_only"]
    config = step_config(size, "encoder_only", mask, precision, batch_size, (kernel, kernel))
    config |= {"package": "transformers", "optimizer": optimizer_name(precision if masters else "fp32")}
    build = partial(transformers_step, size, precision, batch_size, kernel, device, masters=masters)
    flops = step_flops(size, mask, batch_size, embed_all=True)  # its convolution runs over every cube
    return Variant(f"transformers_{kernel}" + "_masters" * masters, build, config, flops)


def transformers_step(
    size: str,
    precision: Precision,
    batch_size: int,
    kernel: Literal["eager", "sdpa"],
    device: torch.device,
    *,
    masters: bool,
) -> Step:
    """Forward, loss, backward and optimizer, encoder-only: the clip is already float and normalised, which it does not
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
        attn_implementation=kernel,  # set later it would not reach the decoder, whose config is a copy
    )  # fmt: skip
    torch.manual_seed(SEED)
    model: nn.Module = VideoMAEForPreTraining(config)
    model = model.to(device, DTYPES[precision]).train()
    batch = make_batch(MASKS["encoder_only"], geometry, batch_size).to(device)
    pixels_BTCHW = (batch.clip_BTHWC.permute(0, 1, 4, 2, 3).float() / 255 - 0.45) / 0.225
    pixels_BTCHW = pixels_BTCHW.to(DTYPES[precision]).contiguous()
    is_hidden_BN = torch.ones(batch_size, geometry.num_cubes, dtype=torch.bool, device=device)
    is_hidden_BN.scatter_(1, batch.visible_BV, False)
    update = fused_adamw(list(model.parameters()), masters=masters)

    def step() -> None:
        model(pixels_BTCHW, bool_masked_pos=is_hidden_BN).loss.backward()
        update()

    return step


CASE = Case(
    partial(step_groups, measure=measure, masks=tuple(MASKS.values()), kernel=KERNEL, models=MODELS, least=LEAST_CLIPS),
    "a step of ours against transformers' VideoMAEForPreTraining, encoder-only, and one in the published style",
)
