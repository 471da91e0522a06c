"""Which model and which weights a SOURCE means: a run by its folder, a checkpoint, or a file of any known key layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import ValidationError

from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.finetune import FinetuneConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.config.pretrain import ObjectiveConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import DataConfig, RunConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.config.tad import TadModelConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.data.sources.class_names import read_class_names
from vmae2_ds.dist import default_device
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.objectives import Classify
from vmae2_ds.runs.folder import NAMES, find_checkpoint
from vmae2_ds.runs.trained import merged_run, weights_of_run
from vmae2_ds.weights.about import CLIP_FIELDS, AboutWeights, read_about
from vmae2_ds.weights.adapters import from_opentad
from vmae2_ds.weights.files import named, read_published
from vmae2_ds.weights.layouts import StateDict, depth_of, guess_layout, our_shapes, some
from vmae2_ds.weights.source import FoundWeights, find_weights
from vmae2_ds.weights.transformers_folder import is_weights_folder, weights_in

log = logging.getLogger(__name__)

HEAD = ("head.weight", "head.bias")
DECODER = ("bridge.", "decoder.")
Data = TypeVar("Data", bound=DataConfig)


class LoadReport(NamedTuple):
    """Which of a checkpoint's tensors were used, and which of the model's were not in it."""

    used: tuple[str, ...]
    new: tuple[str, ...]
    """Names of the model's tensors that the checkpoint lacks, or has in another shape: drawn from the seed."""
    dropped: tuple[str, ...]
    """Names of the checkpoint's tensors that have no place in the model."""

    def __str__(self) -> str:
        new = f" ({some(self.new)})" if self.new else ""
        dropped = f" ({some(self.dropped)})" if self.dropped else ""
        return f"{len(self.used)} tensors used, {len(self.new)} newly drawn{new}, {len(self.dropped)} dropped{dropped}"


def about_source(source: Path) -> AboutWeights:
    """What a run or a file says beside its weights."""
    if is_run(source):
        return about_run(find_checkpoint(source)[0])
    return read_about(source) if source.is_file() else find_weights(source).about


def is_run(source: Path) -> bool:
    """Whether it is a run, a checkpoint of one or a folder of runs, and no weights that lie by themselves."""
    return source.is_dir() and not is_weights_folder(source)


def load_for(
    source: Path, config: EncoderConfig, head_map: list[int] | None = None, *, new_decoder: bool = False
) -> tuple[StateDict, LoadReport]:
    """The tensors of a run or of a file that fit this model. An encoder alone does for pre-training too.

    Args:
        head_map: for each class of the model, the class of the checkpoint's head that it takes over.
        new_decoder: leave out what it has of a decoder.

    Raises CheckpointError where it cannot be read, lacks a part of the encoder, has blocks that the model has not, or a decoder
    that does not fit; ConfigError for a head map that the head does not have.
    """
    config = config.merged  # adapters are always drawn
    shapes = our_shapes(config)
    if is_run(source):
        found = dict(weights_of_run(source).weights)
        reading = f"it is a run of {len(found)} tensors"
        unused = [name for name in found if name not in shapes]
    else:
        state = read_published(weights_in(source) if source.is_dir() else source)
        with named(source):
            read = guess_layout(state, config)
            adapters = from_opentad(state) if isinstance(config, TadModelConfig) else {}
        found = read.state | adapters
        unused = [name for name in read.unused if not adapters or ".adapter." not in name]
        reading = read.describe()
    _check_depth(source, config, [*found, *unused])
    if head_map is not None:
        found = found | mapped_head(found, head_map, source)
    used = {name: found[name] for name, shape in shapes.items() if name in found and tuple(found[name].shape) == shape}
    if isinstance(config, AvaModelConfig) and "encoder.norm.weight" not in found:
        # a classifier's: its head has learnt from the mean of a whole clip behind another norm
        used = {name: x for name, x in used.items() if name not in HEAD}
    if new_decoder:
        used = {name: x for name, x in used.items() if name.startswith("encoder.")}
    new = [name for name in shapes if name not in used]
    needed = [name for name in new if name.startswith("encoder.")]
    has_decoder = isinstance(config, ModelConfig) and any(name.startswith(DECODER) for name in found)
    if isinstance(config, AvaModelConfig) or (isinstance(config, ModelConfig) and not has_decoder):
        # a classifier has its norm behind the pooling
        needed = [name for name in needed if not name.startswith("encoder.norm.")]
    if isinstance(config, ModelConfig) and has_decoder and not new_decoder and not needed:
        _check_decoder(source, config, found, new, unused)
    if needed:
        other = [f"{name} {tuple(found[name].shape)}, not {shapes[name]}" for name in needed if name in found]
        detail = f"{len(other)} of another shape: {some(other)}; " if other else ""
        raise CheckpointError(
            f"{source} does not fit this model: {len(needed)} of the {len(shapes)} tensors are not there as needed; "
            f"{detail}{reading}"
        )
    if not used:
        raise CheckpointError(f"{source} does not fit this model: it has none of its {len(shapes)} tensors; {reading}")
    dropped = [*unused, *(name for name in found if name in shapes and name not in used)]
    return used, LoadReport(tuple(used), tuple(new), tuple(dropped))


def _check_depth(source: Path, config: EncoderConfig, names: Sequence[str]) -> None:
    """Raises CheckpointError where blocks of the encoder would be left out without a word."""
    there, here = depth_of(names, "encoder"), config.encoder.depth
    if there > here:
        raise CheckpointError(
            f"{source} has {counted(there, 'block')} in its encoder, and this model {here}: set --model.encoder.depth {there}, "
            "or take the recipe of its size"
        )


def _check_decoder(
    source: Path, config: ModelConfig, found: StateDict, new: Sequence[str], unused: Sequence[str]
) -> None:
    """Raises CheckpointError where a decoder is not taken whole."""
    shapes = our_shapes(config)
    unfit = [name for name in new if name.startswith(DECODER)]
    which = [f"{name} {tuple(found[name].shape)}, not {shapes[name]}" for name in unfit if name in found]
    which += [f"no {name}" for name in unfit if name not in found]
    if (there := depth_of(unused, "decoder")) > config.decoder.depth:
        which.append(f"{counted(there, 'block')}, not {config.decoder.depth}")
    if which:
        raise CheckpointError(
            f"{source}: its encoder fits this model, and its decoder does not: {some(which)}; "
            "set --model.decoder.width, depth, heads and mlp to its own, or --objective.new-decoder to draw the decoder anew"
        )


class OpenedModel(NamedTuple):
    """A trained model, whole."""

    run: RunConfig
    """Config of the model's run; for a file without a run, a config of its kind, whose clips are the published ones."""
    weights: StateDict
    """On the host, under our names."""
    checkpoint: Path


def open_model(
    source: Path, data: LabelledDataConfig | None = None, given: Mapping[str, Any] | None = None
) -> OpenedModel:
    """The model of a run (its newest whole checkpoint), of one checkpoint, of a file of any known key layout, or of a folder
    as transformers has it.

    Args:
        data: The clips of a classifier whose file does not say them.
        given: Fields of the model config that a file does not show, as of `read_given`.

    Raises ConfigError or CheckpointError where there is none, or a part of it is missing.
    """
    if is_run(source):
        found_run = weights_of_run(source)
        if given is not None:
            raise ConfigError(f"--config is for files: the run {source} says what its model is; leave it out")
        _refuse_detector(source, found_run.run.model)
        return OpenedModel(found_run.run, dict(found_run.weights), found_run.checkpoint)
    file = source
    if not source.is_dir() and (source.parent / "run.json").is_file():  # a run's own mean of the weights
        run = merged_run(read_run_config(source.parent))
        _refuse_detector(source, run.model)
    else:
        found = find_weights(source, given)
        _refuse_detector(source, found.model)
        file, run = found.file, _run_of(found, data)
    weights, report = load_for(file, run.model)
    if report.new:
        raise CheckpointError(f"{source} does not hold the whole model: {report}")
    return OpenedModel(run, weights, file)


def _refuse_detector(source: Path, model: EncoderConfig) -> None:
    if isinstance(model, TadModelConfig):
        raise ConfigError(
            f"{source} is a head for temporal detection, which vmae2 tad detect takes; give the model whose features it was "
            "trained on"
        )
    if isinstance(model, AvaModelConfig):
        raise ConfigError(
            f"{source} says what people in boxes do, which vmae2 ava detect takes: it has nothing for a whole clip"
        )


def _run_of(found: FoundWeights, data: LabelledDataConfig | None) -> RunConfig:
    """A run's config around a model without a run: clips as the file says them, else as published."""
    clip = found.about.clip or {}
    if isinstance(found.model, ClassifierConfig):
        return FinetuneConfig(model=found.model, data=_with_clip(data or LabelledDataConfig(), clip))
    objective = ObjectiveConfig.model_validate({"target": found.about.target or "normalised"})
    return PretrainConfig(model=found.model, data=_with_clip(PretrainDataConfig(), clip), objective=objective)


def _with_clip(data: Data, clip: Mapping[str, Any]) -> Data:
    try:
        return type(data).model_validate(data.model_dump() | dict(clip))
    except ValidationError:  # a header of somebody else's making
        return data


def clip_line(source: Path, data: DataConfig, **given: object) -> str:
    """The clips that a model is shown, for a start line: "16 frames of 224, stride 4", and what of it nobody said.

    Args:
        source: What `open_model` opened.
        given: What the user said of the clip, by field; None: nothing.
    """
    is_runs = is_run(source) or (not source.is_dir() and (source.parent / "run.json").is_file())
    said = {
        *({} if is_runs else about_source(source).clip or {}),
        *(name for name, value in given.items() if value is not None),
    }
    words = {"num_frames": f"{data.num_frames} frames", "size": f"size {data.size}", "stride": f"stride {data.stride}"}
    assumed = [] if is_runs else [word for name, word in words.items() if name not in said]
    line = f"{counted(data.num_frames, 'frame')} of {data.size}, stride {data.stride}"
    if not assumed:
        return line
    which = "" if len(assumed) == len(words) else f" {', '.join(assumed)}"
    return f"{line} (assumed: the file does not say{which})"


def labels_of(source: Path) -> list[str] | None:
    """The names of the classes of what `open_model` opens, where they are known: a run's labels.txt, or what a file says.

    Raises ConfigError where they are not as many as the classes.
    """
    folder = None
    if is_run(source):
        folder = find_checkpoint(source)[1].parent.parent
    elif source.is_file() and (source.parent / "run.json").is_file():
        folder = source.parent
    if folder is None:
        labels = (read_about(source) if source.is_file() else find_weights(source).about).labels
        return None if labels is None else list(labels)
    return labels_of_run(folder)


def labels_of_run(folder: Path) -> list[str] | None:
    """The names of the classes of the run in `folder`, where they are known. Errors as `labels_of`."""
    model = read_run_config(folder).model
    if not (folder / NAMES).is_file() or not isinstance(model, ClassifierConfig):
        return None
    return read_names(folder / NAMES, model.num_classes)


def read_names(file: Path, num_classes: int, option: str = "") -> list[str]:
    """A class name a line, as many as there are classes. Raises ConfigError, which names the `option` that gave the file."""
    names = read_class_names(file, option).names
    if len(names) != num_classes:
        raise ConfigError(f"{option} {file} has {len(names)} names, and the model has {num_classes} classes".strip())
    return list(names)


def about_run(run: RunConfig, labels: Sequence[str] | None = None) -> AboutWeights:
    """What a file of its weights should say beside them."""
    clip = run.data.model_dump(include=set(CLIP_FIELDS))
    return AboutWeights(run.model.merged, run.target, None if labels is None else tuple(labels), clip)


def read_head_map(file: Path, num_classes: int, setting: str = "--train.head-map") -> list[int]:
    """A JSON list: for each class, a class of another head (`vmae2 data merge-kinetics` writes them). Raises ConfigError."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting} {file}: {error}") from None
    if not isinstance(found, list) or not all(isinstance(x, int) and x >= 0 for x in found):
        raise ConfigError(f"{setting} {file}: a head map is a JSON list of class numbers")
    if len(found) != num_classes:
        raise ConfigError(f"{setting} {file} names {len(found)} classes, and --model.num-classes {num_classes}")
    return found


def mapped_head(found: StateDict, head_map: list[int], source: Path, setting: str = "--train.head-map") -> StateDict:
    """The head of `found`, class by class as the map says. Raises ConfigError where it has no such head."""
    if any(name not in found for name in HEAD):
        raise ConfigError(f"{setting} is set, but {source} has no head; leave it out")
    if max(head_map) >= len(found["head.bias"]):
        raise ConfigError(
            f"{setting} asks for class {max(head_map)}, and the head of {source} has {len(found['head.bias'])} classes"
        )
    return {name: found[name][torch.tensor(head_map)] for name in HEAD}


def open_classifier(
    source: Path, data: LabelledDataConfig | None = None, given: Mapping[str, Any] | None = None
) -> tuple[FinetuneConfig, StateDict, Path]:
    """The config, our weights and the checkpoint that `source` means. Raises ConfigError or CheckpointError.

    `data` says what a file leaves open, the clips that it was trained on; default: 16 frames of 224x224. `given`: as of
    `open_model`.
    """
    run, weights, checkpoint = open_model(source, data, given)
    if not isinstance(run, FinetuneConfig):
        what = f"a {run.stage} run" if source.is_dir() else "a masked autoencoder"
        raise ConfigError(f"{source} is {what}, which has no classes; fine-tune it: --train.init {source}")
    if not run.model.num_classes:
        raise ConfigError(
            f"{source} is an encoder without a head, which has no classes; fine-tune it: --train.init {source}"
        )
    return run, weights, checkpoint


def classifier_of(config: FinetuneConfig, weights: StateDict | None, device: torch.device | None = None) -> Classify:
    """The objective with these weights, in the run's precision, on `device` or this process's own, for inference.

    Without weights they are left as they lie in memory, to be filled in.
    """
    objective = bare_classifier(config)
    if weights is not None:
        objective.model.load_state_dict(weights)
    if config.train.precision == "bf16":
        objective.bfloat16()
    return objective.to(device or default_device()).eval()


def bare_classifier(config: FinetuneConfig) -> Classify:
    """The objective for inference, its weights as they lie in memory."""
    model_config: ClassifierConfig = config.model.model_copy(update={"attention": "sdpa", "checkpointing": "none"})
    return Classify(Classifier(model_config, config.geometry, seed=None), 0.0, config.geometry)


def class_names(file: Path | None, num_classes: int) -> list[str]:
    """A name a line, as many as there are classes; numbers without a file. Raises ConfigError."""
    if file is None:
        return [str(label) for label in range(num_classes)]
    return read_names(file, num_classes, "--labels")
