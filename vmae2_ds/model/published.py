"""Checkpoint files: read without running what is in them, written, and told which model they belong to."""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vmae2_ds.config import SIZES, ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.layouts import EMBED_WEIGHT, LAYOUTS, PREFIXES, Layout, State, best_reading
from vmae2_ds.model.stored import save_safetensors


def read_published(path: Path) -> State:
    """The tensors of a published .pth/.pt/.bin or .safetensors file on the CPU, under bare published keys.

    Opens the wrappers `model` (torch) and `module` (DeepSpeed) and strips what DDP and torch.compile put before names.
    Raises CheckpointError as `load_plain`, and where the file holds no state dict of plain tensors.
    """
    # Published files carry their command line as an argparse.Namespace: plain data.
    content = _load_safetensors(path) if path.suffix == ".safetensors" else load_plain(path, [argparse.Namespace])
    for wrapper in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(f"{path} holds no state dict: expected tensors, or `model` or `module` with tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{path}: {name!r} is not the name of a plain, dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} claims {tuple(tensor.shape)} values, more than the file holds")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in content.items()}


def load_plain(path: Path, classes: list[Any], place: Any = "cpu", *, mapped: bool = False) -> object:
    """What torch.save wrote, with its tensors on `place`, by torch's own reader of plain data: nothing in the file is run.

    Args:
        classes: further ones that may stand in it, or (class, "full.name") for one to take the place of another.
        mapped: leave tensors in the file, and let the system read what is looked at; only of torch's zip format.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that would have to run code to be read.
    """
    try:
        with torch.serialization.safe_globals(classes):
            return torch.load(path, map_location=place, weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        raise CheckpointError(_why_unreadable(path, error)) from error


def _load_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except _UNREADABLE as error:
        raise CheckpointError(_why_unreadable(path, error)) from error


# What the readers of torch and safetensors raise on damaged and on hostile files.
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError),
)


def _why_unreadable(path: Path, error: BaseException) -> str:
    """One line, from the file's first bytes where torch has only its advice to trust the file."""
    cannot = f"{path} cannot be read as a checkpoint"
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"{cannot}: it refers to {code[1]}, which is not plain data; no code in a file is run"
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return f"{cannot}: {error.strerror}"
    with path.open("rb") as file:
        start = file.read(64)
    is_safetensors = start[8:10] == b'{"'
    if start.startswith(b"version https://git-lfs"):
        return f"{cannot}: it is a pointer of git-lfs; fetch the file itself: git lfs pull"
    if start.startswith(b"PK") and path.suffix == ".safetensors":
        return f"{cannot}: its content is a file of torch.save; let its name end in .pth"
    if is_safetensors and path.suffix != ".safetensors":
        return f"{cannot}: its content is safetensors; let its name end in .safetensors"
    if start.startswith(b"PK") or is_safetensors:
        detail = re.sub(r"^\[enforce fail at [^]]*\] \. | +\(Could this .*", "", str(error).partition("\n")[0])
        return f"{cannot}: it is cut or damaged ({detail or type(error).__name__})"
    if not start:
        return f"{cannot}: it is empty"
    pickled = "a pickle with more than plain data, or a damaged one" if start[:1] == b"\x80" else "of neither format"
    return f"{cannot}: it is {pickled} (it starts with {start[:16]!r})"


def write_weights(state: Mapping[str, Tensor], out: Path, config: EncoderConfig) -> None:
    """Write published tensors to `out`; its ending decides the format. A stored state is read tensor by tensor for
    .safetensors, and at once for .pth."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        # transformers asks for the first
        save_safetensors(state, out, {"format": "pt", "model": config.model_dump_json()})
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


def model_of(path: Path) -> ModelConfig | ClassifierConfig:
    """The model that a file belongs to: noted in it, or read from its names and shapes. Errors as `infer_model`."""
    noted = written_model(path)
    if noted is not None:
        return noted
    state = read_published(path)
    with named(path):
        return infer_model(state).config


@contextlib.contextmanager
def named(source: Path) -> Iterator[None]:
    """Put the file's name before what a state dict's errors say."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


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
    depth = 1 + max((int(number) for name in state for number in re.findall(r"\.(\d{1,3})\.", name)), default=0)
    tower = SIZES["tiny"][0].model_copy(update={"depth": depth})
    some_model = (ClassifierConfig(encoder=tower), ModelConfig(encoder=tower, decoder=SIZES["tiny"][1]))
    nearest = max((best_reading(state, config) for config in some_model), key=lambda reading: len(reading.state))
    raise CheckpointError(
        f"neither a masked autoencoder nor a classifier of a known key layout ({', '.join(LAYOUTS)}); {nearest.describe()}"
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
