"""`vmae2 flops`: MACs and FLOPs of one clip, by module and token set, as published and as this package computes them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from vmae2_ds.config.model import CheckpointingName, ModelConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.config.ranges import MANY, MOST_FRAMES, MOST_PIXELS, check_ranges
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import block_parts, count_parameters, mae_macs, recomputed_macs, training_flops
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import MaskCounts, count_masks
from vmae2_ds.tune.tables import scaled, table

SizeName = Literal["tiny", "small", "base", "large", "huge", "giant", "6b"]

PUBLISHED_MASK = MaskConfig()
"""Tube 0.9 on the encoder, running cell 0.5 on the decoder."""


class TokenSet(NamedTuple):
    """One way to choose tokens, and to embed them."""

    about: str
    counts: MaskCounts
    embed_all: bool


def token_sets(mask: MaskConfig, geometry: ClipGeometry) -> dict[str, TokenSet | None]:
    """The four sets that the published tables and this package compare; None where the mask does not allow one."""

    def counts(**changes: str) -> MaskCounts:
        return count_masks(mask.model_copy(update=changes), geometry)

    dual = counts(decoder_tokens="official")
    try:
        disjoint = TokenSet("mask tokens only where the encoder saw nothing", counts(decoder_tokens="disjoint"), False)
    except ConfigError:
        disjoint = None
    return {
        "encoder_only": TokenSet("VideoMAE V1, every cube embedded (published)", counts(decoder="none"), True),
        "dual": TokenSet("VideoMAE V2, every cube embedded (published)", dual, True),
        "dual_visible_embed": TokenSet("the same numbers, visible cubes embedded only (ours)", dual, False),
        "dual_disjoint": disjoint,
    }


def flops(
    model: SizeName = "base",
    num_frames: int = 16,
    size: int = 224,
    mask: MaskConfig = PUBLISHED_MASK,
    checkpointing: CheckpointingName = "none",
    checkpoint_every: int = 2,
    clips: int = 1,
    json: bool = False,
) -> dict[str, Any] | str:
    """Forward MACs and training FLOPs of one clip and one step, as closed forms.

    MACs are counted as the published tables do (linear, convolution and attention products; docs/PAPER.md#macs). Training is
    6 FLOPs a MAC; what checkpointing runs again counts for HFU and not for MFU.

    Args:
        model: Model size.
        num_frames: Frames in a clip.
        size: Clip height and width in pixels.
        mask: Encoder and decoder masks.
        checkpointing: Blocks computed again in the backward pass.
        checkpoint_every: With every_k, one block in this many.
        clips: Clips in an optimizer step, over all ranks.
        json: Print JSON.
    """
    check_ranges(
        clips=(clips, 1, MANY), checkpoint_every=(checkpoint_every, 1, MANY),
        num_frames=(num_frames, 1, MOST_FRAMES), size=(size, 1, MOST_PIXELS),
    )  # fmt: skip
    config = ModelConfig.of_size(model, checkpointing=checkpointing, checkpoint_every=checkpoint_every)
    geometry = ClipGeometry(num_frames, size, size, config.tubelet, config.patch)
    sets = token_sets(mask, geometry)
    found: dict[str, Any] = {
        "model": model,
        "clip": [num_frames, size, size],
        "cubes": geometry.num_cubes,
        "gmacs": {},
        "modules_gmacs": {},
        "tokens": {},
        "training_gflops": {},
        "params": {**vars(count_parameters(config)), "total": count_parameters(config).total},
        "clips_per_step": clips,
    }
    for name, chosen in sets.items():
        if chosen is None:
            found["gmacs"][name] = None
            continue
        visible, decode, _ = chosen.counts
        macs = mae_macs(config, geometry, visible, decode, embed_all=chosen.embed_all)
        again = recomputed_macs(config, visible, decode)
        found["gmacs"][name] = macs.total / 1e9
        found["modules_gmacs"][name] = {
            part: value / 1e9 for part, value in _modules(config, chosen.counts, macs).items()
        }
        found["tokens"][name] = {"encoder": visible, "decoder": visible + decode}
        found["training_gflops"][name] = {
            "model": training_flops(macs.total) / 1e9,
            "hardware": training_flops(macs.total, again) / 1e9,
            "model_per_step": clips * training_flops(macs.total) / 1e9,
            "hardware_per_step": clips * training_flops(macs.total, again) / 1e9,
        }
    return found if json else _describe(found, sets)


def _modules(config: ModelConfig, counts: MaskCounts, macs: Any) -> dict[str, int]:
    """Embedding, each product of the blocks of both towers, bridge, head."""
    towers = {"encoder": (config.encoder, counts.visible), "decoder": (config.decoder, counts.visible + counts.decode)}
    blocks = {
        f"{side}.{part}": tower.depth * value
        for side, (tower, tokens) in towers.items()
        for part, value in block_parts(tower, tokens).items()
    }
    return {"embed": macs.embed, **blocks, "bridge": macs.bridge, "head": macs.head}


def _describe(found: dict[str, Any], sets: dict[str, TokenSet | None]) -> str:
    names = [name for name in sets if found["gmacs"][name] is not None]
    base = found["gmacs"]["encoder_only"]
    params = ", ".join(f"{part} {scaled(count)}" for part, count in found["params"].items())
    frames, height, width = found["clip"]
    rows = [
        [name, *(found["tokens"][name].values()), f"{found['gmacs'][name]:.4f}", f"{base / found['gmacs'][name]:.3f}"]
        + [f"{found['training_gflops'][name][kind]:.2f}" for kind in ("model", "hardware")]
        + [scaled(1e9 * found["training_gflops"][name]["model_per_step"], "FLOP")]
        for name in names
    ]
    modules = [
        [part, *(f"{found['modules_gmacs'][name][part]:.4f}" for name in names)]
        for part in found["modules_gmacs"]["dual"]
    ]
    lines = [
        f"ViT {found['model']}, clip {frames}x{height}x{width} = {found['cubes']} cubes; parameters: {params}",
        "",
        table(
            "One clip",
            [
                "token set",
                "enc tokens",
                "dec tokens",
                "GMACs",
                "ratio",
                "train GFLOP",
                "with recompute",
                f"step of {found['clips_per_step']}",
            ],
            rows,
        ),
        "",
        *(
            f"  {name}: {chosen.about}" if chosen else f"  {name}: not possible with this mask"
            for name, chosen in sets.items()
        ),
        "",
        table("Forward GMACs by module", ["module", *names], modules),
        "",
        "train GFLOP = 6 per MAC (MFU counts these); with recompute adds what checkpointing runs again (HFU).",
    ]
    return "\n".join(lines)
