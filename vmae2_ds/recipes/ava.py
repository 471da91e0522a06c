"""Named runs of spatial action detection on AVA and AVA-Kinetics: as published, from S to g, and one for a desk.

Settings and their sources: docs/PAPER.md#spatial-detection-recipes; those that are not set here are the defaults of
config/ava.py and config/ava_head.py, which are VideoMAE-AD's. Every one starts from `--train.init`. What is not as published,
in all of them: pixels are normalised as in pre-training, the head has the 60 classes that are scored and not 80, and frame mAP
is measured after every epoch and the best checkpoint kept, because AVA is best early, say the authors. VideoMAE-AD brings the
long side of training pictures to 464 pixels at most; here wider films keep their short side.
"""

from __future__ import annotations

from typing import NamedTuple

from vmae2_ds.config.ava import AvaConfig, AvaDataConfig, AvaModelConfig, AvaOptimConfig, AvaTrainConfig
from vmae2_ds.config.ava_head import BoxLossConfig, RoiHeadConfig
from vmae2_ds.config.model import SizeName
from vmae2_ds.config.stages import RecipeFn

NUM_CLASSES = 60
"""Classes that are scored: those of ava_action_list_v2.2_for_activitynet_2019.pbtxt."""
SET = """--data.truth ava_train_v2.2.csv
          --data.excluded ava_train_excluded_timestamps_v2.2.csv
          --data.label-map ava_action_list_v2.2_for_activitynet_2019.pbtxt --data.videos FOLDER
          --data.val-truth ava_val_v2.2.csv --data.val-excluded ava_val_excluded_timestamps_v2.2.csv
          --data.val-boxes BOXES"""
"""The files of AVA v2.2; of movies that are cut to minutes 15 to 30 the first frame is at --data.video-starts-s 900."""


class PublishedAva(NamedTuple):
    """A script or a configuration that somebody published."""

    name: str
    about: str
    size: SizeName
    gpus: int
    micro_batch: int
    """Clips on each."""
    base_lr: float
    """For 256 clips; of mmaction2 for its own batch."""
    layer_decay: float
    epochs: float
    score: str
    """Frame mAP at an IoU of 0.5 on AVA v2.2's validation set."""
    source: str
    """The file, and where we differ from it."""
    is_mmaction2: bool = False
    """Trained on truth and proposals, as mmaction2 does; otherwise on the truth alone, as VideoMAE-AD."""

    def describe(self) -> str:
        """Command, hardware, score and source."""
        proposals = " --data.boxes PROPOSALS" if self.is_mmaction2 else ""
        return (
            f"{self.about}, {self.epochs:g} epochs.\n\n"
            f"Command:  deepspeed --hostfile H --module vmae2_ds ava {self.name} {SET}{proposals} --train.init W\n"
            f"Hardware: published on {self.gpus} GPUs x {self.micro_batch} clips. No GPU has run it here.\n"
            f"Score:    {self.score}.\n"
            f"Source:   {self.source} (docs/PAPER.md#spatial-detection-recipes)."
        )

    def build(self) -> AvaConfig:
        """16 frames, every 4th, around the key frame."""
        made = AvaConfig(
            recipe=self.name,
            model=AvaModelConfig.of_size(
                self.size,
                num_classes=NUM_CLASSES,
                drop_path=0.2,
                checkpointing="all" if self.size in ("large", "huge", "giant") else "none",
            ),
            data=AvaDataConfig(
                num_frames=16,
                size=224,
                stride=4,
                clip_around="videomae_ad",
                train_on="truth",
                box_threshold=0.8,
                most_boxes=100,
                box_jitter=(0.2, 0.1, 0.1, 0.05),
                short_side=(256, 256),
                test_short_side=256,
                flip=0.5,
                hue_turn=20,
                saturation=0.1,
                brightness=0.1,
                val_protocol="legacy",
            ),
            loss=BoxLossConfig(mean_over="clips"),
            optim=AvaOptimConfig(
                base_lr=self.base_lr,
                min_lr=1e-6,
                lr_batch=256,
                warmup_epochs=5,
                weight_decay=0.05,
                layer_decay=self.layer_decay,
            ),
            train=AvaTrainConfig(
                global_batch=self.gpus * self.micro_batch,
                micro_batch=self.micro_batch,
                epochs=self.epochs,
                epoch_steps="whole",
                validate_every=1,
                keep_best="val_frame_map",
            ),
        )
        return self._as_mmaction2(made) if self.is_mmaction2 else made

    def _as_mmaction2(self, made: AvaConfig) -> AvaConfig:
        """The same where mmaction2's configurations do not say otherwise: dropout on cells, first weights of deviation 0.01."""
        head = RoiHeadConfig(
            size=8, aligned=True, box_extension=(0, 0), dropout=0.5, dropout_on="cells", init_scale=0.5
        )
        return made.changed(
            model={"positions_from": (16, 224), "head": head},
            data={
                "size": 256,
                "clip_around": "pyslowfast",
                "short_side": (256, 320),
                "train_on": "truth_and_proposals",
                "box_threshold": 0.9,
                "proposal_overlap": 0.9,
                "always_a_box": True,
                "most_boxes": 32,
                "box_jitter": (0, 0, 0, 0),
                "hue_turn": 0,
                "saturation": 0,
                "brightness": 0,
                "val_protocol": "mmaction2",
                "person_score": False,
            },
            loss={"mean_over": "boxes", "boxes_without_action": "leave_out"},
            optim={"min_lr": 0, "lr_batch": made.train.global_batch, "clip_grad": 40},
        )


VIDEOMAE_AD = "scripts/ava of VideoMAE-AD, videomae_vit_{}_k400_pretrain+finetune"
MMACTION2 = (
    "configs/detection/videomae of mmaction2, vit-{}-p16_videomae-k400-pre_8xb8-16x4x1-20e-adamw_ava-kinetics-rgb.py; its "
    "warm-up begins at a tenth of the rate, ours at 0, and each of its ranks has a mean over its own boxes, ours one over all "
    "of a step"
)
KINETICS = "with the files of AVA-Kinetics named beside AVA's"

PUBLISHED = (
    PublishedAva(
        "ava_s", "ViT-S on AVA v2.2, truth alone", "small",
        gpus=16, micro_batch=8, base_lr=5e-4, layer_decay=0.6, epochs=30,
        score="28.4 from weights fine-tuned on K400; 22.5 from pre-trained ones, at a base_lr of 1e-3",
        source=VIDEOMAE_AD.format("small"),
    ),
    PublishedAva(
        "ava_b", "ViT-B on AVA v2.2, truth alone", "base",
        gpus=32, micro_batch=4, base_lr=5e-4, layer_decay=0.75, epochs=30,
        score="31.8 from weights fine-tuned on K400; 26.7 from pre-trained ones, at a base_lr of 2.5e-4",
        source=VIDEOMAE_AD.format("base"),
    ),
    PublishedAva(
        "ava_l", "ViT-L on AVA v2.2, truth alone", "large",
        gpus=32, micro_batch=4, base_lr=5e-4, layer_decay=0.8, epochs=20,
        score="37.0 from weights fine-tuned on K400, 39.3 on K700; 34.3 and 36.1 from pre-trained ones",
        source=VIDEOMAE_AD.format("large"),
    ),
    PublishedAva(
        "ava_h", "ViT-H on AVA v2.2, truth alone", "huge",
        gpus=64, micro_batch=2, base_lr=5e-4, layer_decay=0.8, epochs=20,
        score="39.5 from weights fine-tuned on K400; 36.5 from pre-trained ones",
        source=VIDEOMAE_AD.format("huge"),
    ),
    PublishedAva(
        "ava_g", f"ViT-g on AVA v2.2, truth alone; on AVA-Kinetics {KINETICS}", "giant",
        gpus=32, micro_batch=4, base_lr=5e-4, layer_decay=0.9, epochs=20,
        score="42.6, and 43.9 trained on AVA-Kinetics (paper); the code behind both was never published, so whether these "
        "settings give them is not known",
        source="avalarge.sh of InternVideo's copy of VideoMAE-AD, from weights fine-tuned on K710; blocks recomputed and boxes "
        "looked up at a scale of 1/14 where that copy has 1/16",
    ),
    PublishedAva(
        "ava_kinetics_b", f"ViT-B on AVA-Kinetics, truth and proposals, {KINETICS}", "base",
        gpus=8, micro_batch=8, base_lr=1.25e-4, layer_decay=0.75, epochs=20,
        score="33.6 from weights fine-tuned on K400", source=MMACTION2.format("base"), is_mmaction2=True,
    ),
    PublishedAva(
        "ava_kinetics_l", f"ViT-L on AVA-Kinetics, truth and proposals, {KINETICS}", "large",
        gpus=8, micro_batch=8, base_lr=2.5e-4, layer_decay=0.8, epochs=20,
        score="38.7 from weights fine-tuned on K400", source=f"{MMACTION2.format('large')}; here blocks are recomputed",
        is_mmaction2=True,
    ),
)  # fmt: skip
"""What others published. Frame mAP is in percent."""


def ava_desk() -> AvaConfig:
    """ViT-Ti of any desk recipe on 16 frames of 64 pixels with 8-pixel cubes, one action a person: two CPU cores.

    Command:  vmae2 ava ava_desk --data.truth FILE --data.label-map FILE --data.videos FOLDER --model.num-classes C
              --data.val-truth FILE --train.init runs/vit_ti_finetune_desk
    Hardware: 2 CPU cores.
    Score:    not published.
    Source:   ours: ava_b with positions of squares of 64, one softmax of all classes, smaller pictures and rates for a short
              run. Frames are 2 apart: two seconds at 15 a second.
    """
    return AvaConfig(
        recipe="ava_desk",
        model=AvaModelConfig.of_size(
            "tiny",
            patch=8,
            num_classes=15,
            drop_path=0.1,
            positions_from=(16, 64),
            head=RoiHeadConfig(aligned=True, exclusive="all"),
        ),
        data=AvaDataConfig(
            num_frames=16, size=64, stride=2, short_side=(72, 96), test_short_side=80, flip=0.0, hue_turn=0, workers=1
        ),
        optim=AvaOptimConfig(base_lr=1e-3, lr_batch=16, warmup_epochs=2, clip_grad=1),
        train=AvaTrainConfig(
            global_batch=16,
            micro_batch=4,
            epochs=20,
            ds_config="cpu",
            precision="fp32",
            validate_every=2,
            log_every=5,
            save_every=250,
            keep_best="val_frame_map",
        ),
    )


def _recipe(run: PublishedAva) -> RecipeFn:
    def build() -> AvaConfig:
        return run.build()

    build.__name__, build.__doc__ = run.name, run.describe()
    return build


AVA_RECIPES: dict[str, RecipeFn] = {**{run.name: _recipe(run) for run in PUBLISHED}, "ava_desk": ava_desk}
"""Recipes by name."""
