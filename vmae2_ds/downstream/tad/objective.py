"""What temporal detection learns: a pyramid on features, and its losses over the running number of points with an action."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vmae2_ds.config.tad import TadConfig, TadModelConfig
from vmae2_ds.contracts import ClipGeometry, LossOutput, TadBatch, TadFramesBatch
from vmae2_ds.downstream.tad.end_to_end import EndToEndDetector
from vmae2_ds.downstream.tad.losses import loss_sums
from vmae2_ds.downstream.tad.points import targets_of
from vmae2_ds.downstream.tad.pyramid import ActionPyramid, PyramidOutput
from vmae2_ds.model.seeded import SeededModel

# B videos, T positions, D width, G segments.


class FeatureDetector(SeededModel):
    """The pyramid alone: features come from files. Weights and `seed=None` as in `MaskedAutoencoder`."""

    def __init__(
        self, config: TadModelConfig, geometry: ClipGeometry, length: int = 1, seed: int | None = None
    ) -> None:
        """`length` is that of training, in positions; no weight depends on it."""
        super().__init__(geometry)
        self.config = config
        self.pyramid = ActionPyramid(config.encoder.width, config.num_classes, config.head, length)
        if seed is not None:
            self.init_weights(seed)

    def forward(self, feature_BTD: Tensor, is_real_BT: Tensor) -> PyramidOutput:
        """Features and where there are some -> what every point says."""
        return self.pyramid(feature_BTD, is_real_BT)

    def use_attention(self) -> None:
        """There is no attention whose kernel could be chosen: the pyramid's has its own."""

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw first weights as the pyramid says."""
        self.pyramid.draw(name.removeprefix("pyramid."), values, rng)


class DetectActions(nn.Module):
    """Focal loss and loss of the two ends, summed over the points of a step, over the running number of those with an action.

    A micro batch gives its sums times the number of micro batches of the step over that number: their mean over ranks and micro
    steps is then the step's whole sum over it, however they are shared.
    """

    def __init__(self, model: SeededModel, config: TadConfig) -> None:
        super().__init__()
        self.model, self.config, self.loss = model, config.model, config.loss
        self.micro_steps = config.train.global_batch // config.train.micro_batch
        """Micro batches of all ranks in a step."""
        self.normaliser: Tensor | float = config.loss.normaliser_start
        """Set anew in each step (train/normaliser.py)."""

    def forward(self, batch: TadBatch | TadFramesBatch) -> LossOutput:
        """Loss of one micro batch; `flat_loss` is what first weights would lose, were no end of theirs near the truth."""
        seen, is_real_BT, segment_BG2, label_BG = batch
        output = self.output(seen, is_real_BT)
        sums = loss_sums(output, segment_BG2, label_BG, self.config.head, self.loss)
        share = self.micro_steps / self.normaliser
        flat = self._flat(output, sums.num_positive) * share
        return LossOutput((sums.loss(1.0, self.loss) * share).float(), sums.num_positive, flat.float())

    def output(self, seen: Tensor, is_real_BT: Tensor) -> PyramidOutput:
        """What every point says of features (B, T, D), or end to end of windows of frames (B, F, H, W, 3)."""
        return self.model(seen, is_real_BT)

    def count(self, batch: TadBatch | TadFramesBatch) -> Tensor:
        """How many points of a micro batch learn an action: () int64, of the truth alone."""
        config = self.config
        is_real_LBT = [batch.is_real_BT[:, ::stride] for stride in config.head.strides]
        targets = targets_of(
            is_real_LBT, batch.segment_BG2, batch.label_BG, config.head, config.num_classes, self.loss.centre_radius
        )
        return targets.is_positive_BP.sum()

    def _flat(self, output: PyramidOutput, num_positive: Tensor) -> Tensor:
        """Every class as likely as the prior everywhere, one class a positive point, and ends that lose 1 each."""
        alpha, gamma, prior = self.loss.focal_alpha, self.loss.focal_gamma, self.config.head.prior
        present = alpha * (1 - prior) ** gamma * -math.log(prior)
        absent = (1 - alpha) * prior**gamma * -math.log(1 - prior)
        num_points = torch.stack([level.sum() for level in output.is_real_LBT]).sum()
        ends = self.loss.regression_weight
        return num_positive * (present - absent + ends) + num_points * self.config.num_classes * absent


def tad_objective(config: TadConfig) -> DetectActions:
    """The objective on a head whose weights are not drawn yet."""
    kind = EndToEndDetector if config.model.is_end_to_end else FeatureDetector
    model = kind(config.model, config.geometry, config.data.length)
    return DetectActions(model, config)
