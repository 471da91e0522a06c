"""Weights that travel: checkpoints of any known key layout in; runs and files out, for others to load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from vmae2_ds.config import SIZES, ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signatures below, and nothing else
    from torch import Tensor

    from vmae2_ds.model.layouts import State

LayoutName = Literal["published", "transformers", "transformers4", "mmaction2"]


def import_weights(source: tyro.conf.Positional[Path], /, out: Path, size: str | None = None) -> str:
    """Check a checkpoint against its key layout, every key accounted for, and write it as .safetensors for --train.init.

    Args:
        source: A .pth, .pt, .bin or .safetensors file of a masked autoencoder or a classifier, published, of transformers or
            of mmaction2, or a folder with config.json and model.safetensors. No code in it is run.
        out: The .safetensors file to write.
        size: Expected model size (tiny, small, base, large, huge, giant, 6b); default: read from the shapes.
    """
    from vmae2_ds.model.layouts import to_layout
    from vmae2_ds.model.published import write_weights

    if size is not None and size not in SIZES:
        raise ConfigError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
    ours, config, layout = read_any(source)
    if size is not None and (config.encoder, config.patch) != (SIZES[size][0], SIZES[size][2]):
        raise CheckpointError(f"{source} is not of size {size}: it has {_describe(config)}")
    write_weights(to_layout(ours, config), out, config)
    return (
        f"{source}: {len(ours)} tensors of layout {layout}, none missing, none extra; {_describe(config)}; wrote {out}"
    )


def export_weights(
    source: tyro.conf.Positional[Path],
    /,
    out: Path,
    layout: LayoutName = "published",
    num_frames: int | None = None,
    size: int | None = None,
) -> str:
    """Write the weights of a run, of one checkpoint or of a file under the key names of VideoMAE V2 or of others, in float32.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs (the newest), runs/.../ckpt/stepN, or a file.
        out: The file to write: .safetensors, or .pth with the published wrapper {"model": ...}. For transformers a folder,
            which gets model.safetensors, config.json, preprocessor_config.json and a model card.
        layout: published; transformers, which versions from 5.6 on read, or transformers4, for those up to 5.5 and from 5.18
            on (5.6 to 5.17 would lose its q and v biases); mmaction2, which OpenTAD reads as well.
        num_frames: For transformers, frames of the clips that the weights were trained on; default: the run's, 16 for a file.
        size: For transformers, the clips' height and width; default: the run's, 224 for a file.
    """
    from vmae2_ds.model.layouts import in_layout, to_layout
    from vmae2_ds.model.published import write_weights
    from vmae2_ds.train.runs import find_checkpoint
    from vmae2_ds.train.zero_weights import open_weights

    if source.is_dir() and not (source / "config.json").is_file():
        run, checkpoint = find_checkpoint(source)
        config = run.model
        theirs: Mapping[str, Tensor] = in_layout(open_weights(checkpoint), config, layout)
        frames, edge = run.data.num_frames, run.data.size
    else:
        ours, config, _ = read_any(source)
        theirs = to_layout(ours, config, layout)
        checkpoint, frames, edge = source, 16, 224
    if layout in ("transformers", "transformers4"):
        frames, edge = num_frames or frames, size or edge
        geometry = ClipGeometry(frames, edge, edge, config.tubelet, config.patch)
        versions = "5.6 or newer" if layout == "transformers" else "up to 5.5, or 5.18 and newer"
        _write_transformers(theirs, config, geometry, out, str(checkpoint), versions)
    else:
        write_weights(theirs, out, config)
    return f"{checkpoint}: {len(theirs)} tensors of layout {layout}; {_describe(config)}; wrote {out}"


def read_any(source: Path) -> tuple[State, ModelConfig | ClassifierConfig, str]:
    """Our state dict, the model and the key layout of a file, or of a folder as transformers writes it.

    Raises CheckpointError where it is of no known layout, or a key of the layout is missing, left over or of another shape.
    """
    from vmae2_ds.model.layouts import best_reading, from_layout
    from vmae2_ds.model.published import infer_model, named, read_published, written_model
    from vmae2_ds.model.transformers_config import config_of_transformers

    if not source.is_dir():
        state = read_published(source)
        with named(source):
            noted = written_model(source)
            if noted is not None:
                layout = best_reading(state, noted).layout
                return from_layout(state, noted, layout), noted, layout
            found = infer_model(state)
            bare = {name.removeprefix(found.prefix): tensor for name, tensor in state.items()}
            return from_layout(bare, found.config, found.layout), found.config, found.layout
    try:
        config = config_of_transformers(json.loads((source / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: no config.json that can be read ({error})") from None
    state = read_published(source / "model.safetensors")
    layout = "transformers4" if any(name.endswith(".q_bias") for name in state) else "transformers"
    with named(source):
        return from_layout(state, config, layout), config, layout


def _write_transformers(
    state: Mapping[str, Tensor],
    config: EncoderConfig,
    geometry: ClipGeometry,
    folder: Path,
    source: str,
    versions: str,
) -> None:
    """What `from_pretrained` reads, and a card that says where it comes from."""
    from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD
    from vmae2_ds.model.published import write_weights
    from vmae2_ds.model.transformers_config import transformers_config_of

    if folder.suffix or folder.is_file():
        raise ConfigError(f"--out {folder}: transformers reads a folder; name one")
    write_weights(state, folder / "model.safetensors", config)
    fields = transformers_config_of(config, geometry)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    edge = {"shortest_edge": geometry.height}
    crop = {"height": geometry.height, "width": geometry.width}
    preprocessor = {
        "image_processor_type": "VideoMAEImageProcessor", "do_resize": True, "size": edge, "do_center_crop": True,
        "crop_size": crop, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD),
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (folder / "README.md").write_text(_card(config, geometry, fields["architectures"][0], source, versions))


def _card(config: EncoderConfig, geometry: ClipGeometry, architecture: str, source: str, versions: str) -> str:
    task = "video-classification" if isinstance(config, ClassifierConfig) else "video-feature-extraction"
    cubes = f"cubes of {config.tubelet}x{config.patch}x{config.patch}"
    return f"""---
library_name: transformers
tags: [video, videomae]
pipeline_tag: {task}
---

# VideoMAE V2: {_describe(config)}

Load with `{architecture}.from_pretrained(FOLDER)` of transformers {versions}. Clips: {geometry.num_frames} frames of
{geometry.height}x{geometry.width}, normalised with ImageNet's mean and deviation, {cubes}.

Written by vmae2_ds from `{source}`. Training data, licence and intended use are not in the weights: say them here before you
publish this folder.
"""


def _describe(config: EncoderConfig) -> str:
    encoder = f"encoder {config.encoder.width}x{config.encoder.depth}"
    if isinstance(config, ModelConfig):
        return f"{encoder}, decoder {config.decoder.width}x{config.decoder.depth}, patch {config.patch}"
    assert isinstance(config, ClassifierConfig), f"a model of {type(config).__name__}"
    return f"{encoder}, {config.num_classes} classes, patch {config.patch}"
