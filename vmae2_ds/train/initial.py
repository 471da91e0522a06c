"""Where a run's first weights come from: another run by its folder, or a file of any known key layout."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from vmae2_ds.config import ClassifierConfig, EncoderConfig, ModelConfig, PretrainConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.finetune_config import FinetuneConfig, LabelledDataConfig
from vmae2_ds.model.layouts import State, best_reading, our_shapes, some
from vmae2_ds.model.published import model_of, named, read_published
from vmae2_ds.train.runs import AnyRun, find_checkpoint, read_run_config
from vmae2_ds.train.zero_weights import read_weights

log = logging.getLogger(__name__)

HEAD = ("head.weight", "head.bias")


class LoadReport(NamedTuple):
    """What became of a checkpoint's tensors."""

    used: tuple[str, ...]
    new: tuple[str, ...]
    """Of the model, not in the checkpoint, or there in another shape: drawn from the seed."""
    dropped: tuple[str, ...]
    """In the checkpoint, without a place in the model."""

    def __str__(self) -> str:
        new = f" ({some(self.new)})" if self.new else ""
        dropped = f" ({some(self.dropped)})" if self.dropped else ""
        return f"{len(self.used)} tensors used, {len(self.new)} drawn anew{new}, {len(self.dropped)} dropped{dropped}"


def initial_weights(config: AnyRun) -> State:
    """What `train.init` has for the run's model, under our names; nothing where it is not set. Logs the report.

    Raises:
        CheckpointError: it cannot be read, or lacks a part of the encoder; for pre-training also of the decoder.
        ConfigError: a head map that does not fit.
    """
    if config.train.init is None:
        return {}
    head_map = None
    if isinstance(config, FinetuneConfig) and config.train.head_map is not None:
        head_map = read_head_map(config.train.head_map, config.model.num_classes)
    weights, report = load_for(config.train.init, config.model, head_map)
    log.info("%s: %s", config.train.init, report)
    if (other := _other_clip(config)) is not None:
        log.info("%s: %s", config.train.init, other)
    return weights


def _other_clip(config: AnyRun) -> str | None:
    """What becomes of positions where the run that the weights come from had other clips; None where nothing does."""
    if config.train.init is None or not config.train.init.is_dir() or config.model.positions_from is not None:
        return None
    before, now = find_checkpoint(config.train.init)[0].data, config.data
    if (before.num_frames, before.size) == (now.num_frames, now.size):
        return None
    return (
        f"its clips had {before.num_frames} frames of {before.size}, these have {now.num_frames} of {now.size}: positions are "
        f"rebuilt, as published; --model.positions-from {before.num_frames} {before.size} interpolates them instead"
    )


def load_for(source: Path, config: EncoderConfig, head_map: list[int] | None = None) -> tuple[State, LoadReport]:
    """The tensors of a run or of a file that fit this model.

    Args:
        head_map: for each class of the model, the class of the checkpoint's head that it takes over.

    Raises CheckpointError as `initial_weights`, ConfigError for a head map that the head does not have.
    """
    shapes = our_shapes(config)
    if source.is_dir():
        found = read_weights(find_checkpoint(source)[1])
        reading = f"it is a run of {len(found)} tensors"
        unused = [name for name in found if name not in shapes]
    else:
        state = read_published(source)
        with named(source):
            read = best_reading(state, config)
        found, unused = read.state, list(read.unused)
        reading = read.describe()
    if head_map is not None:
        found = found | mapped_head(found, head_map, source)
    used = {name: found[name] for name, shape in shapes.items() if name in found and tuple(found[name].shape) == shape}
    new = [name for name in shapes if name not in used]
    needed = [name for name in new if isinstance(config, ModelConfig) or name.startswith("encoder.")]
    if needed:
        other = [f"{name} {tuple(found[name].shape)}, not {shapes[name]}" for name in needed if name in found]
        detail = f"{len(other)} of another shape: {some(other)}; " if other else ""
        raise CheckpointError(
            f"{source} does not fit this model: {len(needed)} of the {len(shapes)} tensors are not there as needed; "
            f"{detail}{reading}"
        )
    dropped = [*unused, *(name for name in found if name in shapes and name not in used)]
    return used, LoadReport(tuple(used), tuple(new), tuple(dropped))


class OpenedModel(NamedTuple):
    """A trained model, whole."""

    run: AnyRun
    """Its run's config; for a file without a run, the model in a config of its kind, whose clips are the published ones."""
    weights: State
    """On the host, under our names."""
    checkpoint: Path


def open_model(source: Path, data: LabelledDataConfig | None = None) -> OpenedModel:
    """The model of a run (its newest whole checkpoint), of one checkpoint, or of a file of any known key layout.

    `data`: the clips of a classifier whose file does not say them.

    Raises ConfigError or CheckpointError where there is none, or a part of it is missing.
    """
    if source.is_dir():
        run, checkpoint = find_checkpoint(source)
        return OpenedModel(run, read_weights(checkpoint), checkpoint)
    if (source.parent / "run.json").is_file():  # a run's own mean of the weights
        run = read_run_config(source.parent)
    else:
        model = model_of(source)
        run = (
            FinetuneConfig(model=model, data=data or LabelledDataConfig())
            if isinstance(model, ClassifierConfig)
            else PretrainConfig(model=model)
        )
    weights, report = load_for(source, run.model)
    if report.new:
        raise CheckpointError(f"{source} does not hold the whole model: {report}")
    return OpenedModel(run, weights, source)


def read_head_map(file: Path, num_classes: int, setting: str = "train.head_map") -> list[int]:
    """A JSON list: for each class, a class of another head (`vmae2 data merge-kinetics` writes them). Raises ConfigError."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}={file}: {error}") from None
    if not isinstance(found, list) or not all(isinstance(x, int) and x >= 0 for x in found):
        raise ConfigError(f"{setting}={file}: a head map is a JSON list of class numbers")
    if len(found) != num_classes:
        raise ConfigError(f"{setting}={file} names {len(found)} classes, and model.num_classes={num_classes}")
    return found


def mapped_head(found: State, head_map: list[int], source: Path, setting: str = "train.head_map") -> State:
    """The head of `found`, class by class as the map says. Raises ConfigError where it has no such head."""
    if any(name not in found for name in HEAD):
        raise ConfigError(f"{setting} is set, but {source} has no head; leave it out")
    if max(head_map) >= len(found["head.bias"]):
        raise ConfigError(
            f"{setting} asks for class {max(head_map)}, and the head of {source} has {len(found['head.bias'])} classes"
        )
    return {name: found[name][torch.tensor(head_map)] for name in HEAD}
