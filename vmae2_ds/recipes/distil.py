"""Named distillation runs.

The paper's students were initialised from the model after post-pre-training, and their logits aligned with the ViT-g
teacher's while training on Kinetics-710, citing "a patient and consistent teacher" (Beyer et al., arXiv 2106.05237);
neither code nor hyper-parameters were released. So these recipes are ours, and the scores are the published students'.
From Beyer et al.: no labels, the same crop for both, mixing kept on, many epochs, no temperature. From the ViT-B script of
VideoMAE V2 on Kinetics-710: clips, augmentation, batch, layer decay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES, NUM_CLASSES, vit_ti_finetune_desk


def _like(supervised: FinetuneConfig, recipe: str, **sections: Mapping[str, object]) -> DistilConfig:
    """A distillation config with another recipe's clips, batch and schedule, some sections changed; loss and teacher by
    default."""
    changed = supervised.changed(**sections).model_dump(exclude={"stage"})
    return DistilConfig.model_validate({**changed, "recipe": recipe})


def _k710(recipe: str, size: str, drop_path: float) -> DistilConfig:
    model = ClassifierConfig.of_size(size, num_classes=NUM_CLASSES["k710"], drop_path=drop_path)
    return _like(FINETUNE_RECIPES["vit_b_posttrain_k710"](), recipe, model=dict(model), train={"epochs": 100})


def vit_s_distil_k710() -> DistilConfig:
    """ViT-S from ViT-g on Kinetics-710, 100 epochs of 2 views. The recipe is ours: the paper's was never released.

    Command:  deepspeed --hostfile H --module vmae2_ds distil vit_s_distil_k710 --data.manifest L
              --teacher runs/vit_g_posttrain_k710 --train.init runs/vit_s_posttrain_k710
    Hardware: 32 GPUs x 16 videos x 2 views, a guess. Time: not measured; the teacher's forward pass is 15 times the
              student's forward and backward pass; where several students are to learn, distil-cache asks once.
    Score:    K710 77.6 %, K400 83.7 %, K600 83.1 % (published model zoo, 5x3 views); ours not measured.
    Source:   arXiv 2303.16727 and its model zoo for what was done; arXiv 2106.05237 for how; ViT-B's script for the rest.
    """
    return _k710("vit_s_distil_k710", "small", drop_path=0.0)


def vit_b_distil_k710() -> DistilConfig:
    """ViT-B from ViT-g on Kinetics-710, 100 epochs of 2 views. The recipe is ours: the paper's was never released.

    Command:  deepspeed --hostfile H --module vmae2_ds distil vit_b_distil_k710 --data.manifest L
              --teacher runs/vit_g_posttrain_k710 --train.init runs/vit_b_posttrain_k710
    Hardware: 32 GPUs x 16 videos x 2 views, a guess. Time: not measured; the teacher's forward pass is 5 times the
              student's forward and backward pass.
    Score:    K710 81.5 %, K400 86.6 %, K600 85.9 % (published model zoo, 5x3 views; without distillation K710 79.3 %);
              ours not measured.
    Source:   arXiv 2303.16727 and its model zoo for what was done; arXiv 2106.05237 for how; ViT-B's script for the rest.
    """
    return _k710("vit_b_distil_k710", "base", drop_path=0.1)


def vit_ti_distil_desk() -> DistilConfig:
    """ViT-Ti from any desk classifier on 16 frames of 64x64 with 8-pixel cubes: minutes on two CPU cores.

    Command:  deepspeed --num_accelerators 2 --module vmae2_ds distil vit_ti_distil_desk --data.manifest L
              --model.num-classes C --teacher runs/TEACHER --train.init runs/vit_ti_finetune_desk
    Hardware: 2 CPU cores. Time and score: not measured.
    Source:   ours: vit_ti_finetune_desk with mixing, twice the epochs and the teacher's answers for labels.
    """
    return _like(vit_ti_finetune_desk(), "vit_ti_distil_desk", model={"drop_path": 0.0}, train={"epochs": 60})


DISTIL_RECIPES: dict[str, Callable[[], DistilConfig]] = {
    recipe.__name__: recipe for recipe in (vit_ti_distil_desk, vit_s_distil_k710, vit_b_distil_k710)
}
"""Recipe functions by name."""
