"""Key layouts of checkpoints, in and out: one table of names per layout, strict both ways, every number kept.

Ours differ from all others in the embedding, a (D, P) matrix in t, h, w, c order where they have a Conv3d kernel
(D, c, t, h, w). Sources: tests/golden/checkpoint_keys.json (published), transformers' modeling_videomae.py of
versions 4 and 5, and mmaction2's and OpenTAD's VisionTransformer (vit_mae.py; docs/PAPER.md#keys).
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vmae2_ds.config.any_model import Detector
from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.finetune import HeadlessConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.config.tad import TadModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.model.seeded import SeededModel
from vmae2_ds.weights.lazy_state import Shape, StoredState, dtypes_of, shapes_of

StateDict = dict[str, Tensor]
TheirNames = tuple[str, ...]
"""Names that another layout has for one of our parameters: one, or three for a packed projection kept as q, k and v."""

EMBED_WEIGHT = "encoder.embed.proj.weight"
_INSIDE = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_WRAPPERS = re.compile(rf"^(module\.|{_INSIDE})+|\b{_INSIDE}")
"""What DDP puts before names, and torch.compile, FSDP and checkpointing into them."""
_OWNERS = re.compile(r"^((module|model|backbone|encoder|videomae)\.)+")
"""What a model that holds the encoder puts before its names. A head or a decoder may have it or not, key by key."""
SHOWN = 5
"""Keys of each kind in an error."""


class Layout(NamedTuple):
    """How somebody else names the weights."""

    about: str
    names: Callable[[str, bool], TheirNames]
    """(our name, whether it is a classifier's) -> theirs."""
    stages: tuple[type[EncoderConfig], ...]
    """Models that can be written so."""


def to_layout(state: Mapping[str, Tensor], config: EncoderConfig, layout: str = "published") -> StateDict:
    """The state dict of another layout from ours (`model.state_dict()`), exactly its keys and shapes. Errors as `in_layout`."""
    return dict(in_layout(state, config, layout))


def in_layout(state: Mapping[str, Tensor], config: EncoderConfig, layout: str = "published") -> StoredState:
    """Ours as they have it, each tensor made when it is asked for, so that a stored state is never whole in memory.

    Raises:
        CheckpointError: `state` is not one of this model.
        ConfigError: an unknown layout, or one that has no place for this kind of model.
    """
    names = _names(config, layout)
    _check(shapes_of(state), our_shapes(config), "our key map")
    where = {name: (ours, number) for ours, theirs in names.items() for number, name in enumerate(theirs)}

    def read(name: str) -> Tensor:
        ours, number = where[name]
        tensor = state[ours]
        if ours == EMBED_WEIGHT:
            width, colours, tubelet, patch, _ = _kernel_shape(config)
            tensor = tensor.view(width, tubelet, patch, patch, colours).permute(0, 4, 1, 2, 3)
        return tensor.chunk(len(names[ours]))[number].contiguous()

    dtypes = dtypes_of(state)
    return StoredState(layout_shapes(config, layout), read, {name: dtypes[ours] for name, (ours, _) in where.items()})


def unwrapped(state: Mapping[str, Tensor]) -> StateDict:
    """A state dict without what training tools put into names. Raises CheckpointError where two names become one."""
    return {short: state[name] for short, name in shortened(state, lambda name: _WRAPPERS.sub("", name)).items()}


def bare(name: str) -> str:
    """A name as it is compared with others: without wrappers, and without the model that holds it.

    Prefixes come off key by key, as the published loader does it (run_class_finetuning.py:557-592): some keys of a file may
    have one and others not.
    """
    return _OWNERS.sub("", _WRAPPERS.sub("", name))


_NUMBERED = re.compile(r"^(decoder\.)?(?:blocks|layer|decoder_layers)\.(\d+)\.")
"""A block of a tower in any of the layouts, once it is `bare`."""


def depth_of(names: Iterable[str], tower: str) -> int:
    """How many blocks of a tower, encoder or decoder, names of any layout are of."""
    found = (_NUMBERED.match(bare(name)) for name in names)
    return max((int(one[2]) + 1 for one in found if one and bool(one[1]) == (tower == "decoder")), default=0)


def shortened(state: Mapping[str, Tensor], shorten: Callable[[str], str]) -> dict[str, str]:
    """Short name -> name in the state dict. Raises CheckpointError where two names become one."""
    names: dict[str, str] = {}
    for name in state:
        other = names.setdefault(shorten(name), name)
        if other != name:
            raise CheckpointError(
                f"{other} and {name} are both {shorten(name)} once prefixes come off; take one of them out of the file"
            )
    return names


def from_layout(state: Mapping[str, Tensor], config: EncoderConfig, layout: str = "published") -> StateDict:
    """Our state dict from theirs; prefixes as in `bare`.

    Raises:
        CheckpointError: with what is missing, extra, of another shape, or there twice.
        ConfigError: as `to_layout`.
    """
    expected = layout_shapes(config, layout)
    spelt = {bare(name): name for name in expected}
    names = shortened({name: tensor for name, tensor in state.items() if not name.endswith(_KEY_BIAS)}, bare)
    state = {spelt.get(short, name): state[name] for short, name in names.items()}
    _check(shapes_of(state), expected, f"the {layout} key map")
    return {name: _taken(state, name, theirs) for name, theirs in _names(config, layout).items()}


def _taken(state: Mapping[str, Tensor], ours: str, theirs: TheirNames) -> Tensor:
    """One of our parameters out of their state dict. Raises CheckpointError for whole numbers."""
    if kinds := {str(state[name].dtype) for name in theirs if not state[name].is_floating_point()}:
        raise CheckpointError(f"{theirs[0]} holds {', '.join(kinds)}, and weights are floating point")
    tensor = torch.cat([state[name] for name in theirs]) if len(theirs) > 1 else state[theirs[0]]
    if ours == EMBED_WEIGHT and tensor.ndim == 5:
        # (D, c, t, h, w) -> (D, t, h, w, c) -> (D, P)
        tensor = tensor.permute(0, 2, 3, 4, 1).flatten(1).contiguous()
    return tensor


class LayoutGuess(NamedTuple):
    """How a state dict of unknown making is best understood."""

    layout: str
    stage: str
    """pre-training or classifier, by what is in it."""
    state: StateDict
    """What was found, under our names, in whatever shape it is there."""
    missing: TheirNames
    """Names, in the file's layout, of what a model needs and the state dict lacks."""
    unused: TheirNames
    """Names in the state dict that were not needed."""

    def describe(self) -> str:
        """How near it is, for an error: the first keys that differ."""
        return (
            f"nearest key layout: {self.layout}, {self.stage}; missing there: {some(self.missing) or 'nothing'}; "
            f"in the file without a place: {some(self.unused) or 'nothing'}"
        )


def guess_layout(state: Mapping[str, Tensor], config: EncoderConfig) -> LayoutGuess:
    """The known layout under which `state` has the most of this model's parameters; prefixes as in `bare`.

    Raises CheckpointError where two names become one without their prefixes, or weights are whole numbers.
    """
    short = {short: state[name] for short, name in shortened(state, bare).items()}
    shapes = our_shapes(config)
    is_classifier = "mask_token" not in short
    best: tuple[int, str, dict[str, TheirNames]] | None = None
    for layout, about in LAYOUTS.items():
        names = {name: about.names(name, is_classifier) for name in shapes}
        found = sum(all(bare(x) in short for x in theirs) for theirs in names.values())
        if best is None or found > best[0]:
            best = found, layout, names
    assert best is not None, "there are layouts"
    _, layout, names = best
    there = {name: tuple(map(bare, theirs)) for name, theirs in names.items() if all(bare(x) in short for x in theirs)}
    used = {x for theirs in there.values() for x in theirs}
    return LayoutGuess(
        layout,
        "classifier" if is_classifier else "pre-training",
        {name: _taken(short, name, theirs) for name, theirs in there.items()},
        tuple(x for theirs in names.values() for x in theirs if bare(x) not in short),
        tuple(name for name in state if bare(name) not in used),
    )


def layout_shapes(config: EncoderConfig, layout: str = "published") -> dict[str, Shape]:
    """Keys and shapes that a checkpoint of this model has in another layout, without allocating it."""
    names = _names(config, layout)
    found: dict[str, Shape] = {}
    for ours, shape in our_shapes(config).items():
        whole = _kernel_shape(config) if ours == EMBED_WEIGHT else shape
        found.update({name: (whole[0] // len(names[ours]), *whole[1:]) for name in names[ours]})
    return found


# --- the tables ------------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"^(encoder|decoder)\.blocks\.(\d+)\.(.+)$")


def _published(name: str, classifier: bool) -> TheirNames:
    name = re.sub(r"\.attn\.qkv\.(q|v)_bias$", r".attn.\1_bias", name)
    name = re.sub(r"^encoder\.embed\.", "encoder.patch_embed.", name)
    if classifier:
        return (name.removeprefix("encoder."),)
    return ({"decoder.mask_token": "mask_token", "bridge.weight": "encoder_to_decoder.weight"}.get(name, name),)


def _mmaction(name: str, classifier: bool) -> TheirNames:
    """Backbone and head of mmaction2's recogniser, which keeps the published names inside its blocks but for the MLP's."""
    (name,) = _published(name, classifier)
    if name.startswith("head."):
        return (name.replace("head.", "cls_head.fc_cls."),)
    name = name.replace("mlp.fc1.", "mlp.layers.0.0.").replace("mlp.fc2.", "mlp.layers.1.")
    return (f"backbone.{name.replace('patch_embed.proj.', 'patch_embed.projection.')}",)


_KEY_BIAS = ".attention.attention.key.bias"
"""What transformers 5.6 to 5.17 has besides. It moves all of a query's scores alike, so the softmax does not depend on it."""
_HF_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_HF_ELSEWHERE = {
    "encoder.embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
    "encoder.norm.": "videomae.layernorm.",
    "decoder.mask_token": "mask_token",
    "bridge.": "encoder_to_decoder.",
    "head.": "classifier.",
}


def _transformers(name: str, bias: str) -> TheirNames:
    """`bias`: their name of the q or v bias, as a format of its letter and its layer."""
    if not (match := _BLOCK.match(name)):
        for ours, theirs in _HF_ELSEWHERE.items():
            if name.startswith(ours):
                return (name.replace(ours, theirs, 1),)
        return (name,)
    tower, number, inside = match.groups()
    block = f"videomae.encoder.layer.{number}" if tower == "encoder" else f"decoder.decoder_layers.{number}"
    attention = f"{block}.attention.attention"
    if inside == "attn.qkv.weight":
        return tuple(f"{attention}.{layer}.weight" for layer in ("query", "key", "value"))
    if inside.startswith("attn.qkv."):
        letter = inside.removeprefix("attn.qkv.")[0]
        return (f"{attention}.{bias.format(letter=letter, layer={'q': 'query', 'v': 'value'}[letter])}",)
    layer, _, kind = inside.rpartition(".")
    return (f"{block}.{_HF_IN_BLOCK[layer]}.{kind}",)


LAYOUTS: dict[str, Layout] = {
    "published": Layout(
        "VideoMAE V2's own, and VideoMAE-AD's; no head for temporal detection was published on it, which keeps its names here",
        _published,
        (ModelConfig, AvaModelConfig, ClassifierConfig, HeadlessConfig, TadModelConfig),
    ),
    "transformers": Layout(
        "Hugging Face transformers, versions 5.6 and newer",
        lambda name, classifier: _transformers(name, "{layer}.bias"),
        (ModelConfig, ClassifierConfig),
    ),
    "transformers4": Layout(
        "Hugging Face transformers up to 5.5, read by 5.18 and newer too",
        lambda name, classifier: _transformers(name, "{letter}_bias"),
        (ModelConfig, ClassifierConfig),
    ),
    "mmaction2": Layout("mmaction2 and OpenTAD, backbone and head", _mmaction, (ClassifierConfig, HeadlessConfig)),
}
"""Layouts by name."""


_NO_PLACE: dict[type[EncoderConfig], tuple[str, str]] = {
    ModelConfig: ("a masked autoencoder", "a classifier"),
    HeadlessConfig: ("an encoder without a head", "a classifier with one"),
    TadModelConfig: ("a detection head", "a masked autoencoder or a classifier"),
    AvaModelConfig: ("a head on boxes", "a masked autoencoder or a classifier"),
}


def _names(config: EncoderConfig, layout: str) -> dict[str, TheirNames]:
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown key layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if type(config) not in LAYOUTS[layout].stages:
        what, instead = _NO_PLACE[type(config)]
        raise ConfigError(f"the key layout {layout} has no place for {what}, only for {instead}")
    is_classifier = isinstance(
        config, ClassifierConfig | AvaModelConfig
    )  # whose published file has a classifier's names
    return {name: LAYOUTS[layout].names(name, is_classifier) for name in our_shapes(config)}


def our_shapes(config: EncoderConfig) -> dict[str, Shape]:
    """Our parameters' shapes; they do not depend on the clip, so one cube will do."""
    geometry = ClipGeometry(config.tubelet, config.patch, config.patch, config.tubelet, config.patch)
    # the kernel has no part in it, and may be missing here; nor has the clip that positions come from
    own = {"positions": "own"} if isinstance(config, ClassifierConfig) else {}
    anywhere = config.model_copy(update={"attention": "sdpa", "positions_from": None, **own})
    with torch.device("meta"):
        model: SeededModel
        if isinstance(anywhere, ClassifierConfig):
            model = Classifier(anywhere, geometry, seed=None)
        elif isinstance(anywhere, Detector):
            model = pkgutil.resolve_name(anywhere.made_by)(anywhere, geometry)
        else:
            assert isinstance(anywhere, ModelConfig), f"a model of {type(anywhere).__name__}"
            model = MaskedAutoencoder(anywhere, geometry, seed=None)
        return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _kernel_shape(config: EncoderConfig) -> tuple[int, int, int, int, int]:
    """Shape of another layout's Conv3d embedding kernel: (D, c, t, h, w)."""
    return config.encoder.width, 3, config.tubelet, config.patch, config.patch


def _check(found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str) -> None:
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"{len(missing)} missing: {some(missing)}")
    if extra := [name for name in found if name not in expected]:
        problems.append(f"{len(extra)} extra: {some(extra)}")
    shapes = {name: shape for name, shape in found.items() if name in expected}
    if wrong := [f"{name} {got}, expected {expected[name]}" for name, got in shapes.items() if got != expected[name]]:
        problems.append(f"{len(wrong)} of another shape: {some(wrong)}")
    if problems:
        raise CheckpointError(f"the checkpoint does not match {what} of this model config: {'; '.join(problems)}")


def some(names: Iterable[str]) -> str:
    """The first few names, for an error."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
