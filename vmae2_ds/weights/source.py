"""Where weights lie that no run has: a file of any known key layout, or a folder as transformers or the authors' hub has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vmae2_ds.config.any_model import AnyModel
from vmae2_ds.errors import ConfigError
from vmae2_ds.weights.about import AboutWeights, read_about
from vmae2_ds.weights.files import model_of, named, read_published, with_given
from vmae2_ds.weights.layouts import StateDict, from_layout, guess_layout
from vmae2_ds.weights.transformers_config import about_transformers, config_of_transformers
from vmae2_ds.weights.transformers_folder import read_config, weights_in


class FoundWeights(NamedTuple):
    """A file of weights, and all that is known of it."""

    file: Path
    model: AnyModel
    about: AboutWeights


def find_weights(source: Path, given: Mapping[str, Any] | None = None) -> FoundWeights:
    """The file that `source` means: itself, or the one in a folder with a config.json.

    Args:
        given: Fields of the model config that the user knows better, as of `read_given`.

    Raises CheckpointError or ConfigError where its model cannot be told.
    """
    if not source.is_dir():
        return FoundWeights(source, model_of(source, given), read_about(source))
    fields = read_config(source)
    if isinstance(fields.get("model_config"), dict):  # the authors' own code would build it; its tensors tell the rest
        file = weights_in(source)
        return FoundWeights(
            file, model_of(file, {**_of_hub(fields), **(given or {})}), AboutWeights(clip=_clip_of_hub(fields))
        )
    with named(source):
        model = config_of_transformers(fields)
    return FoundWeights(weights_in(source), with_given(model.model_dump(), given), about_transformers(fields, model))


class ReadWeights(NamedTuple):
    """Every tensor of a file, under our names."""

    state: StateDict
    found: FoundWeights
    layout: str


def read_all(source: Path, given: Mapping[str, Any] | None = None) -> ReadWeights:
    """The weights of a file or a folder, every key accounted for.

    Raises CheckpointError where it is of no known layout, or a key of the layout is missing, left over or of another shape;
    ConfigError where `given` is not of such a model.
    """
    found = find_weights(source, given)
    state = read_published(found.file)
    with named(source):
        layout = guess_layout(state, found.model).layout
        return ReadWeights(from_layout(state, found.model, layout), found, layout)


def read_given(file: Path | None) -> dict[str, Any] | None:
    """Fields of a model config out of a JSON file: some or all of our own, those of a run.json, or a transformers config.json.

    Raises ConfigError.
    """
    if file is None:
        return None
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"--config {file}: it has to be an object with fields of the model config")
    if isinstance(fields.get("model_config"), dict):
        return _of_hub(fields)
    if "hidden_size" in fields:
        with named(file):
            return config_of_transformers(fields).model_dump(mode="json", exclude_defaults=True)
    inside = fields.get("model")
    return inside if isinstance(inside, dict) else fields


def _of_hub(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What no tensor shows, from the config.json of the authors' hub repositories."""
    heads = fields["model_config"].get("num_heads")
    return {"encoder": {"heads": heads}} if isinstance(heads, int) else {}


def _clip_of_hub(fields: Mapping[str, Any]) -> dict[str, int]:
    names = {"num_frames": "all_frames", "size": "img_size"}
    return {ours: x for ours, name in names.items() if isinstance(x := fields["model_config"].get(name), int)}
