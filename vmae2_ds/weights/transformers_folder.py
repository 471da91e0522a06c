"""A folder of weights as transformers has it: read, whoever wrote it, and written so that nothing of the user's is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.config.tad import TadModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.disk import whole_file
from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD, is_resized
from vmae2_ds.weights.about import AboutWeights
from vmae2_ds.weights.lazy_state import save_safetensors
from vmae2_ds.weights.ours import CARD, CONFIG, PREPROCESSOR, WEIGHTS
from vmae2_ds.weights.transformers_config import transformers_config_of


def write_folder(
    state: Mapping[str, Tensor],
    config: EncoderConfig,
    about: AboutWeights,
    geometry: ClipGeometry,
    folder: Path,
    source: str,
    versions: str,
) -> None:
    """What `from_pretrained` reads, and a card that says where it comes from; all four files, or none where the disk is full.

    `source` and `versions` (of transformers) are for the card. Raises OSError.
    """
    fields = transformers_config_of(config, geometry, about)
    edge = {"shortest_edge": geometry.height}
    crop = {"height": geometry.height, "width": geometry.width}
    preprocessor = {
        "image_processor_type": "VideoMAEImageProcessor", "do_resize": True, "size": edge, "do_center_crop": True,
        "crop_size": crop, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD),
    }  # fmt: skip
    texts = {
        CONFIG: json.dumps(fields, indent=2, ensure_ascii=False) + "\n",
        PREPROCESSOR: json.dumps(preprocessor, indent=2) + "\n",
        CARD: _card(config, about, geometry, fields["architectures"][0], source, versions),
    }
    content = {name: text.encode() for name, text in texts.items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as parts:  # each gets its name once all are written
        for name, data in content.items():
            parts.enter_context(whole_file(folder / name)).write_bytes(data)
        metadata = about._replace(model=config).metadata() | {"beside": json.dumps(sums)}
        save_safetensors(state, folder / WEIGHTS, metadata)


def _card(
    config: EncoderConfig, about: AboutWeights, geometry: ClipGeometry, architecture: str, source: str, versions: str
) -> str:
    task = "video-classification" if isinstance(config, ClassifierConfig) else "video-feature-extraction"
    cubes = f"cubes of {config.tubelet}x{config.patch}x{config.patch}"
    return f"""---
library_name: transformers
tags: [video, videomae]
pipeline_tag: {task}
---

# VideoMAE V2: {describe(config)}

Load with `{architecture}.from_pretrained(FOLDER)` of transformers {versions}. Clips: {geometry.num_frames} frames of
{geometry.height}x{geometry.width}, normalised with ImageNet's mean and deviation, {cubes}.
{_PREDICTS[about.target] if isinstance(config, ModelConfig) else _classes(about)}
{lost_positions(config)}
Written by vmae2_ds from `{source}`. Training data, licence and intended use are not in the weights: say them here before you
publish this folder.
"""


_PREDICTS = {
    "normalised": "The decoder predicts cubes normalised by their own mean and deviation per colour (`norm_pix_loss: true`).",
    "pixels": "The decoder predicts plain pixels in [0, 1] (`norm_pix_loss: false`).",
    None: "What the decoder predicts is not said in the file of these weights. `norm_pix_loss: true` is the published\n"
    "target, cubes normalised by their own mean and deviation; set it to false for weights trained on plain pixels.",
}


def _classes(about: AboutWeights) -> str:
    return (
        "Classes have their names." if about.labels else "Nobody said the names of the classes; `id2label` has numbers."
    )


def lost_positions(config: EncoderConfig) -> str:
    """What transformers cannot be told of a model's positions, as a line; nothing where it computes the same."""
    if config.positions_from is None and not is_resized(config):
        return ""
    return "Its positions are not the clip's own table, which transformers builds: it computes something else.\n"


def describe(config: EncoderConfig) -> str:
    """A model in a few words."""
    encoder = f"encoder {config.encoder.width}x{config.encoder.depth}"
    if isinstance(config, ModelConfig):
        return f"{encoder}, decoder {config.decoder.width}x{config.decoder.depth}, patch {config.patch}"
    if isinstance(config, TadModelConfig):
        head = f"detection head {config.head.width} wide, {config.head.levels} levels"
        below = f"features {config.encoder.width} wide"
        if adapted := config.adapters.numbers(config.encoder.depth):
            below = f"{encoder} with adapters behind {len(adapted)} of {config.encoder.depth} blocks"
        return f"{head}, {config.num_classes} classes, on {below}"
    if isinstance(config, AvaModelConfig):
        return f"head on boxes, {config.num_classes} actions, on {encoder}, patch {config.patch}"
    assert isinstance(config, ClassifierConfig), f"a model of {type(config).__name__}"
    classes = f"{config.num_classes} classes" if config.num_classes else "no head"
    return f"{encoder}, {classes}, patch {config.patch}"


def is_weights_folder(source: Path) -> bool:
    """Whether it is a folder of weights rather than of runs."""
    return (source / CONFIG).is_file() and not (source / "run.json").exists()


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of its config.json. Raises CheckpointError."""
    try:
        fields = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: no config.json that can be read ({error})") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{folder}: its config.json is no object with fields")
    return fields


def weights_in(folder: Path) -> Path:
    """The folder's file of weights. Raises CheckpointError where there is none, or they are in several."""
    for name in (WEIGHTS, "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    pieces = sorted(folder.glob("*.index.json"))
    why = f"its weights are in pieces ({pieces[0].name}); save them in one file" if pieces else f"it has no {WEIGHTS}"
    raise CheckpointError(f"{folder}: {why}")
