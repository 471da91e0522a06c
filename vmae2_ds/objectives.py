"""What is learned: a batch goes in, a float32 loss comes out. Each objective is a module that holds its model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.config.distil import DistilSettings
from vmae2_ds.config.pretrain import ObjectiveConfig, Target
from vmae2_ds.contracts import TARGET_EPS, ClipGeometry, LabelledBatch, LossOutput, PretrainBatch, TaughtBatch
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import Linear, every_cube, gather_cubes, normalise_pixels, unit_pixels
from vmae2_ds.model.mae import MaskedAutoencoder

# B clips, N cubes, V visible cubes, M decoded cubes, P values in a cube, in the order t, h, w, c; C classes, D and E widths.


class Reconstruct(nn.Module):
    """Masked autoencoding: mean squared error over the cubes that are decoded and that the encoder did not see; with a
    `context_weight` over those that it saw too, each as that part of a cube."""

    def __init__(self, model: MaskedAutoencoder, config: ObjectiveConfig, geometry: ClipGeometry) -> None:
        super().__init__()
        self.model, self.config, self.geometry = model, config, geometry
        self.loss_function: Callable[..., LossOutput] = reconstruction_loss
        """Or what a compiler made of it."""

    def forward(self, batch: PretrainBatch) -> LossOutput:
        """Loss of one micro batch.

        Sum over supervised cubes of the mean squared error in the cube, over the number of those cubes in the micro
        batch (published engine_for_pretraining.py:104-113). A micro batch without any has loss 0. With a context weight w
        the cubes that both see are in the sum and in the number, each as w of a cube (docs/PAPER.md#decoder-masking).
        """
        pred_BMP = self.model(self.visible_cubes(batch), batch.visible_BV, batch.decode_BM)
        return self.loss_function(pred_BMP, batch, self.geometry, self.config.target, self.config.context_weight)

    def predict(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        """Prediction in the model's dtype and target in float32, both (B, M, P)."""
        return self.model(self.visible_cubes(batch), batch.visible_BV, batch.decode_BM), self.target(batch)

    def visible_cubes(self, batch: PretrainBatch) -> Tensor:
        """What the encoder sees: (B, V, P) float32, normalised."""
        return normalise_pixels(gather_cubes(batch.clip_BTHWC, batch.visible_BV, self.geometry))

    @torch.no_grad()
    def target(self, batch: PretrainBatch) -> Tensor:
        """What the decoder has to predict at `decode_BM`: (B, M, P) float32."""
        cubes_BMP = gather_cubes(batch.clip_BTHWC, batch.decode_BM, self.geometry)
        if self.config.target == "pixels":
            return unit_pixels(cubes_BMP)
        return normalise_cubes(cubes_BMP, self.geometry)


class Classify(nn.Module):
    """Supervised learning: cross entropy against labels that are smoothed and mixed as their clips are."""

    def __init__(self, model: Classifier, label_smoothing: float, geometry: ClipGeometry) -> None:
        super().__init__()
        self.model, self.label_smoothing, self.geometry = model, label_smoothing, geometry

    def forward(self, batch: LabelledBatch) -> LossOutput:
        """Mean cross entropy of the clips of one micro batch."""
        logits_BC = self.model(self.mixed_cubes(batch)).float()
        num_clips, num_classes = logits_BC.shape
        loss = self.cross_entropy(logits_BC, batch)
        return LossOutput(loss, loss.new_full((), num_clips), loss.new_full((), math.log(num_classes)))

    def cross_entropy(self, logits_BC: Tensor, batch: LabelledBatch | TaughtBatch) -> Tensor:
        """Mean over clips, against `target`."""
        return -(self.target(batch) * F.log_softmax(logits_BC, dim=-1)).sum(dim=-1).mean()

    def target(self, batch: LabelledBatch | TaughtBatch) -> Tensor:
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

    def mixed_cubes(self, batch: LabelledBatch | TaughtBatch) -> Tensor:
        """`cubes` of the clips as they are after mixup: (B, N, P) float32."""
        cubes_BNP = self.cubes(batch.clip_BTHWC)
        return batch.keep_pixels * cubes_BNP + (1 - batch.keep_pixels) * cubes_BNP.flip(0)


class Distil(Classify):
    """A student that learns what a teacher says of the same clips, and from labels what `alpha` leaves them.

    alpha T^2 KL(teacher || student) at temperature T (Hinton et al., arXiv 1503.02531) + (1 - alpha) cross entropy
    + feature_weight (1 - cosine). What the teacher says comes with the batch: no part of it is in this module.

    Features are compared by cosine because it has no scale: the teacher's width, its norm's gain and its precision do not
    change what `feature_weight` means. The projection to the teacher's width is learned with the student and is no part
    of it: what is exported or tested is `model` alone.
    """

    def __init__(
        self,
        model: Classifier,
        label_smoothing: float,
        geometry: ClipGeometry,
        settings: DistilSettings,
        teacher_width: int,
    ) -> None:
        super().__init__(model, label_smoothing, geometry)
        self.settings = settings
        if settings.feature_weight:
            self.projection = Linear(model.config.encoder.width, teacher_width)

    def forward(self, batch: TaughtBatch) -> LossOutput:  # type: ignore[override]  # a batch of another kind
        """Mean over the clips of one micro batch; `flat_loss` is that of equal chances and of features at right angles."""
        settings = self.settings
        feature_BD = self.model.features(self.mixed_cubes(batch))
        logits_BC = self.model.classify(feature_BD).float()
        num_clips, num_classes = logits_BC.shape
        loss = settings.alpha * divergence(logits_BC, batch.teacher_logits_BC, settings.temperature)
        flat = settings.alpha * divergence(torch.zeros_like(logits_BC), batch.teacher_logits_BC, settings.temperature)
        if settings.alpha < 1:
            loss = loss + (1 - settings.alpha) * self.cross_entropy(logits_BC, batch)
            flat = flat + (1 - settings.alpha) * math.log(num_classes)
        if settings.feature_weight:
            cosine_B = F.cosine_similarity(self.projection(feature_BD).float(), batch.teacher_feature_BE, dim=-1)
            loss = loss + settings.feature_weight * (1 - cosine_B).mean()
            flat = flat + settings.feature_weight
        return LossOutput(loss, loss.new_full((), num_clips), flat)


def divergence(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), both softmax(logits / T), mean over clips, in the dtype of the logits.

    Times T^2 because its gradient with respect to the logits falls with 1 / T^2 (arXiv 1503.02531, section 2).
    """
    student_BC, teacher_BC = (F.log_softmax(logits / temperature, dim=-1) for logits in (student_BC, teacher_BC))
    return temperature**2 * F.kl_div(student_BC, teacher_BC, reduction="batchmean", log_target=True)


def reconstruction_loss(
    pred_BMP: Tensor, batch: PretrainBatch, geometry: ClipGeometry, target: Target, context_weight: float = 0.0
) -> LossOutput:
    """What `Reconstruct` says of these predictions, in the model's dtype: target, loss and flat loss in one.

    A function by itself, so that it can be compiled by itself: then pixels are all that it reads beside the prediction.
    """
    num_supervised = batch.is_supervised_BM.sum()
    if context_weight:
        part_BM = torch.where(batch.is_supervised_BM, 1.0, context_weight)
        weight_BM = part_BM / (part_BM.sum() * geometry.cube_values)
    else:
        weight_BM = batch.is_supervised_BM / (num_supervised.clamp(min=1) * geometry.cube_values)
    loss, flat_loss = _SquaredError.apply(pred_BMP, batch.clip_BTHWC, batch.decode_BM, weight_BM, geometry, target)
    return LossOutput(loss, num_supervised, flat_loss)


class _SquaredError(torch.autograd.Function):
    """Sum over cubes of weight * |prediction - target|^2, and the same where each cube's mean colours are the prediction.

    By hand, because it holds one float32 (B, M, P): pixels, the error that they become and its gradient lie in one place,
    each written over the one before. Of the same sum in torch's words autograd holds five at once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pred_BMP: Tensor,
        clip_BTHWC: Tensor,
        decode_BM: Tensor,
        weight_BM: Tensor,
        geometry: ClipGeometry,
        target: Target,
    ) -> tuple[Tensor, Tensor]:
        x_BMP, one = gather_cubes(clip_BTHWC, decode_BM, geometry).to(torch.float32, copy=True), _one(clip_BTHWC)
        x_BMLW, mean_BMC, spread_BMC = _centre_(x_BMP, geometry)
        pred_BMLW = pred_BMP.view_as(x_BMLW)
        if target == "pixels":
            flat_BMC = spread_BMC / one**2
            x_BMLW.add_(_along_line(mean_BMC, geometry))
            torch.sub(pred_BMLW, x_BMLW, alpha=1 / one, out=x_BMLW)
        else:
            deviation_BMC = _deviation(spread_BMC, geometry, one)
            flat_BMC = spread_BMC / deviation_BMC.square()
            torch.addcdiv(pred_BMLW, x_BMLW, _along_line(deviation_BMC, geometry), value=-1, out=x_BMLW)
        error_BMP = x_BMP
        ctx.save_for_backward(error_BMP, weight_BM)
        ctx.dtype = pred_BMP.dtype
        loss = (torch.linalg.vector_norm(error_BMP, dim=-1).square() * weight_BM).sum()
        flat_loss = (flat_BMC.sum(dim=-1) * weight_BM).sum()
        ctx.mark_non_differentiable(flat_loss)
        ctx.set_materialize_grads(False)
        return loss, flat_loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        error_BMP, weight_BM = ctx.saved_tensors
        return error_BMP.mul_((2 * gradient * weight_BM)[..., None]).to(ctx.dtype), None, None, None, None, None


def normalise_cubes(cubes_BMP: Tensor, geometry: ClipGeometry) -> Tensor:
    """(x - mean) / (std + 1e-6) within each cube and colour, unbiased variance: uint8 or [0, 1] (B, M, P) to float32."""
    x_BMLW, _, spread_BMC = _centre_(cubes_BMP.to(torch.float32, copy=True), geometry)
    deviation_BMC = _deviation(spread_BMC, geometry, _one(cubes_BMP))
    return x_BMLW.div_(_along_line(deviation_BMC, geometry)).flatten(2)


def _one(pixels: Tensor) -> int:
    """What stands for 1 in them. Bytes are not divided by it: that saves a pass, and sums of them are exact."""
    return 255 if pixels.dtype == torch.uint8 else 1


def _centre_(x_BMP: Tensor, geometry: ClipGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Take its mean by colour from each cube, in place; with the means, and the sums of squares that are left.

    A cube lies as L = tubelet * patch lines of W = patch * 3 values: torch is 3x slower where the last dimension is 3 long.
    """

    def colour_sum(x_BMLW: Tensor) -> Tensor:
        return x_BMLW.sum(dim=2).unflatten(-1, (geometry.patch, 3)).sum(dim=-2)

    x_BMLW = x_BMP.unflatten(-1, (-1, geometry.patch * 3))
    mean_BMC = colour_sum(x_BMLW) / (geometry.cube_values // 3)
    x_BMLW.sub_(_along_line(mean_BMC, geometry))
    return x_BMLW, mean_BMC, colour_sum(x_BMLW.square())


def _along_line(x_BMC: Tensor, geometry: ClipGeometry) -> Tensor:
    """A value of each colour for every pixel of a line: (B, M, 1, W)."""
    return x_BMC[:, :, None, None].expand(-1, -1, 1, geometry.patch, -1).flatten(3)  # repeat() makes an index first


def _deviation(spread_BMC: Tensor, geometry: ClipGeometry, one: int) -> Tensor:
    """What a normalised target is divided by."""
    return (spread_BMC / (geometry.cube_values // 3 - 1)).sqrt() + one * TARGET_EPS
