"""ViT-Ti with a few of its blocks: what a case writes into its rows does not depend on how many there are, only its time."""

from __future__ import annotations

from vmae2_ds.config.model import SIZES


def use_few_blocks() -> None:
    """Make "tiny" shallow in this process."""
    encoder, decoder, patch = SIZES["tiny"]
    SIZES["tiny"] = encoder.model_copy(update={"depth": 3}), decoder.model_copy(update={"depth": 2}), patch
