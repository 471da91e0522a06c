"""What a run will be, from its config, the number of videos and the number of ranks: pure numbers, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from vmae2_ds.config.run import DecayShape, RunConfig
from vmae2_ds.console.progress import counted
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
    steps_per_epoch: float
    """Optimizer steps in one pass over the manifest, as `train.epoch_steps` counts them."""
    num_steps: int
    warmup_steps: int
    base_lr: float
    lr_batch: int
    peak_lr: float
    min_lr: float
    schedule_steps: int | None = None
    """Steps of the learning rate's schedule, where it is longer than the run."""
    decay_steps: int | None = None
    """The last steps, in which the rate falls from the peak that it kept since the warm-up; None: a cosine falls all along."""
    decay_shape: DecayShape = "linear"
    first_step: int = 0
    """Steps done before, by the run that this one branches off."""
    frozen_steps: int = 0
    """First steps in which the encoder does not learn."""

    @property
    def own_steps(self) -> int:
        """Steps that this run makes, from its own first one to its last."""
        return self.num_steps - self.first_step

    @property
    def own_frozen_steps(self) -> int:
        """Steps of this run in which the encoder does not learn."""
        return max(0, min(self.frozen_steps, self.num_steps) - self.first_step)

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
        return self.epochs_at(self.num_steps)

    def epochs_at(self, step: int) -> float:
        """Passes over the manifest in the first `step` steps."""
        return step * self.videos_per_step / self.num_videos

    def describe(self) -> list[str]:
        """Every factor of the batch and of the learning rate, a line each."""
        return [
            f"global batch {counted(self.global_batch, 'clip')} = micro_batch {counted(self.micro_batch, 'video')} x "
            f"accumulation {self.accumulation} x {counted(self.world_size, 'rank')} x {counted(self.views, 'view')}",
            f"peak learning rate {self.peak_lr:.4g} = base_lr {self.base_lr:g} x ({counted(self.global_batch, 'clip')} / "
            f"{counted(self.views, 'view')}) / {self.lr_batch}; the end is {self.min_lr:.4g}"
            + (f", at step {self.schedule_steps}, behind the run's" if self.schedule_steps else ""),
            *self._schedule(),
            *self._frozen(),
            f"{counted(self.num_steps, 'step')} ({self.warmup_steps} of warm-up) = "
            f"{counted(self.epochs, 'pass', 'passes')} over {counted(self.num_videos, 'video')}, "
            f"{self.epochs * self.views:.4g} with views",
        ]

    def _schedule(self) -> list[str]:
        """What a rate does that is constant after its warm-up."""
        if self.decay_steps is None:
            return []
        falls = (
            f"falls from step {self.num_steps - self.decay_steps} to {self.num_steps} ({self.decay_shape})"
            if self.decay_steps
            else "stays there to the end (no --optim.decay)"
        )
        if self.first_step:
            return [f"a cooldown from step {self.first_step} of another run: the rate {falls}"]
        return [f"warm-up, stable, decay: the rate reaches its peak at step {self.warmup_steps} and {falls}"]

    def _frozen(self) -> list[str]:
        """What an encoder does that is frozen at first."""
        if not self.own_frozen_steps:
            return []
        rises = (
            f"; then its rate rises from 0 over {self.warmup_steps} steps of its own" if self.warmup_steps > 1 else ""
        )
        return [f"the encoder is frozen up to step {self.frozen_steps}, the decoder learns alone{rises}"]

    def warnings(self) -> list[str]:
        """What is allowed and hardly ever meant, each with a way out."""
        found = []
        if self.frozen_steps >= self.num_steps:
            found.append(
                f"the encoder is frozen for {self.frozen_steps} steps, and the run has {self.num_steps}: it never learns; "
                "lower --optim.freeze-encoder-steps"
            )
        if 2 * self.warmup_steps > self.num_steps and not self.first_step:
            share = self.num_steps / 10 / self.steps_per_epoch
            found.append(
                f"{self.warmup_steps} of {counted(self.num_steps, 'step')} are warm-up, in which the learning rate only rises "
                f"from 0; for a tenth of them set --optim.warmup-epochs {share:.2g}"
            )
        if self.videos_per_step > self.num_videos:
            found.append(
                f"a step of {self.videos_per_step} videos is larger than the list of {self.num_videos}: it has each video "
                f"{self.videos_per_step / self.num_videos:.3g} times; lower --train.global-batch, or list more videos"
            )
        return found

    def lines(self) -> list[str]:
        """`describe` and `warnings` together, to print."""
        return [*self.describe(), *(f"warning: {warning}" for warning in self.warnings())]


def plan_run(config: RunConfig, num_videos: int, world_size: int) -> RunPlan:
    """Derive and check the plan. Raises ConfigError where the batch does not divide or the manifest is too small."""
    train, views = config.train, config.data.views
    clips = train.micro_batch * world_size * views
    if train.global_batch % clips:
        lower = max(1, train.global_batch // clips) * clips
        raise ConfigError(
            f"--train.global-batch {train.global_batch} is not a multiple of micro_batch={train.micro_batch} x "
            f"{counted(world_size, 'rank')} x views={views} = {clips}; try {lower} or {lower + clips}, "
            "or another --train.micro-batch"
        )
    if num_videos < 1:
        raise ConfigError("the manifest lists no videos")
    videos_per_step = train.global_batch // views
    steps_per_epoch = _steps_per_epoch(config, num_videos, videos_per_step)
    decay_steps, first_step = _decay_steps(config, steps_per_epoch), train.branch_step
    if train.branch is not None:
        num_steps = first_step + (decay_steps or 0)
    else:
        num_steps = train.max_steps or round(train.epochs * steps_per_epoch)
    if num_steps < 1:
        raise ConfigError(
            f"--train.epochs {train.epochs:g} over {num_videos} videos is less than one step of {videos_per_step} videos; "
            "raise epochs, set --train.max-steps, or lower --train.global-batch"
        )
    schedule_steps = None
    if config.optim.schedule_epochs is not None:
        schedule_steps = round(config.optim.schedule_epochs * steps_per_epoch)
        if schedule_steps < num_steps:
            raise ConfigError(
                f"--optim.schedule-epochs {config.optim.schedule_epochs:g} is {counted(schedule_steps, 'step')}, and the run "
                f"has {num_steps}: a schedule may be longer than its run, not shorter"
            )
    warmup_steps = min(round(config.optim.warmup_epochs * steps_per_epoch), num_steps)
    left = num_steps - warmup_steps
    if decay_steps is not None and train.branch is None and decay_steps > left + 1:  # each is rounded by itself
        raise ConfigError(
            f"--optim.decay {config.optim.decay:g} is {counted(decay_steps, 'step')}, and {left} of the run's {num_steps} are "
            f"left after {warmup_steps} of warm-up; shorten the decay, or make the run longer"
        )
    scale = videos_per_step / config.optim.lr_batch  # views do not count (published: docs/PAPER.md#learning-rate)
    return RunPlan(
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        views=views,
        accumulation=train.global_batch // clips,
        world_size=world_size,
        num_videos=num_videos,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        schedule_steps=schedule_steps,
        decay_steps=decay_steps if decay_steps is None else min(decay_steps, left),
        decay_shape=config.optim.decay_shape,
        first_step=first_step,
        frozen_steps=config.frozen_steps,
        base_lr=config.optim.base_lr,
        lr_batch=config.optim.lr_batch,
        peak_lr=config.optim.base_lr * scale,
        min_lr=config.optim.min_lr * scale,
    )


def _decay_steps(config: RunConfig, steps_per_epoch: float) -> int | None:
    """Steps in which a rate falls that is constant before; None for a cosine. Raises ConfigError for what is neither."""
    optim, branch = config.optim, config.train.branch
    if optim.schedule == "cosine" and branch is None:
        if optim.decay:
            raise ConfigError(
                f"--optim.decay {optim.decay:g} is the end of a constant rate, and --optim.schedule cosine falls all along; "
                "add --optim.schedule wsd, or leave the decay out"
            )
        return None
    if optim.schedule_epochs is not None:
        raise ConfigError(
            f"--optim.schedule-epochs {optim.schedule_epochs:g} is the length of a cosine, and this run's rate is constant up "
            "to --optim.decay; leave it out"
        )
    steps = round(optim.decay * steps_per_epoch)
    if branch is not None and steps < 1:
        raise ConfigError(
            f"--train.branch {branch} needs --optim.decay, the length of its cooldown in passes over the data: "
            f"{optim.decay:g} of them are no step; one step is {1 / steps_per_epoch:.2g}"
        )
    return steps


def _steps_per_epoch(config: RunConfig, num_videos: int, videos_per_step: int) -> float:
    """Steps of a pass, exact or as published (run_mae_pretraining.py: `len(dataset_train) // total_batch_size`).

    It counts steps alone: our order of the videos goes on over the end of a pass, where theirs drops the last ones.
    """
    if config.train.epoch_steps == "whole" and num_videos >= videos_per_step:
        return num_videos // videos_per_step
    return num_videos / videos_per_step
