"""The encoder that every stage shares: cube embedding, blocks and, where a stage has one, a final norm; by itself, on clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.block import NO_LORA, NORM_EPS, Blocks
from vmae2_ds.model.embed import CubeEmbed, every_cube, is_resized, normalise_pixels

# B clips, V of a clip's cubes, P values in a cube, D width.


class Encoder(nn.Module):
    """Embedding, blocks and final norm, on the cubes it is given: the visible ones, or all of them.

    `final_norm=False`: the published classifier has a norm behind its mean pooling instead.
    """

    def __init__(self, config: EncoderConfig, geometry: ClipGeometry, *, final_norm: bool = True) -> None:
        super().__init__()
        width = config.encoder.width
        self.embed = CubeEmbed(geometry, width, config.positions_geometry, resized=is_resized(config))
        lora = config.lora if isinstance(config, ClassifierConfig) else NO_LORA
        self.blocks = Blocks(config.encoder, config.drop_path, lora)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if final_norm else nn.Identity()

    def forward(
        self, cubes_BVP: Tensor, visible_BV: Tensor | None = None, positions_ND: Tensor | None = None
    ) -> Tensor:
        """Normalised cubes (B, V, P) and their places (B, V), by default those of all cubes in order -> (B, V, D).

        `positions_ND`: as of `CubeEmbed`.
        """
        if visible_BV is None:
            num_clips, num_cubes, _ = cubes_BVP.shape
            visible_BV = torch.arange(num_cubes, device=cubes_BVP.device).expand(num_clips, -1)
        return self.norm(self.blocks(self.embed(cubes_BVP, visible_BV, positions_ND)))


class ClipEncoder(nn.Module):
    """The encoder of any stage by itself, on whole clips as they are, and the norm that the stage has behind it: pre-training's
    final norm, or the classifier's behind the pooling."""

    def __init__(self, config: EncoderConfig, geometry: ClipGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.pixels: Callable[[Tensor], Tensor] = normalise_pixels
        """What is done to the pixels, uint8 or in [0, 1]; the published extractor of features leaves them as `unit_pixels`."""
        is_pretrain = isinstance(config, ModelConfig)
        self.encoder = Encoder(config, geometry, final_norm=is_pretrain)
        self.norm = nn.Identity() if is_pretrain else nn.LayerNorm(config.encoder.width, eps=NORM_EPS)

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Load the encoder's part of a whole model's weights, under our names."""
        inside = {name.removeprefix("encoder."): x for name, x in weights.items() if name.startswith("encoder.")}
        self.encoder.load_state_dict(inside)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.load_state_dict({key: weights[f"fc_norm.{key}"] for key in ("weight", "bias")})

    def forward(self, clip_BTHWC: Tensor) -> Tensor:
        """Clips, uint8 or in [0, 1] -> the mean token behind the norm (B, D)."""
        return self.norm(self.tokens(clip_BTHWC).mean(dim=1))

    def tokens(self, clip_BTHWC: Tensor) -> Tensor:
        """Every token (B, N, D), behind pre-training's final norm, in front of the classifier's."""
        return self.encoder(self.pixels(every_cube(clip_BTHWC, self.geometry)))
