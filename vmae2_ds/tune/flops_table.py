"""`vmae2 flops`: MACs and FLOPs of one clip, by module and token set, as published and as this package computes them."""

from __future__ import annotations

from typing import Annotated, NamedTuple, TypedDict

import tyro

from vmae2_ds.config.model import CheckpointingName, ModelConfig, SizeName
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.config.strict import ClipLength, Count, Edge, StrictModel
from vmae2_ds.console.tables import table
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import MaeMacs, block_parts, count_parameters, mae_macs, recomputed_macs, training_flops
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import MaskCounts, count_masks
from vmae2_ds.tune.tables import scaled

ABOUT = {
    "encoder_only": "VideoMAE V1, every cube embedded (published)",
    "dual": "VideoMAE V2, every cube embedded (published)",
    "dual_visible_embed": "the same numbers, visible cubes embedded only (ours)",
    "dual_disjoint": "mask tokens only where the encoder saw nothing",
}
"""The four sets of tokens that the published tables and this package compare."""
PUBLISHED_MASK = MaskConfig()
"""Tube 0.9 on the encoder, running cell 0.5 on the decoder."""


class TokenSet(NamedTuple):
    """One way to choose tokens, and to embed them."""

    counts: MaskCounts
    embed_all: bool


def token_sets(mask: MaskConfig, geometry: ClipGeometry) -> dict[str, TokenSet | None]:
    """The sets of ABOUT; None where the mask does not allow one."""

    def counts(**changes: str) -> MaskCounts:
        return count_masks(mask.model_copy(update=changes), geometry)

    dual = counts(decoder_tokens="official")
    try:
        disjoint = TokenSet(counts(decoder_tokens="disjoint"), False)
    except ConfigError:
        disjoint = None
    return {
        "encoder_only": TokenSet(counts(decoder="none"), True),
        "dual": TokenSet(dual, True),
        "dual_visible_embed": TokenSet(dual, False),
        "dual_disjoint": disjoint,
    }


class FlopsArguments(StrictModel):
    """Forward MACs and training FLOPs of one clip and one step, as closed forms.

    MACs are counted as the published tables do (linear, convolution and attention products; docs/PAPER.md#macs). Training is
    6 FLOPs a MAC; what checkpointing runs again counts for HFU and not for MFU.
    """

    model: SizeName = "base"
    """Size of the model."""
    num_frames: ClipLength = 16
    """Number of frames in a clip."""
    size: Edge = 224
    """Height and width of a clip in pixels."""
    mask: MaskConfig = PUBLISHED_MASK
    """Masks of encoder and decoder."""
    checkpointing: CheckpointingName = "none"
    """Which blocks compute their activations again in the backward pass instead of keeping them."""
    checkpoint_every: Count = 2
    """With --checkpointing every_k: one block in this many is computed again."""
    clips: Count = 1
    """Number of clips in an optimizer step, over all ranks."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""


class FlopsTable(TypedDict):
    """What `--json` prints. Token sets are the keys of `token_sets`; only `gmacs` holds those that the mask does not allow."""

    model: SizeName
    clip: list[int]
    """Frames, height, width."""
    cubes: int
    gmacs: dict[str, float | None]
    """GMACs of one forward pass of one clip, by token set."""
    modules_gmacs: dict[str, dict[str, float]]
    """GMACs of each module, by token set and module."""
    tokens: dict[str, dict[str, int]]
    """Number of tokens, by token set and tower."""
    training_gflops: dict[str, dict[str, float]]
    """Training GFLOPs by token set: model (MFU) and hardware (HFU), of a clip and of a step."""
    params: dict[str, int]
    clips_per_step: int


def flops(asked: FlopsArguments) -> FlopsTable:
    """Count what one clip and one step cost, for each set of tokens. Raises ConfigError where clip or mask do not fit."""
    config = ModelConfig.of_size(
        asked.model, checkpointing=asked.checkpointing, checkpoint_every=asked.checkpoint_every
    )
    geometry = ClipGeometry(asked.num_frames, asked.size, asked.size, config.tubelet, config.patch)
    found: FlopsTable = {
        "model": asked.model,
        "clip": [asked.num_frames, asked.size, asked.size],
        "cubes": geometry.num_cubes,
        "gmacs": {},
        "modules_gmacs": {},
        "tokens": {},
        "training_gflops": {},
        "params": {**vars(count_parameters(config)), "total": count_parameters(config).total},
        "clips_per_step": asked.clips,
    }
    for name, chosen in token_sets(asked.mask, geometry).items():
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
            "model_per_step": asked.clips * training_flops(macs.total) / 1e9,
            "hardware_per_step": asked.clips * training_flops(macs.total, again) / 1e9,
        }
    return found


def _modules(config: ModelConfig, counts: MaskCounts, macs: MaeMacs) -> dict[str, int]:
    """Embedding, each product of the blocks of both towers, bridge, head."""
    towers = {"encoder": (config.encoder, counts.visible), "decoder": (config.decoder, counts.visible + counts.decode)}
    blocks = {
        f"{side}.{part}": tower.depth * value
        for side, (tower, tokens) in towers.items()
        for part, value in block_parts(tower, tokens).items()
    }
    return {"embed": macs.embed, **blocks, "bridge": macs.bridge, "head": macs.head}


def describe_flops(found: FlopsTable) -> str:
    """The tables that are printed without `--json`."""
    gmacs = {name: value for name, value in found["gmacs"].items() if value is not None}
    params = ", ".join(f"{part} {scaled(count)}" for part, count in found["params"].items())
    frames, height, width = found["clip"]
    rows = [
        [name, *(found["tokens"][name].values()), f"{value:.4f}", f"{gmacs['encoder_only'] / value:.3f}"]
        + [f"{found['training_gflops'][name][kind]:.2f}" for kind in ("model", "hardware")]
        + [scaled(1e9 * found["training_gflops"][name]["model_per_step"], "FLOP")]
        for name, value in gmacs.items()
    ]
    modules = [
        [part, *(f"{found['modules_gmacs'][name][part]:.4f}" for name in gmacs)]
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
        *(f"  {name}: {ABOUT[name] if name in gmacs else 'not possible with this mask'}" for name in found["gmacs"]),
        "",
        table("Forward GMACs by module", ["module", *gmacs], modules),
        "",
        "train GFLOP = 6 per MAC (MFU counts these); with recompute adds what checkpointing runs again (HFU).",
    ]
    return "\n".join(lines)
