"""The encoder that every stage shares: cube embedding, blocks and, where a stage has one, a final norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmae2_ds.config import EncoderConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.block import NORM_EPS, Blocks
from vmae2_ds.model.embed import CubeEmbed, is_resized

# B clips, V of a clip's cubes, P values in a cube, D width.


class Encoder(nn.Module):
    """Embedding, blocks and final norm, on the cubes it is given: the visible ones, or all of them.

    `final_norm=False`: the published classifier has a norm behind its mean pooling instead.
    """

    def __init__(self, config: EncoderConfig, geometry: ClipGeometry, *, final_norm: bool = True) -> None:
        super().__init__()
        width = config.encoder.width
        self.embed = CubeEmbed(geometry, width, config.positions_geometry, resized=is_resized(config))
        self.blocks = Blocks(config.encoder, config.drop_path)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if final_norm else nn.Identity()

    def forward(self, cubes_BVP: Tensor, visible_BV: Tensor | None = None) -> Tensor:
        """Normalised cubes (B, V, P) and their places (B, V), by default those of all cubes in order -> (B, V, D)."""
        if visible_BV is None:
            num_clips, num_cubes, _ = cubes_BVP.shape
            visible_BV = torch.arange(num_cubes, device=cubes_BVP.device).expand(num_clips, -1)
        return self.norm(self.blocks(self.embed(cubes_BVP, visible_BV)))
