"""Named runs. Each function's docstring says how to start it, on what it was run, and where its numbers come from.

Published hyper-parameters are those of the scripts of VideoMAE V2 (arXiv 2303.16727; docs/PAPER.md#pre-training-recipes), in
which epochs and batch do not count repeated sampling: 300 epochs of 4 views are the paper's 1200.
"""

from __future__ import annotations

from collections.abc import Callable

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import (
    MaskConfig,
    ObjectiveConfig,
    PretrainConfig,
    PretrainDataConfig,
    PretrainOptimConfig,
)
from vmae2_ds.config.run import TrainConfig


def _hybrid(
    name: str,
    size: str,
    *,
    gpus: int,
    epochs: float,
    warmup_epochs: float,
    base_lr: float,
    clip_grad: float = 0.0,
    checkpointing: str = "none",
    ds_config: str = "zero1",
    micro_batch: int = 32,
    ds_zero_init: bool = False,
) -> PretrainConfig:
    """The shared part: UnlabeledHybrid, 16 frames every 4th (SSv2 every 2nd), 4 views, tube 0.9, running cell 0.5."""
    views = 4
    return PretrainConfig(
        recipe=name,
        model=ModelConfig.of_size(size, checkpointing=checkpointing),
        mask=MaskConfig(encoder="tube", encoder_ratio=0.9, decoder="running_cell", decoder_ratio=0.5),
        data=PretrainDataConfig(num_frames=16, size=224, stride=4, source_strides={"ssv2": 2}, views=views),
        optim=PretrainOptimConfig(base_lr=base_lr, min_lr=1e-5, warmup_epochs=warmup_epochs, clip_grad=clip_grad),
        train=TrainConfig(
            global_batch=gpus * micro_batch * views,
            micro_batch=micro_batch,
            epochs=epochs,
            epoch_steps="whole",
            ds_config=ds_config,
            ds_zero_init=ds_zero_init,
        ),
    )


def vit_s_pretrain_hybrid() -> PretrainConfig:
    """ViT-S on the hybrid set, 800 effective epochs.

    Command:  deepspeed --hostfile hostfiles/eight_8x8 --module vmae2_ds pretrain vit_s_pretrain_hybrid
              --data.manifest L --train.micro-batch 16
    Note:     for 64 GPUs; on the published 32 leave --train.micro-batch out.
    Hardware: 32 GPUs x 32 videos x 4 views. Time and score: not measured by us, and none is published.
    Source:   no ViT-S script was published; these are ViT-B's numbers with ViT-S's shape.
    """
    return _hybrid("vit_s_pretrain_hybrid", "small", gpus=32, epochs=200, warmup_epochs=20, base_lr=1e-3)


def vit_b_pretrain_hybrid() -> PretrainConfig:
    """ViT-B on the hybrid set, 800 effective epochs, peak learning rate 4e-3.

    Command:  deepspeed --hostfile hostfiles/eight_8x8 --module vmae2_ds pretrain vit_b_pretrain_hybrid
              --data.manifest L --train.micro-batch 16
    Note:     for 64 GPUs; on the published 32 leave --train.micro-batch out.
    Hardware: published on 32 GPUs x 32 videos x 4 views. Time: not published for this set.
    Score:    fine-tuned K400 81.5 %, SSv2 71.2 % (published model zoos).
    Source:   scripts/pretrain/vit_b_hybrid_pt.sh of VideoMAE V2.
    """
    return _hybrid("vit_b_pretrain_hybrid", "base", gpus=32, epochs=200, warmup_epochs=20, base_lr=1e-3)


def vit_l_pretrain_hybrid() -> PretrainConfig:
    """ViT-L on the hybrid set, 1200 effective epochs, peak learning rate 6e-3.

    Command:  deepspeed --hostfile hostfiles/eight_8x8 --module vmae2_ds pretrain vit_l_pretrain_hybrid
              --data.manifest L --train.micro-batch 24
    Note:     for 64 GPUs; on the published 48 leave --train.micro-batch out.
    Hardware: published on 48 GPUs x 32 videos x 4 views. Time: not published.
    Source:   scripts/pretrain of VideoMAE V2.
    """
    return _hybrid("vit_l_pretrain_hybrid", "large", gpus=48, epochs=300, warmup_epochs=30, base_lr=1e-3)


def vit_h_pretrain_hybrid() -> PretrainConfig:
    """ViT-H on the hybrid set, 1200 effective epochs, peak learning rate 8e-3, activation checkpointing.

    Command:  deepspeed --hostfile hostfiles/eight_8x8 --module vmae2_ds pretrain vit_h_pretrain_hybrid --data.manifest L
    Hardware: published on 64 GPUs x 32 videos x 4 views. Time: not published.
    Score:    fine-tuned K400 86.9 %, SSv2 76.8 % (published).
    Source:   scripts/pretrain of VideoMAE V2.
    """
    return _hybrid(
        "vit_h_pretrain_hybrid", "huge", gpus=64, epochs=300, warmup_epochs=30, base_lr=1e-3, checkpointing="all"
    )


def vit_g_pretrain_hybrid() -> PretrainConfig:
    """ViT-g on the hybrid set, 1200 effective epochs, peak learning rate 4.8e-3, clipping at 0.02, checkpointing.

    Command:  deepspeed --hostfile hostfiles/eight_8x8 --module vmae2_ds pretrain vit_g_pretrain_hybrid --data.manifest L
    Hardware: published on 64 A100-80GB x 32 videos x 4 views. Time: 241 h (paper, Table 2).
    Score:    fine-tuned K400 87.2 %, SSv2 77.0 % (published).
    Source:   scripts/pretrain/vit_g_hybrid_pt.sh of VideoMAE V2.
    """
    return _hybrid(
        "vit_g_pretrain_hybrid",
        "giant",
        gpus=64,
        epochs=300,
        warmup_epochs=30,
        base_lr=6e-4,
        clip_grad=0.02,
        checkpointing="all",
    )


def vit_6b_pretrain_plan() -> PretrainConfig:
    """A 6-billion encoder for planning: nobody has published such a run, so its schedule is a guess.

    Command:  deepspeed --hostfile H --module vmae2_ds pretrain vit_6b_pretrain_plan --data.manifest L
    Hardware: planned for 256 GPUs x 8 videos x 4 views with ZeRO-3. Time and score: unknown.
    Source:   the encoder has the shape of InternVideo2-6B (arXiv 2403.15377), decoder and schedule are ViT-g's.
    """
    return _hybrid(
        "vit_6b_pretrain_plan",
        "6b",
        gpus=256,
        epochs=300,
        warmup_epochs=30,
        base_lr=6e-4,
        clip_grad=0.02,
        checkpointing="all",
        ds_config="zero3",
        ds_zero_init=True,
        micro_batch=8,
    )


def vit_ti_pretrain_desk() -> PretrainConfig:
    """ViT-Ti on 16 frames of 64x64 with 8-pixel cubes: minutes on two CPU cores, for trying everything out.

    Command:  deepspeed --num_accelerators 2 --module vmae2_ds pretrain vit_ti_pretrain_desk --data.manifest L
    Hardware: 2 CPU cores, about half an hour for 300 clips (docs/DESK.md has the curve).
    Source:   ours. Frames spread over the video and small cubes are what helped at this size.
    """
    return PretrainConfig(
        recipe="vit_ti_pretrain_desk",
        model=ModelConfig.of_size("tiny", patch=8),
        mask=MaskConfig(),
        objective=ObjectiveConfig(),
        data=PretrainDataConfig(
            num_frames=16, size=64, sampling="spread", views=4, workers=1, min_frames=8, crop_scales=(1.0, 0.875, 0.75)
        ),
        optim=PretrainOptimConfig(base_lr=3.2e-2, min_lr=1e-4, warmup_epochs=3, clip_grad=1.0),
        train=TrainConfig(
            global_batch=32, micro_batch=4, epochs=36, ds_config="cpu", save_every=250, log_every=10, keep=2
        ),
    )


def vit_ti_pretrain_quickstart() -> PretrainConfig:
    """What `make quickstart` trains: a part of ViT-Ti on 8 frames of 48x48, which learns to fill in a moving shape in minutes.

    Command:  vmae2 data synth DIR --look plain --size 64 --frames 16 --train-videos 512 --val-videos 48
              deepspeed --num_accelerators 2 --module vmae2_ds pretrain vit_ti_pretrain_quickstart --data.manifest DIR/train.csv
    Hardware: 2 CPU cores, about 7 minutes. Score: error on hidden cubes of unseen videos, in docs/LOG.md#the-quickstart.
    Source:   ours. Muon at a high rate leaves the plateau of the background's colour within minutes, AdamW does not.
    """
    return PretrainConfig(
        recipe="vit_ti_pretrain_quickstart",
        model=ModelConfig(
            encoder=TowerConfig(width=128, depth=3, heads=4, mlp=512),
            decoder=TowerConfig(width=128, depth=3, heads=4, mlp=512),
            patch=8,
        ),
        mask=MaskConfig(encoder="tube", encoder_ratio=0.5, decoder="running_cell", decoder_ratio=0.5),
        objective=ObjectiveConfig(target="pixels"),
        data=PretrainDataConfig(
            num_frames=8, size=48, sampling="spread", views=1, workers=1, min_frames=8, crop_scales=(1.0,), flip=0.5
        ),
        optim=PretrainOptimConfig(
            optimizer="muon", muon_rate=4, base_lr=8e-3, min_lr=1e-4, lr_batch=32, warmup_epochs=4, clip_grad=1.0
        ),
        train=TrainConfig(global_batch=32, micro_batch=16, epochs=62.5, ds_config="cpu", save_every=250, log_every=20),
    )


def _continued(
    name: str, size: str, *, base_lr: float, layer_decay: float, micro_batch: int, clip_grad: float = 0.0
) -> PretrainConfig:
    """The shared part: a quarter of the published rate, which random weights need and trained ones do not; 5 of 100 passes of
    warm-up, in which AdamW's moments form; 64 videos x 4 views a step, so that some thousand videos still give many steps. A
    twentieth of the videos is held back: a small set is learned by heart before anybody notices."""
    return PretrainConfig(
        recipe=name,
        model=ModelConfig.of_size(size, checkpointing="all" if size == "giant" else "none"),
        mask=MaskConfig(encoder="tube", encoder_ratio=0.9, decoder="running_cell", decoder_ratio=0.5),
        data=PretrainDataConfig(num_frames=16, size=224, stride=4, views=4, hold_back=0.05),
        optim=PretrainOptimConfig(
            base_lr=base_lr, min_lr=base_lr / 100, warmup_epochs=5, layer_decay=layer_decay, clip_grad=clip_grad
        ),
        train=TrainConfig(
            global_batch=256, micro_batch=micro_batch, epochs=100, validate_every=5, keep_best="val_loss"
        ),
    )


def vit_s_continue() -> PretrainConfig:
    """ViT-S goes on from weights that are there, on your own videos.

    Command:  vmae2 pretrain vit_s_continue --train.init FILE_OR_RUN --data.manifest L
    Note:     from an encoder alone add --optim.freeze-encoder-steps N, about as many as the warm-up has.
    Hardware: one GPU, or 2 or 4; no GPU has run it. Time: see `vmae2 plan vit_s_continue --videos N`. Score: unknown.
    Source:   ours; nobody has published such a recipe. Masks and clips are the published ones, rate and length are guesses.
    """
    return _continued("vit_s_continue", "small", base_lr=2.5e-4, layer_decay=0.8, micro_batch=16)


def vit_b_continue() -> PretrainConfig:
    """ViT-B goes on from weights that are there, on your own videos.

    Command:  vmae2 pretrain vit_b_continue --train.init FILE_OR_RUN --data.manifest L
    Note:     from an encoder alone add --optim.freeze-encoder-steps N, about as many as the warm-up has.
    Hardware: one GPU, or 2 or 4; no GPU has run it. Time: see `vmae2 plan vit_b_continue --videos N`. Score: unknown.
    Source:   ours; nobody has published such a recipe. Masks and clips are the published ones, rate and length are guesses.
    """
    return _continued("vit_b_continue", "base", base_lr=2.5e-4, layer_decay=0.85, micro_batch=16)


def vit_l_continue() -> PretrainConfig:
    """ViT-L goes on from weights that are there, on your own videos.

    Command:  deepspeed --num_accelerators 4 --module vmae2_ds pretrain vit_l_continue
              --train.init FILE_OR_RUN --data.manifest L
    Note:     from an encoder alone add --optim.freeze-encoder-steps N, about as many as the warm-up has.
    Hardware: one to 8 GPUs; no GPU has run it. Time: see `vmae2 plan vit_l_continue --videos N`. Score: unknown.
    Source:   ours; nobody has published such a recipe. Masks and clips are the published ones, rate and length are guesses.
    """
    return _continued("vit_l_continue", "large", base_lr=2.5e-4, layer_decay=0.9, micro_batch=8)


def vit_g_continue() -> PretrainConfig:
    """ViT-g goes on from weights that are there, on your own videos.

    Command:  deepspeed --num_accelerators 8 --module vmae2_ds pretrain vit_g_continue
              --train.init FILE_OR_RUN --data.manifest L
    Note:     from an encoder alone add --optim.freeze-encoder-steps N, about as many as the warm-up has.
    Hardware: one to 8 GPUs; no GPU has run it. Time: see `vmae2 plan vit_g_continue --videos N`. Score: unknown.
    Source:   ours; nobody has published such a recipe. Masks, clips and clipping are the published ones, rate and length are
              guesses.
    """
    return _continued("vit_g_continue", "giant", base_lr=1.5e-4, layer_decay=0.95, micro_batch=8, clip_grad=0.02)


def vit_ti_continue_desk() -> PretrainConfig:
    """ViT-Ti goes on from weights of vit_ti_pretrain_desk: minutes on two CPU cores, for trying it out.

    Command:  vmae2 pretrain vit_ti_continue_desk --train.init RUN --data.manifest L
    Hardware: CPU cores. Time and score: not measured.
    Source:   ours: vit_ti_pretrain_desk with a quarter of its rate.
    """
    desk = vit_ti_pretrain_desk().model_copy(update={"recipe": "vit_ti_continue_desk"})
    return desk.changed(
        optim={"base_lr": 8e-3, "min_lr": 8e-5, "warmup_epochs": 1, "layer_decay": 0.9},
        data={"hold_back": 0.05},
        train={"validate_every": 2, "keep_best": "val_loss"},
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        vit_ti_pretrain_desk,
        vit_ti_pretrain_quickstart,
        vit_s_pretrain_hybrid,
        vit_b_pretrain_hybrid,
        vit_l_pretrain_hybrid,
        vit_h_pretrain_hybrid,
        vit_g_pretrain_hybrid,
        vit_6b_pretrain_plan,
        vit_ti_continue_desk,
        vit_s_continue,
        vit_b_continue,
        vit_l_continue,
        vit_g_continue,
    )
}
"""Recipe functions by name."""
