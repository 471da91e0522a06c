"""What spatial detection learns: the actions of people in boxes, their losses divided alike however a step is shared."""

from __future__ import annotations

from torch import Tensor, nn

from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.contracts import AvaBatch, LossOutput, Movable
from vmae2_ds.downstream.ava.losses import box_losses, learnt_boxes
from vmae2_ds.downstream.ava.model import PersonActionModel
from vmae2_ds.downstream.ava.roi_head import probabilities
from vmae2_ds.train.normaliser import Normaliser

# B clips, G boxes of a clip, C actions.


class NameActions(nn.Module):
    """Losses of all boxes of a step, summed, over its clips or over its boxes, as `loss.mean_over` says.

    A micro batch gives its sum over its own clips; or its sum times the number of micro batches of the step over the number of
    boxes of the whole step. Either way the mean over ranks and micro steps is that of the whole step, however it is shared.
    """

    def __init__(self, model: PersonActionModel, config: AvaConfig) -> None:
        super().__init__()
        self.model, self.loss = model, config.loss
        self.exclusive = config.model.exclusive
        """Columns of the actions of which a box has one at most."""
        self.micro_steps = config.train.global_batch // config.train.micro_batch
        """Micro batches of all ranks in a step."""
        self.normaliser: Tensor | float = 1.0
        """Boxes of the step over all ranks, set anew in each (train/normaliser.py), where losses are divided by them."""

    def forward(self, batch: AvaBatch) -> LossOutput:
        """Loss of one micro batch; `flat_loss` is that of equal chances."""
        logits_BGC = self.model(batch.clip_BTHWC, batch.box_BG4)
        sums = box_losses(logits_BGC, batch.target_BGC, batch.is_box_BG, self.loss, self.exclusive)
        share = self.micro_steps / self.normaliser if self.loss.mean_over == "boxes" else 1 / len(batch.clip_BTHWC)
        return LossOutput((sums.loss * share).float(), sums.num_boxes, (sums.flat * share).float())

    def count(self, batch: AvaBatch) -> Tensor:
        """How many boxes of a micro batch are learnt from: () int64, of the truth alone."""
        some_alone = len(self.exclusive) < batch.target_BGC.shape[-1]
        return learnt_boxes(batch.target_BGC, batch.is_box_BG, self.loss, any_class=some_alone).sum()

    def probabilities(self, clip_BTHWC: Tensor, box_BG4: Tensor, picture_B2: Tensor | None = None) -> Tensor:
        """How likely each action is in each box, padding too: (B, G, C) float32. Arguments as the model's."""
        return probabilities(self.model(clip_BTHWC, box_BG4, picture_B2), self.exclusive)


def ava_objective(config: AvaConfig) -> NameActions:
    """The objective on a model whose weights are not drawn yet."""
    model = PersonActionModel(config.model, config.geometry)
    if config.optim.train_only == "head":
        model.encoder.requires_grad_(False)
        model.encoder.norm.requires_grad_(True)
    return NameActions(model, config)


def boxes_of_a_step() -> Normaliser:
    """The number of boxes of a step over all ranks, at least 1; nothing of the steps before."""
    return Normaliser(1.0, lambda before, number: number.clamp(min=1), count)


def count(objective: nn.Module, batch: Movable) -> Tensor:
    """Boxes of a micro batch that are learnt from."""
    assert isinstance(objective, NameActions), "the objective of this stage"
    assert isinstance(batch, AvaBatch), "what its data set collates"
    return objective.count(batch)
