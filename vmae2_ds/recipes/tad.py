"""Named runs of temporal detection on features from files: as published for THUMOS14 and FineAction, and one for a desk.

Settings and their sources: docs/PAPER.md#detection-recipes. Those that are not set here are the defaults of config/tad.py and
config/tad_head.py, which are ActionFormer's.
"""

from __future__ import annotations

from vmae2_ds.config.model import SIZES, TowerConfig
from vmae2_ds.config.stages import RecipeFn
from vmae2_ds.config.tad import TadConfig, TadDataConfig, TadModelConfig, TadOptimConfig, TadTrainConfig
from vmae2_ds.config.tad_head import DetectConfig, HeadConfig, HeadLossConfig
from vmae2_ds.recipes.tad_adapters import TAD_ADAPTER_RECIPES

GIANT, _, PATCH = SIZES["giant"]
ACTIVITYNET_TIOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5 to 0.95: what mAP of ActivityNet and FineAction is averaged over."""


def thumos14_v2g() -> TadConfig:
    """ActionFormer on THUMOS14, from features of ViT-g (V2, K710).

    Command:  vmae2 tad thumos14_v2g --data.annotations thumos14.json --data.features FOLDER
    Note:     for th14_mae_g_16_4 as published add --data.features-are opengvlab_thumos. OpenTAD's annotations call the subsets
              training and validation: --data.subset training --data.val-subset validation.
    Hardware: no GPU has run it. Published on one GPU.
    Score:    69.6 average mAP over tIoU 0.3:0.7 (published; a reproduction has 84.07 79.45 71.96 62.06 46.09, 68.73).
    Source:   the page on detection of VideoMAE V2; configs/thumos_i3d.yaml and libs/core/config.py of ActionFormer: learning
              rate 1e-4, decay 0.05, batch 2, 5 + 30 epochs, 2304 positions, EMA 0.999, clipped at 1, drop path 0.1.
    """
    return TadConfig(
        recipe="thumos14_v2g",
        model=TadModelConfig(encoder=GIANT, patch=PATCH, num_classes=20, head=HeadConfig(drop_path=0.1)),
        data=TadDataConfig(
            subset=("Validation",), val_subset=("Test",), length=2304, keep_share=0.5, crop=(0.9, 1.0), workers=4
        ),
        loss=HeadLossConfig(normaliser_start=100),
        optim=TadOptimConfig(
            base_lr=1e-4, lr_batch=2, weight_decay=0.05, warmup_epochs=5, clip_grad=1, ema_decay=0.999
        ),
        train=TadTrainConfig(global_batch=2, micro_batch=2, epochs=35),
        detect=DetectConfig(threshold=0.001, top_k=2000, sigma=0.5, min_score=0.001, most=200),
    )


def thumos14_v2g_opentad() -> TadConfig:
    """ActionFormer's head on THUMOS14, with the settings that OpenTAD's DyFADet has for its own features of ViT-g.

    Command:  vmae2 tad thumos14_v2g_opentad --data.annotations thumos_14_anno.json --data.features FOLDER
    Note:     for videomaev2-giant_k710_16x4x1_img224_stride4_len16_interval1_thumos as published add --data.features-are
              opentad_thumos.
    Hardware: no GPU has run it.
    Score:    not published for this head (DyFADet's own: 71.70).
    Source:   configs/dyfadet/thumos_videomaev2_g.py of OpenTAD: decay 0.025, 20 epochs of warm-up, ended after 45 of 60, drop
              path 0.005, noise of 1e-5 on the features, up to 2000 detections a video.
    """
    made = thumos14_v2g()
    return made.model_copy(update={"recipe": "thumos14_v2g_opentad"}).changed(
        model={"head": HeadConfig(drop_path=0.005, input_noise=1e-5)},
        data={"subset": ("training",), "val_subset": ("validation",)},
        optim={"weight_decay": 0.025, "warmup_epochs": 20.0, "schedule_epochs": 60.0},
        train={"epochs": 45.0},
        detect={"most": 2000},
    )


def fineaction_v2g() -> TadConfig:
    """ActionFormer on FineAction, from features of ViT-g (V2, K710): actions without classes, which whole videos' scores give.

    Command:  vmae2 tad fineaction_v2g --data.annotations annotations_gt.json --data.features FOLDER
              vmae2 tad detect RUN --out FILE --video-scores new_swinB_1x1x256_views2x3_max_label_avg_prob.json
    Note:     for fineaction_mae_g as published add --data.features-are opengvlab_fineaction to the first line.
    Hardware: no GPU has run it. Published on one GPU.
    Score:    19.62 average mAP over tIoU 0.5:0.95 with those scores (published by OpenTAD; VideoMAE V2 has 18.2). Validation
              while training has no scores of videos, and measures one class.
    Source:   configs/actionformer/fineaction_videomaev2_g.py of OpenTAD: learning rate 1e-3, decay 0.05, batch 16, 5 of 15
              epochs of warm-up; videos resized to 192 positions, windows 7 7 7 7 7 -1, positions added, width 256, smoothing
              0.1, ends weighted 2, normaliser 200; sigma 0.75, 100 a video, voting 0.9, 2 classes a video.
    """
    return TadConfig(
        recipe="fineaction_v2g",
        model=TadModelConfig(
            encoder=GIANT,
            patch=PATCH,
            num_classes=1,
            head=HeadConfig(width=256, windows=(7, 7, 7, 7, 7, -1), absolute_positions=True, drop_path=0.1),
        ),
        data=TadDataConfig(
            subset=("training",),
            val_subset=("validation",),
            length=192,
            fit="resize",
            keep_share=0.5,
            crop=(0.9, 1.0),
            min_segment_share=0.01,
            val_tious=ACTIVITYNET_TIOUS,
            workers=4,
        ),
        loss=HeadLossConfig(label_smoothing=0.1, regression_weight=2, normaliser_start=200),
        optim=TadOptimConfig(
            base_lr=1e-3, lr_batch=16, weight_decay=0.05, warmup_epochs=5, clip_grad=1, ema_decay=0.999
        ),
        train=TadTrainConfig(global_batch=16, micro_batch=16, epochs=15),
        detect=DetectConfig(sigma=0.75, min_score=0.001, most=100, by_class=False, voting=0.9, external_top_k=2),
    )


def tad_desk() -> TadConfig:
    """A small head on features of a small model, for a desk: minutes on two cores.

    Command:  vmae2 tad tad_desk --data.annotations FILE --data.features FOLDER --model.num-classes C
              --model.encoder.width D
    Note:     D is the width of the features.
    Hardware: two CPU cores.
    Score:    docs/LOG.md.
    Source:   ours.
    """
    return TadConfig(
        recipe="tad_desk",
        model=TadModelConfig(
            encoder=TowerConfig(width=192, depth=12, heads=1, mlp=768),  # of which a head takes the width alone
            num_classes=20,
            head=HeadConfig(width=64, heads=4, ranges=(4, 8, 16), windows=(9,), stem=1, head_convs=1, drop_path=0.1),
        ),
        data=TadDataConfig(val_subset=("validation",), length=128, workers=0, num_frames=16, size=112),
        loss=HeadLossConfig(normaliser_start=20),
        optim=TadOptimConfig(base_lr=2e-3, lr_batch=4, warmup_epochs=2, ema_decay=0.95),
        train=TadTrainConfig(
            global_batch=4, micro_batch=4, epochs=30, validate_every=5, ds_config="cpu", precision="fp32", log_every=5
        ),
    )


TAD_RECIPES: dict[str, RecipeFn] = {
    **{recipe.__name__: recipe for recipe in (thumos14_v2g, thumos14_v2g_opentad, fineaction_v2g, tad_desk)},
    **TAD_ADAPTER_RECIPES,
}
"""Recipes by name."""
