"""A trained run that is asked what it has learnt: which checkpoint, which weights, and its objective made ready to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from vmae2_ds.checkpoint.retention import best_of
from vmae2_ds.checkpoint.save import saved_in
from vmae2_ds.checkpoint.zero_weights import open_weights, read_weights
from vmae2_ds.config.run import RunConfig
from vmae2_ds.dist import default_device
from vmae2_ds.errors import ConfigError
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.weights.layouts import StateDict
from vmae2_ds.weights.merge import merged_state

Config = TypeVar("Config", bound=RunConfig)
Objective = TypeVar("Objective", bound=nn.Module)


@dataclass(frozen=True)
class TrainedRun(Generic[Config]):
    """A run, and the weights of one of its checkpoints."""

    config: Config
    weights: StateDict
    checkpoint: Path


class RunWeights(NamedTuple):
    """What a run has learnt, as it leaves the run: low-rank adapters have become part of the weights that they stood beside."""

    run: RunConfig
    """The run's config, of a model without adapters."""
    weights: Mapping[str, Tensor]
    """Under our names, each put together when it is asked for."""
    checkpoint: Path


def weights_of_run(source: Path) -> RunWeights:
    """The weights of a run's newest whole checkpoint, or of one. Raises ConfigError or CheckpointError where there is none."""
    run, checkpoint = find_checkpoint(source)
    return RunWeights(merged_run(run), merged_state(open_weights(checkpoint), run.model), checkpoint)


def merged_run(run: RunConfig) -> RunConfig:
    """The config of a run's model as it leaves the run."""
    return run.model_copy(update={"model": run.model.merged})


def open_trained(
    source: Path, kind: type[Config], otherwise: str, mean: bool | None = None, *, best: bool = False
) -> TrainedRun[Config]:
    """The run of this `kind` that `source` means: a run, the newest run in a folder, or a checkpoint.

    Args:
        source: Where it is.
        kind: The config of its stage.
        otherwise: What is said of a run of another stage: "SOURCE is a finetune run, which ...".
        mean: Whether the running mean of its weights is taken; None: where the run keeps one.
        best: Whether its best checkpoint is taken, by `train.keep_best`, and not the newest.

    Raises ConfigError or CheckpointError.
    """
    config, checkpoint = find_checkpoint(source)
    if not isinstance(config, kind):
        raise ConfigError(f"{source} is a {config.stage} run, which {otherwise}")
    decay = getattr(config.optim, "ema_decay", 0)
    if mean and not decay:
        raise ConfigError(f"{source} keeps no running mean of its weights; leave out --weights ema")
    if best:
        checkpoint = _best(source, checkpoint, config.train.keep_best)
    return TrainedRun(config, read_weights(checkpoint, mean=bool(decay) if mean is None else mean), checkpoint)


def _best(source: Path, newest: Path, figure: str | None) -> Path:
    if figure is None:
        raise ConfigError(f"--best: {source} was trained without --train.keep-best; leave it out, or name a checkpoint")
    if source.name == newest.name:
        raise ConfigError(f"--best: {source} is one checkpoint; name its run, or leave --best out")
    best = best_of(saved_in(newest.parent), figure)
    if best is None:
        raise ConfigError(f"--best: no checkpoint of {source} has a {figure}; leave it out, or name a checkpoint")
    return newest.with_name(best.name)


def made_ready(objective: Objective, weights: StateDict, config: RunConfig) -> Objective:
    """The objective with these weights, in the precision of `config`, on this process's device."""
    model: Any = objective.model
    model.load_state_dict(weights, assign=True)  # not copied: with an encoder they are gigabytes
    if config.train.precision == "bf16":
        objective.bfloat16()
    return objective.to(default_device()).eval()
