"""ViT-Ti with a few of its blocks: what a case writes into its rows does not depend on how many there are, only its time."""

from __future__ import annotations

from vmae2_ds.config.model import SIZES


def use_few_blocks(encoder_depth: int = 2, decoder_depth: int = 1) -> None:
    """Make "tiny" shallow in this process."""
    encoder, decoder, patch = SIZES["tiny"]
    SIZES["tiny"] = (
        encoder.model_copy(update={"depth": encoder_depth}),
        decoder.model_copy(update={"depth": decoder_depth}),
        patch,
    )
