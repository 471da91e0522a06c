"""What is learned: a batch goes in, a float32 loss comes out. Each objective is a module that holds its model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.config import ObjectiveConfig
from vmae2_ds.contracts import TARGET_EPS, ClipGeometry, LabelledBatch, LossOutput, PretrainBatch
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, gather_cubes, normalise_pixels, unit_pixels
from vmae2_ds.model.mae import MaskedAutoencoder

# B clips, V visible cubes, M decoded cubes, P values in a cube, in the order t, h, w, c.


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
        num_supervised = batch.is_supervised_BM.sum()

        def mean_of(error_BM: Tensor) -> Tensor:
            return (error_BM * batch.is_supervised_BM).sum() / num_supervised.clamp(min=1)

        loss = mean_of((pred_BMP.float() - target_BMP).square().mean(dim=-1))
        return LossOutput(loss, num_supervised, mean_of(self.flat_error(target_BMP)))

    def predict(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        """Prediction in the model's dtype and target in float32, both (B, M, P)."""
        cubes_BVP = normalise_pixels(gather_cubes(batch.clip_BTHWC, batch.visible_BV, self.geometry))
        return self.model(cubes_BVP, batch.visible_BV, batch.decode_BM), self.target(batch)

    @torch.no_grad()
    def flat_error(self, target_BMP: Tensor) -> Tensor:
        """Squared error (B, M) of predicting each cube's own mean colours, which a normalised target has at zero.

        Below 1 for normalised targets: (n - 1) / n by the unbiased variance, and 0 in cubes of one colour.
        """
        if self.config.target == "pixels":
            return target_BMP.unflatten(-1, (-1, 3)).var(dim=-2, correction=0).mean(dim=-1)
        return torch.linalg.vector_norm(target_BMP, dim=-1).square() / target_BMP.shape[-1]

    @torch.no_grad()
    def target(self, batch: PretrainBatch) -> Tensor:
        """What the decoder has to predict at `decode_BM`: (B, M, P) float32."""
        pixels_BMP = unit_pixels(gather_cubes(batch.clip_BTHWC, batch.decode_BM, self.geometry))
        if self.config.target == "pixels":
            return pixels_BMP
        return normalise_cubes(pixels_BMP, self.geometry)


class Classify(nn.Module):
    """Supervised learning: cross entropy against labels that are smoothed and mixed as their clips are."""

    def __init__(self, model: Classifier, label_smoothing: float, geometry: ClipGeometry) -> None:
        super().__init__()
        self.model, self.label_smoothing, self.geometry = model, label_smoothing, geometry

    def forward(self, batch: LabelledBatch) -> LossOutput:
        """Mean cross entropy of the clips of one micro batch."""
        cubes_BNP = self.cubes(batch.clip_BTHWC)
        cubes_BNP = batch.keep_pixels * cubes_BNP + (1 - batch.keep_pixels) * cubes_BNP.flip(0)
        log_prob_BC = F.log_softmax(self.model(cubes_BNP).float(), dim=-1)
        target_BC = self.target(batch)
        loss = -(target_BC * log_prob_BC).sum(dim=-1).mean()
        num_clips, num_classes = target_BC.shape
        return LossOutput(loss, loss.new_full((), num_clips), loss.new_full((), math.log(num_classes)))

    def target(self, batch: LabelledBatch) -> Tensor:
        """Probabilities (B, C) float32: smoothed one-hot labels, mixed with the batch read backwards (timm's mixup_target)."""
        num_classes = self.model.config.num_classes
        smoothed_BC = F.one_hot(batch.label_B, num_classes) * (1 - self.label_smoothing)
        smoothed_BC = smoothed_BC + self.label_smoothing / num_classes
        return batch.keep_label * smoothed_BC + (1 - batch.keep_label) * smoothed_BC.flip(0)

    def logits(self, clip_BTHWC: Tensor) -> Tensor:
        """Clips as they are, uint8 or in [0, 1], to float32 (B, C)."""
        return self.model(self.cubes(clip_BTHWC)).float()

    def cubes(self, clip_BTHWC: Tensor) -> Tensor:
        """All cubes, normalised: (B, N, P) float32."""
        return normalise_pixels(every_cube(clip_BTHWC, self.geometry))


def normalise_cubes(cubes_BMP: Tensor, geometry: ClipGeometry) -> Tensor:
    """(x - mean) / (std + 1e-6) within each cube and colour, unbiased variance: (B, M, P) float32 -> (B, M, P)."""
    # A cube as L = tubelet * patch lines of W = patch * 3 values: torch is 3x slower where the last dimension is 3 long.
    num_pixels = geometry.cube_values // 3

    def colour_sum(x_BMLW: Tensor) -> Tensor:
        """Sum over the pixels of a cube, repeated along a line: (B, M, 1, W)."""
        sum_BMC = x_BMLW.sum(dim=2).unflatten(-1, (geometry.patch, 3)).sum(dim=-2)
        return sum_BMC.repeat(1, 1, geometry.patch).unsqueeze(2)

    cubes_BMLW = cubes_BMP.unflatten(-1, (-1, geometry.patch * 3))
    centred_BMLW = cubes_BMLW - colour_sum(cubes_BMLW) / num_pixels
    std_BM1W = (colour_sum(centred_BMLW.square()) / (num_pixels - 1)).sqrt()
    return (centred_BMLW / (std_BM1W + TARGET_EPS)).flatten(2)
