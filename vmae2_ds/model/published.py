"""Checkpoint files: read without running what is in them, written, and told which model they belong to."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vmae2_ds.config import SIZES, ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.layouts import EMBED_WEIGHT, LAYOUTS, PREFIXES, Layout, State, some


def read_published(path: Path) -> State:
    """The tensors of a published .pth/.pt/.bin or .safetensors file on the CPU, under bare published keys.

    Opens the wrappers `model` (torch) and `module` (DeepSpeed) and strips what DDP and torch.compile put before names.
    Never runs code from the file.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that would have to run code to be read.
    """
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            # Published files carry their command line as an argparse.Namespace: plain data.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error
    for wrapper in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(f"{path} holds no state dict: expected tensors, or `model` or `module` with tensors")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in content.items()}


def write_weights(state: Mapping[str, Tensor], out: Path, config: EncoderConfig) -> None:
    """Write published tensors to `out`; its ending decides the format."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            out,
            {"format": "pt", "model": config.model_dump_json()},  # transformers asks for the first
        )
    elif out.suffix in (".pth", ".pt"):
        torch.save({"model": dict(state)}, out)
    else:
        raise ConfigError(f"--out {out}: the name must end in .safetensors, .pth or .pt")


def written_model(path: Path) -> ModelConfig | ClassifierConfig | None:
    """The model that `write_weights` noted in a .safetensors file; None for files that somebody else wrote."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            noted = json.loads((file.metadata() or {}).get("model", ""))
        return (ModelConfig if "decoder" in noted else ClassifierConfig).model_validate(noted)
    except (SafetensorError, ValueError, TypeError):  # read_published says what is wrong with a damaged one
        return None


class Inferred(NamedTuple):
    """The model that a state dict belongs to, and how its keys are written."""

    config: ModelConfig | ClassifierConfig
    layout: str
    prefix: str


def infer_model(state: Mapping[str, Tensor]) -> Inferred:
    """Tell model and layout from keys and shapes; the number of heads is looked up by width in SIZES.

    Raises:
        CheckpointError: no layout has an embedding, a block and a head there, or the width's number of heads is not known.
    """
    for prefix in PREFIXES:
        for layout, about in LAYOUTS.items():
            for config in about.stages:
                found = _read_shapes(state, prefix, about, is_classifier=config is ClassifierConfig)
                if found is not None:
                    return Inferred(found, layout, prefix)
    raise CheckpointError(
        f"neither a masked autoencoder nor a classifier of a known key layout ({', '.join(LAYOUTS)}); it has {some(state)}"
    )


def _read_shapes(
    state: Mapping[str, Tensor], prefix: str, layout: Layout, *, is_classifier: bool
) -> ModelConfig | ClassifierConfig | None:
    def shape(ours: str) -> tuple[int, ...]:
        return tuple(state[prefix + layout.names(ours, is_classifier)[0]].shape)

    def tower(side: str, heads: Mapping[int, int]) -> TowerConfig:
        mlp, width = shape(f"{side}.blocks.0.mlp.fc1.weight")
        depth = 0
        while prefix + layout.names(f"{side}.blocks.{depth}.norm1.weight", is_classifier)[0] in state:
            depth += 1
        if width not in heads:
            raise CheckpointError(
                f"the number of heads of the {side} of width {width} is not in its weights; known widths are "
                f"{sorted(heads)}; give the model config yourself"
            )
        return TowerConfig(width=width, depth=depth, heads=heads[width], mlp=mlp)

    try:
        _, _, tubelet, patch, _ = shape(EMBED_WEIGHT)
        shape("encoder.blocks.0.attn.qkv.q_bias")  # what tells transformers 4 and 5 apart
        last = shape("head.weight" if is_classifier else "decoder.head.weight")
        encoder = tower("encoder", {tower.width: tower.heads for tower, _, _ in SIZES.values()})
        if is_classifier:
            return ClassifierConfig(encoder=encoder, patch=patch, tubelet=tubelet, num_classes=last[0])
        decoder = tower("decoder", {tower.width: tower.heads for _, tower, _ in SIZES.values()})
        return ModelConfig(encoder=encoder, decoder=decoder, patch=patch, tubelet=tubelet)
    except (KeyError, ValueError):  # not this layout: a key that is not there, or of another kind
        return None
