"""What is learned: a batch goes in, a float32 loss comes out. Each objective is a module that holds its model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmae2_ds.config import ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry, LossOutput, PretrainBatch
from vmae2_ds.model.embed import gather_cubes, normalise_pixels, unit_pixels
from vmae2_ds.model.mae import MaskedAutoencoder

# B clips, V visible cubes, M decoded cubes, P values in a cube, in the order t, h, w, c.

TARGET_EPS = 1e-6  # added to the deviation, not to the variance (PAPER C)


class Reconstruct(nn.Module):
    """Masked autoencoding: mean squared error over the cubes that are decoded and that the encoder did not see."""

    def __init__(self, model: MaskedAutoencoder, config: ObjectiveConfig, geometry: ClipGeometry) -> None:
        super().__init__()
        self.model, self.config, self.geometry = model, config, geometry

    def forward(self, batch: PretrainBatch) -> LossOutput:
        """Loss of one micro batch.

        Sum over supervised cubes of the mean squared error in the cube, over the number of those cubes in the micro
        batch (published engine_for_pretraining.py:104-113). A micro batch without any has loss 0.
        """
        pred_BMP, target_BMP = self.predict(batch)
        error_BM = (pred_BMP.float() - target_BMP).square().mean(dim=-1)
        num_supervised = batch.is_supervised_BM.sum()
        loss = (error_BM * batch.is_supervised_BM).sum() / num_supervised.clamp(min=1)
        return LossOutput(loss, num_supervised)

    def predict(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        """Prediction in the model's dtype and target in float32, both (B, M, P)."""
        cubes_BVP = normalise_pixels(gather_cubes(batch.clip_BTHWC, batch.visible_BV, self.geometry))
        return self.model(cubes_BVP, batch.visible_BV, batch.decode_BM), self.target(batch)

    @torch.no_grad()
    def target(self, batch: PretrainBatch) -> Tensor:
        """What the decoder has to predict at `decode_BM`: (B, M, P) float32."""
        pixels_BMP = unit_pixels(gather_cubes(batch.clip_BTHWC, batch.decode_BM, self.geometry))
        if self.config.target == "pixels":
            return pixels_BMP
        return normalise_cubes(pixels_BMP, self.geometry)


def normalise_cubes(cubes_BMP: Tensor, geometry: ClipGeometry) -> Tensor:
    """(x - mean) / (std + 1e-6) within each cube and colour, unbiased variance: (B, M, P) float32 -> (B, M, P)."""
    num_pixels = geometry.cube_values // 3

    def colour_sum(x_BMP: Tensor) -> Tensor:
        # Whole lines of a cube first, then pixels: torch is slow at reducing beside a trailing 3 (10.5 against 3.4 ms).
        lines_BMWC = x_BMP.unflatten(-1, (-1, geometry.patch * 3)).sum(dim=-2).unflatten(-1, (geometry.patch, 3))
        return lines_BMWC.sum(dim=-2)

    def per_value(x_BMC: Tensor) -> Tensor:
        return x_BMC.repeat(1, 1, num_pixels)

    centred_BMP = cubes_BMP - per_value(colour_sum(cubes_BMP) / num_pixels)
    std_BMC = (colour_sum(centred_BMP.square()) / (num_pixels - 1)).sqrt()
    return centred_BMP * per_value(1 / (std_BMC + TARGET_EPS))
