"""Named supervised runs: post-pre-training on Kinetics-710 and fine-tuning, as published; some around distillation; a desk's.

Hyper-parameters are those of the scripts of VideoMAE V2 (docs/PAPER.md#fine-tuning-recipes). Their epochs and batches do not
count the two views that each video gives. Every one starts from `--train.init`: a run's folder or a checkpoint file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmae2_ds.config.finetune import (
    AugmentConfig,
    FinetuneConfig,
    FinetuneOptimConfig,
    FinetuneTrainConfig,
    LabelledDataConfig,
    ViewsConfig,
)
from vmae2_ds.config.lora import LoraConfig
from vmae2_ds.config.model import ClassifierConfig

TRAIN_VIEWS = 2
"""Clips of each video a pass (published num_sample)."""
NUM_CLASSES = {"k400": 400, "k600": 600, "k710": 710, "ssv2": 174, "ucf101": 101, "hmdb51": 51}
"""Classes by data set."""


class PublishedRun(NamedTuple):
    """One script of scripts/finetune."""

    name: str
    about: str
    size: str
    dataset: str
    gpus: int
    micro_batch: int
    base_lr: float
    layer_decay: float
    drop_path: float
    epochs: float
    score: str
    """Top-1."""
    source: str
    """The published script, and where we differ from it."""
    head_dropout: float = 0.0
    weight_decay: float = 0.05
    warmup_epochs: float = 5
    clip_grad: float = 0.0
    stride: int = 4
    needs_head_map: bool = False

    def describe(self) -> str:
        """Command, hardware, score and source."""
        head_map = " --train.head-map MAP" if self.needs_head_map else ""
        return (
            f"{self.about}, {self.epochs:g} epochs of {TRAIN_VIEWS} views.\n\n"
            f"Command:  deepspeed --hostfile H --module vmae2_ds finetune {self.name} --data.manifest L "
            f"--train.init W{head_map}\n"
            f"Hardware: published on {self.gpus} GPUs x {self.micro_batch} videos x {TRAIN_VIEWS} views. Time: not published.\n"
            f"Score:    {self.score}.\n"
            f"Source:   scripts/finetune of VideoMAE V2, {self.source}."
        )

    def build(self) -> FinetuneConfig:
        """16 frames; dense sampling and 5x3 views, or for SSv2 segments, no mirroring and 2x3 views."""
        by_segments = self.dataset == "ssv2"
        return FinetuneConfig(
            recipe=self.name,
            model=ClassifierConfig.of_size(
                self.size,
                num_classes=NUM_CLASSES[self.dataset],
                drop_path=self.drop_path,
                head_dropout=self.head_dropout,
                checkpointing="all" if self.size in ("huge", "giant") else "none",
            ),
            data=LabelledDataConfig(
                num_frames=16,
                size=224,
                stride=self.stride,
                views=TRAIN_VIEWS,
                sampling="segments" if by_segments else "dense",
                flip=0.0 if by_segments else 0.5,  # "from left to right" is a label there
            ),
            optim=FinetuneOptimConfig(
                base_lr=self.base_lr,
                warmup_epochs=self.warmup_epochs,
                weight_decay=self.weight_decay,
                layer_decay=self.layer_decay,
                clip_grad=self.clip_grad,
            ),
            train=FinetuneTrainConfig(
                global_batch=self.gpus * self.micro_batch * TRAIN_VIEWS,
                micro_batch=self.micro_batch,
                epochs=self.epochs,
                epoch_steps="whole",
            ),
            test=ViewsConfig(clips=2, sampling="segments") if by_segments else ViewsConfig(),
        )


PUBLISHED_RUNS = (
    PublishedRun(
        "vit_b_posttrain_k710", "ViT-B on merged Kinetics-710", "base", "k710",
        gpus=32, micro_batch=16, base_lr=7e-4, layer_decay=0.75, drop_path=0.1, epochs=90,
        score="79.3 % K710 without distillation (InternVideo1 zoo)", source="B K710",
    ),
    PublishedRun(
        "vit_b_finetune_k400", "ViT-B on Kinetics-400", "base", "k400",
        gpus=32, micro_batch=16, base_lr=7e-4, layer_decay=0.75, drop_path=0.1, epochs=90,
        score="81.5 % (77.0 single view), published", source="B K400",
    ),
    PublishedRun(
        "vit_b_finetune_ssv2", "ViT-B on Something-Something V2", "base", "ssv2",
        gpus=16, micro_batch=16, base_lr=2e-3, layer_decay=0.65, drop_path=0.1, epochs=25,
        score="71.2 % (69.5 single view), published", source="B SSv2",
    ),
    PublishedRun(
        "vit_l_finetune_k400", "ViT-L on Kinetics-400", "large", "k400",
        gpus=32, micro_batch=6, base_lr=2e-3, layer_decay=0.75, drop_path=0.2, epochs=35,
        score="85.4 % (81.3 single view), second hand", source="L K400",
    ),
    PublishedRun(
        "vit_l_finetune_ssv2", "ViT-L on Something-Something V2", "large", "ssv2",
        gpus=32, micro_batch=6, base_lr=5e-4, layer_decay=0.75, drop_path=0.2, epochs=20,
        score="75.7 % (74.0 single view), second hand", source="L SSv2, whose layer decay is the parser's default",
    ),
    PublishedRun(
        "vit_h_posttrain_k710", "ViT-H on merged Kinetics-710", "huge", "k710",
        gpus=32, micro_batch=4, base_lr=1e-3, layer_decay=0.8, drop_path=0.2, epochs=40,
        score="not published by itself", source="H K710",
        head_dropout=0.5,
    ),
    PublishedRun(
        "vit_h_finetune_k400", "ViT-H on Kinetics-400", "huge", "k400",
        gpus=32, micro_batch=4, base_lr=1e-3, layer_decay=0.8, drop_path=0.2, epochs=40,
        score="86.9 % (83.2 single view), published; after K710 88.6 %", source="H K400",
        head_dropout=0.5,
    ),
    PublishedRun(
        "vit_h_finetune_k600", "ViT-H on Kinetics-600", "huge", "k600",
        gpus=32, micro_batch=4, base_lr=1e-3, layer_decay=0.8, drop_path=0.2, epochs=40,
        score="not published by itself", source="H K600 (the file names 1 GPU; the others' 32 are used here)",
        head_dropout=0.5,
    ),
    PublishedRun(
        "vit_h_finetune_ssv2", "ViT-H on Something-Something V2", "huge", "ssv2",
        gpus=32, micro_batch=4, base_lr=5e-4, layer_decay=0.8, drop_path=0.2, epochs=20,
        score="76.8 % (75.5 single view), published", source="H SSv2",
    ),
    PublishedRun(
        "vit_g_posttrain_k710", "ViT-g on merged Kinetics-710: the paper's post-pre-training", "giant", "k710",
        gpus=32, micro_batch=3, base_lr=1e-3, layer_decay=0.9, drop_path=0.3, epochs=35,
        score="83.8 % K710, published", source="g K710",
        weight_decay=0.1, clip_grad=5.0,
    ),
    PublishedRun(
        "vit_g_finetune_k400_direct", "ViT-g on Kinetics-400 without post-pre-training", "giant", "k400",
        gpus=64, micro_batch=3, base_lr=1e-3, layer_decay=0.9, drop_path=0.2, epochs=30,
        score="87.2 % (83.9 single view), published", source="g K400 direct",
        weight_decay=0.1,
    ),
    PublishedRun(
        "vit_g_finetune_k400", "ViT-g on Kinetics-400 after Kinetics-710", "giant", "k400",
        gpus=32, micro_batch=3, base_lr=1e-5, layer_decay=0.9, drop_path=0.25, epochs=3,
        score="88.4 % (repository), 88.5 % (paper)", source="g K710->K400",
        weight_decay=0.1, warmup_epochs=1, needs_head_map=True,
    ),
    PublishedRun(
        "vit_g_finetune_k600", "ViT-g on Kinetics-600 after Kinetics-710", "giant", "k600",
        gpus=32, micro_batch=3, base_lr=1e-5, layer_decay=0.9, drop_path=0.25, epochs=3,
        score="88.8 %, published", source="g K710->K600",
        weight_decay=0.1, warmup_epochs=1, needs_head_map=True,
    ),
    PublishedRun(
        "vit_g_finetune_ssv2", "ViT-g on Something-Something V2, straight from pre-training", "giant", "ssv2",
        gpus=32, micro_batch=3, base_lr=3e-4, layer_decay=0.9, drop_path=0.25, epochs=20,
        score="77.0 % (75.7 single view), published", source="g SSv2",
    ),
    PublishedRun(
        "vit_g_finetune_ucf101", "ViT-g on UCF101 after Kinetics-710", "giant", "ucf101",
        gpus=8, micro_batch=3, base_lr=1e-3, layer_decay=0.9, drop_path=0.35, epochs=50,
        score="99.6 %, published", source="g K710->UCF101",
        head_dropout=0.5,
    ),
    PublishedRun(
        "vit_g_finetune_hmdb51", "ViT-g on HMDB51 after Kinetics-710", "giant", "hmdb51",
        gpus=8, micro_batch=3, base_lr=5e-4, layer_decay=0.9, drop_path=0.35, epochs=15,
        score="88.1 % on split 1, published", source="g K710->HMDB51",
        head_dropout=0.5, stride=2,
    ),
)  # fmt: skip
"""B to g; ViT-S has no script. 64 frames of 266x266: --data.num-frames 64 --data.size 266, tested with 2x3 views (paper)."""


def vit_ti_finetune_desk() -> FinetuneConfig:
    """ViT-Ti on 16 frames of 64x64 with 8-pixel cubes, as vit_ti_pretrain_desk: minutes on two CPU cores.

    Command:  deepspeed --num_accelerators 2 --module vmae2_ds finetune vit_ti_finetune_desk --data.manifest L
              --model.num-classes C --train.init runs/vit_ti_pretrain_desk
    Hardware: 2 CPU cores. Time and score: not measured.
    Source:   ours.
    """
    return FinetuneConfig(
        recipe="vit_ti_finetune_desk",
        model=ClassifierConfig.of_size("tiny", patch=8, num_classes=12, drop_path=0.1),
        data=LabelledDataConfig(
            num_frames=16, size=64, sampling="spread", views=2, workers=1, min_frames=8, crop_area=(0.5, 1.0), flip=0.0
        ),
        augment=AugmentConfig(rand_augment=None),
        optim=FinetuneOptimConfig(base_lr=1.6e-2, min_lr=1e-4, warmup_epochs=3, layer_decay=0.75, clip_grad=1.0),
        train=FinetuneTrainConfig(
            global_batch=16, micro_batch=4, epochs=30, ds_config="cpu", save_every=250, log_every=10, keep=2
        ),
        test=ViewsConfig(clips=2, crops=1),
    )


def vit_s_posttrain_k710() -> FinetuneConfig:
    """ViT-S on merged Kinetics-710, 90 epochs of 2 views: what distillation into ViT-S starts from.

    Command:  deepspeed --hostfile H --module vmae2_ds finetune vit_s_posttrain_k710 --data.manifest L
              --train.init runs/vit_s_pretrain_hybrid
    Hardware: 32 GPUs x 16 videos x 2 views, as ViT-B's. Time and score: not measured, and none is published.
    Source:   no ViT-S script was published; these are ViT-B's numbers on K710 with ViT-S's shape.
    """
    base = _published("vit_b_posttrain_k710")
    model = ClassifierConfig.of_size("small", num_classes=NUM_CLASSES["k710"], drop_path=base.model.drop_path)
    return base.model_copy(update={"recipe": "vit_s_posttrain_k710", "model": model})


def _after_distillation(letter: str, size: str, dataset: str, score: str) -> Callable[[], FinetuneConfig]:
    """The recipe that takes a student distilled on K710 to K400 or K600."""
    name = f"vit_{letter}_finetune_{dataset}_distilled"

    def recipe() -> FinetuneConfig:
        teacher, base = _published(f"vit_g_finetune_{dataset}"), _published("vit_b_posttrain_k710")
        model = ClassifierConfig.of_size(size, num_classes=NUM_CLASSES[dataset], drop_path=base.model.drop_path)
        schedule = teacher.optim.model_dump(include={"base_lr", "min_lr", "warmup_epochs"})
        changed = base.changed(optim=schedule, train={"epochs": teacher.train.epochs}, test={"clips": 7})
        return changed.model_copy(update={"recipe": name, "model": model})

    recipe.__name__ = name
    recipe.__doc__ = (
        f"ViT-{letter.upper()}, distilled on Kinetics-710, on Kinetics-{dataset[1:]}: 3 epochs of {TRAIN_VIEWS} views. "
        "The recipe is ours.\n\n"
        f"Command:  deepspeed --hostfile H --module vmae2_ds finetune {name} --data.manifest L "
        f"--train.init runs/vit_{letter}_distil_k710 --train.head-map MAP\n"
        f"Hardware: 32 GPUs x 16 videos x {TRAIN_VIEWS} views, a guess. Time: not measured.\n"
        f"Score:    {score} % (published student, 7x3 views); ours not measured.\n"
        "Source:   none was published: the schedule is that of ViT-g from K710, clips, batch and layer decay are those of "
        "ViT-B on K710."
    )
    return recipe


def _published(name: str) -> FinetuneConfig:
    return next(run for run in PUBLISHED_RUNS if run.name == name).build()


def vit_ti_lora_desk() -> FinetuneConfig:
    """vit_ti_finetune_desk with adapters of rank 8 in the place of the encoder's own weights.

    Command:  vmae2 finetune vit_ti_lora_desk --data.manifest L --model.num-classes C --train.init runs/vit_ti_pretrain_desk
    Hardware: 1 CPU core. Time and score: not measured.
    Source:   ours: twice the rate, and the same for all layers.
    """
    return _with_adapters(vit_ti_finetune_desk(), "vit_ti_lora_desk", rank=8, base_lr=3.2e-2)


def vit_b_lora_k400() -> FinetuneConfig:
    """ViT-B on Kinetics-400 with adapters of rank 16, 30 epochs of 2 views.

    Command:  deepspeed --num_accelerators 8 --module vmae2_ds finetune vit_b_lora_k400 --data.manifest L
              --train.init runs/vit_b_pretrain_hybrid
    Hardware: 8 GPUs x 16 videos x 2 views, accumulated to vit_b_finetune_k400's batch. Time and score: not measured.
    Source:   ours, a guess: nobody published adapters of this kind for VideoMAE V2. The rest is vit_b_finetune_k400.
    """
    return _with_adapters(_published("vit_b_finetune_k400"), "vit_b_lora_k400", rank=16, base_lr=1e-3, epochs=30)


def vit_g_lora_k400() -> FinetuneConfig:
    """ViT-g on Kinetics-400 with adapters of rank 16, straight from pre-training, 20 epochs of 2 views.

    Command:  deepspeed --num_accelerators 8 --module vmae2_ds finetune vit_g_lora_k400 --data.manifest L
              --train.init runs/vit_g_pretrain_hybrid
    Hardware: 8 GPUs x 3 videos x 2 views, accumulated to vit_g_finetune_k400_direct's batch. Time and score: not measured.
    Source:   ours, a guess, as vit_b_lora_k400's. The rest is vit_g_finetune_k400_direct.
    """
    return _with_adapters(_published("vit_g_finetune_k400_direct"), "vit_g_lora_k400", rank=16, base_lr=1e-3, epochs=20)


def _with_adapters(
    base: FinetuneConfig, name: str, *, rank: int, base_lr: float, epochs: float | None = None
) -> FinetuneConfig:
    """A recipe whose encoder has adapters, which all learn at one rate: no layer of them has learnt anything before."""
    changed = base.changed(
        model={"lora": LoraConfig(rank=rank)},
        optim={"base_lr": base_lr, "layer_decay": 1.0},
        train={"epochs": epochs or base.train.epochs},
    )
    return changed.model_copy(update={"recipe": name})


AFTER_DISTILLATION = tuple(
    _after_distillation(*row)
    for row in (
        ("s", "small", "k400", "84.0"),
        ("s", "small", "k600", "84.6"),
        ("b", "base", "k400", "87.1"),
        ("b", "base", "k600", "87.4"),
    )
)
"""Scores of the published students: docs/PAPER.md#distillation."""


def _recipe_of(run: PublishedRun) -> Callable[[], FinetuneConfig]:
    def recipe() -> FinetuneConfig:
        return run.build()

    recipe.__name__, recipe.__doc__ = run.name, run.describe()
    return recipe


OURS = (vit_ti_finetune_desk, vit_ti_lora_desk, vit_b_lora_k400, vit_g_lora_k400, vit_s_posttrain_k710)

FINETUNE_RECIPES: dict[str, Callable[[], FinetuneConfig]] = {
    **{recipe.__name__: recipe for recipe in (*OURS, *AFTER_DISTILLATION)},
    **{run.name: _recipe_of(run) for run in PUBLISHED_RUNS},
}
"""Recipe functions by name."""
