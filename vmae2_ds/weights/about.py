"""What a file of weights says beside its tensors: the model, what its decoder predicts, class names, and its clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from vmae2_ds.config.any_model import AnyModel
from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.finetune import HeadlessConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.config.tad import TadModelConfig
from vmae2_ds.errors import ConfigError

TARGETS = ("normalised", "pixels")
CLIP_FIELDS = ("num_frames", "size", "stride", "sampling")
"""Settings of `data` that tell what clips weights were trained on."""


class AboutWeights(NamedTuple):
    """What is known of weights besides their names and shapes; None where nobody said."""

    model: EncoderConfig | None = None
    target: str | None = None
    """What the decoder predicts, as `objective.target`."""
    labels: tuple[str, ...] | None = None
    """A name for each class."""
    clip: Mapping[str, Any] | None = None
    """Some of CLIP_FIELDS."""

    def metadata(self) -> dict[str, str]:
        """Text values for a safetensors header; transformers asks for the first."""
        said = {
            "target": self.target,
            "labels": self.labels and json.dumps(self.labels),
            "clip": self.clip and json.dumps(dict(self.clip)),
        }
        model = {} if self.model is None else {"model": self.model.model_dump_json()}
        return {"format": "pt", **model, **{key: value for key, value in said.items() if value}}


def read_about(path: Path) -> AboutWeights:
    """What one of our own .safetensors files says; nothing of files that somebody else wrote."""
    said = _metadata(path)
    fields = _json(said.get("model"))
    try:
        model = model_of_fields(fields if isinstance(fields, dict) else {})
    except ConfigError:
        return AboutWeights()
    target = said.get("target")
    labels, clip = _json(said.get("labels")), _json(said.get("clip"))
    return AboutWeights(
        model,
        target if target in TARGETS else None,
        names_for(labels, model),
        {key: clip[key] for key in CLIP_FIELDS if key in clip} if isinstance(clip, dict) else None,
    )


def said_beside(path: Path) -> dict[str, str]:
    """SHA-256 of the files that were written beside one of our own .safetensors files, by name."""
    sums = _json(_metadata(path).get("beside"))
    return {name: str(digest) for name, digest in sums.items()} if isinstance(sums, dict) else {}


def _metadata(path: Path) -> dict[str, str]:
    """The text values of a safetensors header; nothing where there is no such file, or a damaged one."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, "np") as file:  # "pt" would import torch, and no tensor is read
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError):  # read_published says what is wrong with it
        return {}


def names_for(labels: object, model: AnyModel) -> tuple[str, ...] | None:
    """`labels` where they are one string for each class of the model."""
    if not isinstance(labels, list) or not isinstance(model, ClassifierConfig) or len(labels) != model.num_classes:
        return None
    return tuple(labels) if labels and all(isinstance(name, str) for name in labels) else None


def model_of_fields(fields: Mapping[str, Any]) -> AnyModel:
    """The model config that has these fields. Raises ConfigError, naming the first that is wrong."""
    kind: type[AnyModel] = ModelConfig if "decoder" in fields else ClassifierConfig
    if "head" in fields:
        kind = TadModelConfig if "adapters" in fields else AvaModelConfig
    if kind is ClassifierConfig and fields.get("num_classes") == 0:
        kind = HeadlessConfig
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the model"
        raise ConfigError(f"{where}: {first['msg']}") from None


def _json(text: str | None) -> object:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
