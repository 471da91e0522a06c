"""Published pre-training checkpoints in and out: one key map, strict both ways.

Keys and shapes: PAPER C, golden checkpoint_keys.json. Ours differ in three places: the embedding is a (D, P) matrix in
t, h, w, c order instead of a Conv3d kernel (D, c, t, h, w), the mask token belongs to the decoder, and the biases of
the packed projection lie beside its weight.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vmae2_ds.config import SIZES, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.mae import MaskedAutoencoder

State = dict[str, Tensor]

EMBED_WEIGHT = "encoder.embed.proj.weight"
_RENAMES = (
    # ours -> published, each a whole path component or more
    (r"^encoder\.embed\.", "encoder.patch_embed."),
    (r"\.attn\.qkv\.(q|v)_bias$", r".attn.\1_bias"),
    (r"^decoder\.mask_token$", "mask_token"),
    (r"^bridge\.", "encoder_to_decoder."),
)
_SHOWN = 5  # keys of each kind in an error


def official_name(name: str) -> str:
    """The published key of one of our parameters."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published keys and shapes of a checkpoint of this model, without allocating it."""
    return {
        official_name(name): _kernel_shape(config) if name == EMBED_WEIGHT else tuple(shape)
        for name, shape in _shapes(config).items()
    }


def from_official(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    """Our state dict from a published one, as `read_published` gives it.

    Raises:
        CheckpointError: with what is missing, extra or of another shape.
    """
    _check(state, official_shapes(config), "the published key map")
    ours = {name: state[official_name(name)] for name in _shapes(config)}
    # (D, c, t, h, w) -> (D, t, h, w, c) -> (D, P)
    ours[EMBED_WEIGHT] = ours[EMBED_WEIGHT].permute(0, 2, 3, 4, 1).flatten(1).contiguous()
    return ours


def to_official(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    """Published state dict from ours (`model.state_dict()`); exactly the published keys and shapes.

    Raises:
        CheckpointError: as `from_official`.
    """
    _check(state, {name: tuple(shape) for name, shape in _shapes(config).items()}, "our key map")
    theirs = {official_name(name): state[name] for name in _shapes(config)}
    width, colours, tubelet, patch, _ = _kernel_shape(config)
    kernel_DTHWC = state[EMBED_WEIGHT].view(width, tubelet, patch, patch, colours)
    theirs[official_name(EMBED_WEIGHT)] = kernel_DTHWC.permute(0, 4, 1, 2, 3).contiguous()
    return theirs


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


def read_weights_for(path: Path, config: ModelConfig) -> State:
    """Our state dict for this model from a published file; CheckpointError as `read_published` and `from_official`."""
    return from_official(read_published(path), config)


def infer_model_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """The model that a published pre-training state dict belongs to; heads are looked up by width in SIZES.

    Raises:
        CheckpointError: not a pre-training state dict, or a width whose number of heads is not known.
    """
    try:
        _, _, tubelet, patch, _ = state[official_name(EMBED_WEIGHT)].shape
        encoder = _infer_tower(state, "encoder", {tower.width: tower.heads for tower, _, _ in SIZES.values()})
        decoder = _infer_tower(state, "decoder", {tower.width: tower.heads for _, tower, _ in SIZES.values()})
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"not a published pre-training state dict: {error}; it has {_some(state)}") from error
    return ModelConfig(encoder=encoder, decoder=decoder, patch=patch, tubelet=tubelet)


def _infer_tower(state: Mapping[str, Tensor], tower: str, heads_of_width: dict[int, int]) -> TowerConfig:
    mlp, width = state[f"{tower}.blocks.0.mlp.fc1.weight"].shape
    depth = len({name.split(".")[2] for name in state if name.startswith(f"{tower}.blocks.")})
    if width not in heads_of_width:
        raise CheckpointError(
            f"the number of heads of a {tower} of width {width} is not in its weights; known widths are "
            f"{sorted(heads_of_width)}; give the model config yourself"
        )
    return TowerConfig(width=width, depth=depth, heads=heads_of_width[width], mlp=mlp)


def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Our parameters' shapes; they do not depend on the clip, so one cube will do."""
    geometry = ClipGeometry(config.tubelet, config.patch, config.patch, config.tubelet, config.patch)
    anywhere = config.model_copy(update={"attention": "sdpa"})  # the kernel has no part in it, and may be missing here
    with torch.device("meta"):
        return {name: p.shape for name, p in MaskedAutoencoder(anywhere, geometry, seed=None).named_parameters()}


def _kernel_shape(config: ModelConfig) -> tuple[int, int, int, int, int]:
    """The published embedding's Conv3d kernel: (D, c, t, h, w)."""
    return config.encoder.width, 3, config.tubelet, config.patch, config.patch


def _check(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if extra := [name for name in state if name not in expected]:
        problems.append(f"{len(extra)} extra: {_some(extra)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name in expected}
    if wrong := [f"{name} {got}, expected {expected[name]}" for name, got in shapes.items() if got != expected[name]]:
        problems.append(f"{len(wrong)} of another shape: {_some(wrong)}")
    if problems:
        raise CheckpointError(f"the checkpoint does not match {what} of this model config: {'; '.join(problems)}")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
