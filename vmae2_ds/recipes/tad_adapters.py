"""Named runs of temporal action detection end to end: adapters in a frozen encoder, as published for THUMOS14, and a desk's.

Settings are those of AdaTAD's configurations (docs/PAPER.md#temporal-adapters), every one of which starts from fine-tuned
weights: `--train.init`. No GPU has run any of them here. What is not as published, in all of them: crops without imgaug's and
colour augmentation, vectors and biases of adapters without weight decay, positions interpolated trilinearly, bf16 for amp,
2000 candidates from each level of the pyramid instead of from all together.
"""

from __future__ import annotations

from typing import NamedTuple

from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.model import SIZES, SizeName
from vmae2_ds.config.stages import RecipeFn
from vmae2_ds.config.tad import TadConfig, TadDataConfig, TadModelConfig, TadOptimConfig, TadTrainConfig
from vmae2_ds.config.tad_head import DetectConfig, HeadConfig, HeadLossConfig


class PublishedAdapters(NamedTuple):
    """One of OpenTAD's configurations, configs/adatad/thumos."""

    name: str
    size: SizeName
    score: str
    """Mean of mAP at tIoU 0.3 to 0.7."""
    start: str
    """The published first weights."""
    source: str
    """The file, and where we differ from it."""
    lr_scale: float = 1.0
    pixels: int = 160
    frames_per_position: int = 1
    last_half: bool = False
    epochs: float = 60

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return 768 * self.frames_per_position

    def describe(self) -> str:
        """Command, hardware, score and source."""
        where = "the last half of" if self.last_half else "all"
        return (
            f"AdaTAD on THUMOS14: adapters behind {where} blocks of the {self.size} encoder, windows of {self.frames} frames "
            f"of {self.pixels} pixels.\n\n"
            f"Command:  deepspeed --num_accelerators 2 --module vmae2_ds tad {self.name} --data.annotations FILE "
            "--data.videos FOLDER --train.init W\n"
            f"Note:     W is {self.start}.\n"
            "Hardware: published on 2 GPUs, a window each. No GPU has run it here.\n"
            f"Score:    {self.score} average mAP at tIoU 0.3 to 0.7 (OpenTAD's README).\n"
            f"Source:   {self.source} of OpenTAD (docs/PAPER.md#temporal-adapters). Its soft suppression, sigma 0.7, lowers "
            "scores less than ActionFormer's 0.5."
        )

    def build(self) -> TadConfig:
        """Every 4th frame of the video for each of 768 positions; with two frames a position every 2nd."""
        encoder, _, patch = SIZES[self.size]
        return TadConfig(
            recipe=self.name,
            model=TadModelConfig(
                encoder=encoder,
                patch=patch,
                num_classes=20,
                drop_path=0.1,
                positions_from=(16, 224),
                head=HeadConfig(windows=(-1,)),
                adapters=AdapterConfig(blocks="last_half" if self.last_half else "all", lr_scale=self.lr_scale),
            ),
            data=TadDataConfig(
                subset=("training",),
                val_subset=("validation",),
                num_frames=16,
                size=self.pixels // patch * patch,
                stride=4 // self.frames_per_position,
                frames_per_position=self.frames_per_position,
                length=768,
                fit="windows",
                overlap=0.5,
                keep_share=0.75,
                workers=4,
                prefetch=1,
                read_timeout_s=120,
            ),
            optim=TadOptimConfig(base_lr=1e-4, lr_batch=2, warmup_epochs=5, schedule_epochs=100),
            train=TadTrainConfig(global_batch=2, micro_batch=1, epochs=self.epochs, validate_every=2),
            detect=DetectConfig(sigma=0.7, most=2000),
        )


V1 = "VideoMAE V1 fine-tuned on Kinetics-400"
V2 = "VideoMAE V2 g fine-tuned on K710"
SEEN = "whose 160 pixels are 11 cells of 14, 6 pixels unseen: here 154 pixels"

PUBLISHED = (
    PublishedAdapters(
        "thumos14_adatad_s", "small", "69.03", V1, "e2e_thumos_videomae_s_768x1_160_adapter.py", lr_scale=2.0
    ),
    PublishedAdapters("thumos14_adatad_b", "base", "71.14", V1, "e2e_thumos_videomae_b_768x1_160_adapter.py"),
    PublishedAdapters("thumos14_adatad_l", "large", "73.51", V1, "e2e_thumos_videomae_l_768x1_160_adapter.py"),
    PublishedAdapters(
        "thumos14_adatad_g", "giant", "75.06", V2, f"e2e_thumos_videomaev2_g_768x1_160_adapter.py, {SEEN},"
    ),
    PublishedAdapters(
        "thumos14_adatad_g_1536",
        "giant",
        "77.07",
        V2,
        "e2e_thumos_videomaev2_g_768x2_224_adapter.py, which has the adapters' rate of S by inheriting it,",
        lr_scale=2.0,
        pixels=224,
        frames_per_position=2,
        last_half=True,
        epochs=50,
    ),
)


def _recipe(run: PublishedAdapters) -> RecipeFn:
    def build() -> TadConfig:
        return run.build()

    build.__name__, build.__doc__ = run.name, run.describe()
    return build


def tad_adapters_desk() -> TadConfig:
    """ViT-Ti of any desk recipe on 16 frames of 64x64 with 8-pixel cubes, adapters behind its last half: two CPU cores.

    Command:  vmae2 tad tad_adapters_desk --data.annotations FILE --data.videos FOLDER --train.init runs/vit_ti_finetune_desk
    Hardware: 2 CPU cores.
    Score:    not published.
    Source:   ours: thumos14_adatad_s with a small head, windows of 128 positions and rates for a short run.
    """
    encoder, _, _ = SIZES["tiny"]
    return TadConfig(
        recipe="tad_adapters_desk",
        model=TadModelConfig(
            encoder=encoder,
            patch=8,
            num_classes=20,
            head=HeadConfig(width=64, ranges=(4, 8, 16), drop_path=0.0),
            adapters=AdapterConfig(blocks="last_half", clips_at_once=4),
        ),
        data=TadDataConfig(
            val_subset=("validation",), num_frames=16, size=64, stride=4, length=128, fit="windows", keep_share=0.75,
            crop_area=(0.5, 1.0), flip=0.0, workers=1,
        ),
        loss=HeadLossConfig(normaliser_start=20),
        optim=TadOptimConfig(base_lr=1e-3, lr_batch=2, warmup_epochs=2, ema_decay=0.9),
        train=TadTrainConfig(
            global_batch=2, micro_batch=1, epochs=20, ds_config="cpu", precision="fp32", validate_every=5, log_every=5
        ),
    )  # fmt: skip


TAD_ADAPTER_RECIPES: dict[str, RecipeFn] = {
    **{run.name: _recipe(run) for run in PUBLISHED},
    "tad_adapters_desk": tad_adapters_desk,
}
"""Recipes by name."""
