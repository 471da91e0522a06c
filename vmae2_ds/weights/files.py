"""Checkpoint files: read without running what is in them, written, and told which model they belong to."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vmae2_ds.config.any_model import AnyModel
from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.finetune import HeadlessConfig
from vmae2_ds.config.model import SIZES, ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.disk import whole_file
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.weights.about import AboutWeights, model_of_fields, read_about
from vmae2_ds.weights.layouts import EMBED_WEIGHT, LAYOUTS, Layout, StateDict, bare, guess_layout, shortened, unwrapped
from vmae2_ds.weights.lazy_state import save_safetensors
from vmae2_ds.weights.ours import check_ending

WRAPPERS = ("model", "module", "state_dict")
"""What a state dict may lie in: torch's and the published code's, DeepSpeed's, mmengine's."""


def read_published(path: Path) -> StateDict:
    """The tensors of a published .pth/.pt/.bin or .safetensors file on the CPU, under bare published keys.

    Opens the wrappers `model` (torch), `module` (DeepSpeed) and `state_dict` (mmengine), and takes out what DDP, FSDP and
    torch.compile put into names. Raises CheckpointError as `load_plain`, where the file holds no state dict of plain
    tensors, and where two names become one.
    """
    # Published files carry their command line as an argparse.Namespace: plain data.
    content = _load_safetensors(path) if path.suffix == ".safetensors" else load_plain(path, [argparse.Namespace])
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors, or `model`, `module` or `state_dict` with tensors"
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{path}: {name!r} is not the name of a plain, dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} claims {tuple(tensor.shape)} values, more than the file holds")
    with named(path):
        return unwrapped(content)


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


def _load_safetensors(path: Path) -> StateDict:
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


def write_weights(
    state: Mapping[str, Tensor], out: Path, config: EncoderConfig, about: AboutWeights | None = None
) -> None:
    """Write published tensors to `out`, whole or not at all; its ending decides the format. A stored state is read tensor by
    tensor for .safetensors, whose header also says what `about` does, and at once for .pth.

    Raises OSError where the disk does not take it.
    """
    check_ending(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        assert isinstance(config, AnyModel), f"a model of {type(config).__name__}"
        save_safetensors(state, out, (about or AboutWeights())._replace(model=config).metadata())
        return
    with whole_file(out) as part, part.open("wb") as file:
        try:
            torch.save({"model": dict(state)}, file)
        except RuntimeError as error:  # torch's zip writer then only says where it was; what the disk said is behind it
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def model_of(path: Path, given: Mapping[str, Any] | None = None) -> AnyModel:
    """The model that a file belongs to: noted in it, or read from its names and shapes. Errors as `infer_model`."""
    noted = read_about(path).model
    if noted is not None:
        return with_given(noted.model_dump(), given)
    state = read_published(path)
    with named(path):
        return infer_model(state, given).config


@contextlib.contextmanager
def named(source: Path) -> Iterator[None]:
    """Put the file's name before what a state dict's errors say."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


class Inferred(NamedTuple):
    """The model that a state dict belongs to, and how its keys are written."""

    config: AnyModel
    layout: str


def infer_model(state: Mapping[str, Tensor], given: Mapping[str, Any] | None = None) -> Inferred:
    """Tell model and layout from keys and shapes; the number of heads is looked up by width in SIZES.

    Args:
        given: Fields of the model config that the user knows better, or that no tensor shows, such as the numbers of heads.

    Raises:
        CheckpointError: no layout has an embedding and a block there, and a head or the norm in front of it; or the number
            of heads is neither known for the width nor given.
        ConfigError: `given` is not of such a model.
    """
    found = {short: state[name] for short, name in shortened(state, bare).items()}
    for layout, about in LAYOUTS.items():
        for kind in about.stages:
            config = _read_shapes(found, about, kind, given or {})
            if config is not None:
                return Inferred(config, layout)
    depth = 1 + max((int(number) for name in state for number in re.findall(r"\.(\d{1,3})\.", name)), default=0)
    tower = SIZES["tiny"][0].model_copy(update={"depth": depth})
    some_model = (ClassifierConfig(encoder=tower), ModelConfig(encoder=tower, decoder=SIZES["tiny"][1]))
    nearest = max((guess_layout(state, config) for config in some_model), key=lambda reading: len(reading.state))
    raise CheckpointError(
        f"neither a masked autoencoder nor a classifier of a known key layout ({', '.join(LAYOUTS)}); {nearest.describe()}"
    )


_LAST = {
    ModelConfig: "decoder.head.weight",
    AvaModelConfig: "head.weight",
    ClassifierConfig: "head.weight",
    HeadlessConfig: "fc_norm.weight",
}
"""What tells the kinds of models apart; a head on boxes has the encoder's norm in front of it besides."""


def _read_shapes(
    state: Mapping[str, Tensor], layout: Layout, kind: type[EncoderConfig], given: Mapping[str, Any]
) -> AnyModel | None:
    is_classifier = kind is not ModelConfig

    def shape(ours: str) -> tuple[int, ...]:
        return tuple(state[bare(layout.names(ours, is_classifier)[0])].shape)

    def tower(side: str, heads: Mapping[int, int]) -> dict[str, int]:
        mlp, width = shape(f"{side}.blocks.0.mlp.fc1.weight")
        depth = 0
        while bare(layout.names(f"{side}.blocks.{depth}.norm1.weight", is_classifier)[0]) in state:
            depth += 1
        said = given.get(side)
        found = (said.get("heads") if isinstance(said, Mapping) else None) or heads.get(width)
        if found is None:
            raise CheckpointError(
                f"the number of heads of the {side} of width {width} is not in its weights; known widths are "
                f'{sorted(heads)}; give it with --config FILE, JSON such as {{"{side}": {{"heads": 8}}}}, here or to '
                "vmae2 import, which writes it down"
            )
        return {"width": width, "depth": depth, "heads": found, "mlp": mlp}

    try:
        _, _, tubelet, patch, _ = shape(EMBED_WEIGHT)
        shape("encoder.blocks.0.attn.qkv.q_bias")  # what tells transformers 4 and 5 apart
        last = shape(_LAST[kind])
        if kind is AvaModelConfig:
            shape("encoder.norm.weight")
        encoder = tower("encoder", {tower.width: tower.heads for tower, _, _ in SIZES.values()})
        fields: dict[str, Any] = {"encoder": encoder, "patch": patch, "tubelet": tubelet}
        if kind is ModelConfig:
            fields["decoder"] = tower("decoder", {tower.width: tower.heads for _, tower, _ in SIZES.values()})
        else:
            fields["num_classes"] = 0 if kind is HeadlessConfig else last[0]
        if kind is AvaModelConfig:
            fields["head"] = {}  # as published: no tensor shows it
    except (KeyError, ValueError):  # not this layout: a key that is not there, or of another kind
        return None
    return with_given(fields, given)


def with_given(fields: Mapping[str, Any], given: Mapping[str, Any] | None) -> AnyModel:
    """The model of these fields with what the user gave in their place; towers field by field. Raises ConfigError."""
    given = given or {}
    if len({"decoder", "num_classes"} & {*fields, *given}) > 1:
        has = "a decoder" if "decoder" in fields else "classes"
        raise ConfigError(f"the given config is of another kind of model: the file has {has}")
    merged = dict(fields)
    for name, value in given.items():
        before = merged.get(name)
        merged[name] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    try:
        return model_of_fields(merged)
    except ConfigError as error:
        raise ConfigError(f"the given config: {error}") from None
