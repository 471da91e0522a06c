"""What a run will be, from its config, the number of videos and the number of ranks: pure numbers, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from vmae2_ds.config import RunConfig
from vmae2_ds.errors import ConfigError


@dataclass(frozen=True)
class RunPlan:
    """Batch identity, length and learning rates of a run."""

    global_batch: int
    """Clips per optimizer step over all ranks."""
    micro_batch: int
    views: int
    accumulation: int
    world_size: int
    num_videos: int
    num_steps: int
    warmup_steps: int
    base_lr: float
    lr_batch: int
    peak_lr: float
    min_lr: float

    @property
    def videos_per_step(self) -> int:
        """Videos decoded per optimizer step over all ranks."""
        return self.global_batch // self.views

    @property
    def clips_per_micro_step(self) -> int:
        """Clips one device holds at a time."""
        return self.micro_batch * self.views

    @property
    def epochs(self) -> float:
        """Passes over the manifest in the whole run."""
        return self.num_steps * self.videos_per_step / self.num_videos

    def describe(self) -> list[str]:
        """Every factor of the batch and of the learning rate, a line each."""
        return [
            f"global batch {self.global_batch} clips = micro_batch {self.micro_batch} videos x accumulation "
            f"{self.accumulation} x {self.world_size} rank(s) x {self.views} view(s)",
            f"peak learning rate {self.peak_lr:.4g} = base_lr {self.base_lr:g} x ({self.global_batch} clips / "
            f"{self.views} view(s)) / {self.lr_batch}; the end is {self.min_lr:.4g}",
            f"{self.num_steps} steps ({self.warmup_steps} of warm-up) = {self.epochs:.4g} passes over "
            f"{self.num_videos} videos, {self.epochs * self.views:.4g} with views",
        ]


def plan_run(config: RunConfig, num_videos: int, world_size: int) -> RunPlan:
    """Derive and check the plan. Raises ConfigError where the batch does not divide or the manifest is too small."""
    train, views = config.train, config.data.views
    clips = train.micro_batch * world_size * views
    if train.global_batch % clips:
        lower = max(1, train.global_batch // clips) * clips
        raise ConfigError(
            f"train.global_batch={train.global_batch} is not a multiple of micro_batch={train.micro_batch} x "
            f"{world_size} rank(s) x views={views} = {clips}; try {lower} or {lower + clips}, "
            "or another train.micro_batch"
        )
    if num_videos < 1:
        raise ConfigError("the manifest lists no videos")
    videos_per_step = train.global_batch // views
    steps_per_epoch = num_videos / videos_per_step
    num_steps = train.max_steps or round(train.epochs * steps_per_epoch)
    if num_steps < 1:
        raise ConfigError(
            f"train.epochs={train.epochs:g} over {num_videos} videos is less than one step of {videos_per_step} videos; "
            "raise epochs, set train.max_steps, or lower train.global_batch"
        )
    warmup_steps = min(round(config.optim.warmup_epochs * steps_per_epoch), num_steps)
    scale = videos_per_step / config.optim.lr_batch  # views do not count (published rule, PAPER C)
    return RunPlan(
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        views=views,
        accumulation=train.global_batch // clips,
        world_size=world_size,
        num_videos=num_videos,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        base_lr=config.optim.base_lr,
        lr_batch=config.optim.lr_batch,
        peak_lr=config.optim.base_lr * scale,
        min_lr=config.optim.min_lr * scale,
    )
