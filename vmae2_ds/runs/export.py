"""Weights that travel: checkpoints of any known key layout in; runs and files out, for others to load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from vmae2_ds.config.model import SIZES, ClassifierConfig, EncoderConfig, SizeName
from vmae2_ds.config.strict import ClipLength, StrictModel
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.disk import check_out_file, check_out_folder, check_there
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.weights.ours import check_ending, refuse_other_file, refuse_other_folder

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signatures below, and nothing else
    from torch import Tensor

    from vmae2_ds.weights.about import AboutWeights

LayoutName = Literal["published", "transformers", "transformers4", "mmaction2"]
MOST_EDGE = 100_000
"""Pixels of a clip's height or width that an option takes."""
VERSIONS = {"transformers": "5.6 or newer", "transformers4": "up to 5.5, or 5.18 and newer"}
"""Versions of transformers that read each layout."""


class ImportArguments(StrictModel):
    """Check a checkpoint against its key layout, every key accounted for, and write it as .safetensors for --train.init."""

    source: tyro.conf.Positional[Path]
    """Checkpoint of a masked autoencoder or a classifier: a .pth, .pt, .bin or .safetensors file, published, of
    transformers or of mmaction2, or a folder with config.json and model.safetensors. No code in it is run."""
    out: Path
    """File to write, named .safetensors."""
    size: SizeName | None = None
    """Size that the model is expected to have; another one is refused. Default: any size, read from the shapes."""
    config: Path | None = None
    """JSON file with what the weights do not show, such as {"encoder": {"heads": 8}} for a width that nobody published:
    some or all fields of the model config, a run.json, or a config.json of transformers."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Floating point type of the written tensors; keep leaves each as it is."""
    force: bool = False
    """Replace the file that is there, whoever wrote it. Without this option only a .safetensors file that import or
    export wrote is replaced."""


def import_weights(asked: ImportArguments) -> str:
    """Write the checkpoint as .safetensors; returns what was read and written."""
    if asked.size is not None and asked.size not in SIZES:
        raise ConfigError(f"unknown size {asked.size!r}; choose one of {', '.join(SIZES)}")
    _check_file(asked.source, asked.out, asked.force)

    from vmae2_ds.weights.files import write_weights
    from vmae2_ds.weights.layouts import in_layout
    from vmae2_ds.weights.source import read_all, read_given
    from vmae2_ds.weights.transformers_folder import describe

    read = read_all(asked.source, read_given(asked.config))
    model = read.found.model
    if asked.size is not None and (model.encoder, model.patch) != (SIZES[asked.size][0], SIZES[asked.size][2]):
        raise CheckpointError(f"{asked.source} is not of size {asked.size}: it has {describe(model)}")
    theirs, types = _in_dtype(in_layout(read.state, model), asked.dtype)
    with _disk(asked.out):
        write_weights(theirs, asked.out, model, read.found.about)
    return (
        f"{asked.source}: {len(read.state)} tensors of layout {read.layout}, none missing, none extra; {describe(model)}; "
        f"{types}; wrote {asked.out}"
    )


class ExportArguments(StrictModel):
    """Write the weights of a run, of one checkpoint or of a file under the key names of VideoMAE V2 or of others, in
    float32."""

    source: tyro.conf.Positional[Path]
    """Weights to export: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), a
    checkpoint runs/.../ckpt/stepN, or a checkpoint file or folder that vmae2 import can read."""
    out: Path
    """File to write: .safetensors, or .pth with the published wrapper {"model": ...}. With --layout transformers: a
    folder, which gets model.safetensors, config.json, preprocessor_config.json and a model card."""
    layout: LayoutName = "published"
    """Key names of the tensors. published: those of VideoMAE V2; transformers: read by its versions from 5.6 on;
    transformers4: by those up to 5.5 and from 5.18 on (5.6 to 5.17 would lose its q and v biases); mmaction2: also
    read by OpenTAD."""
    num_frames: ClipLength | None = None
    """With --layout transformers: number of frames in the clips that the weights were trained on; default: the run's.
    Of a checkpoint file: what the file says, else 16."""
    size: Annotated[int, Field(ge=1, le=MOST_EDGE)] | None = None
    """With --layout transformers: height and width of those clips in pixels; default: the run's. Of a checkpoint file:
    what the file says, else 224."""
    config: Path | None = None
    """JSON file with fields of the model config that the weights of a checkpoint file do not show, such as {"encoder":
    {"heads": 8}}. A run says them itself."""
    labels: Path | None = None
    """For a classifier, a text file with one class name per line; default: the run's labels.txt, or the names in the
    checkpoint file."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "float32"
    """Floating point type of the written tensors; keep leaves each as it is (in a run: float32)."""
    force: bool = False
    """Replace the file that is there, whoever wrote it. Without this option only a .safetensors file that import or
    export wrote is replaced. With --layout transformers: write into a folder that holds something else, and replace
    the four files there."""


def export_weights(asked: ExportArguments) -> str:
    """Write the weights in the layout asked for; returns what was read and written."""
    is_folder = asked.layout in VERSIONS
    if is_folder:
        if asked.out.suffix in (".safetensors", ".pth", ".pt", ".bin") or asked.out.is_file():
            raise ConfigError(f"--out {asked.out}: transformers reads a folder; name one")
        check_there(asked.source)
        check_out_folder(
            asked.out, inputs=_files_of(asked.source), is_ours=None if asked.force else refuse_other_folder
        )
    else:
        _check_file(asked.source, asked.out, asked.force)

    from vmae2_ds.weights.files import write_weights
    from vmae2_ds.weights.layouts import in_layout
    from vmae2_ds.weights.source import read_given
    from vmae2_ds.weights.transformers_folder import describe, lost_positions, write_folder

    ours, model, about, checkpoint = _weights_of(asked.source, read_given(asked.config))
    if asked.labels is not None:
        about = about._replace(labels=_names_in(asked.labels, model))
    theirs, types = _in_dtype(in_layout(ours, model, asked.layout), asked.dtype)
    with _disk(asked.out):
        if is_folder:
            clip = about.clip or {}
            frames, edge = asked.num_frames or clip.get("num_frames", 16), asked.size or clip.get("size", 224)
            geometry = ClipGeometry(frames, edge, edge, model.tubelet, model.patch)
            about = about._replace(clip={**clip, "num_frames": frames, "size": edge})
            write_folder(theirs, model, about, geometry, asked.out, str(checkpoint), VERSIONS[asked.layout])
        else:
            write_weights(theirs, asked.out, model, about)
    said = (
        f"{checkpoint}: {len(theirs)} tensors of layout {asked.layout}; {describe(model)}; {types}; wrote {asked.out}"
    )
    notes = [lost_positions(model).strip(), _nameless(model, about)] if is_folder else []
    return ". ".join([said, *filter(None, notes)])


def _nameless(model: EncoderConfig, about: AboutWeights) -> str:
    """What stands in a transformers folder for the names of classes that nobody said; nothing where they are known."""
    if not isinstance(model, ClassifierConfig) or not model.num_classes or about.labels:
        return ""
    last = model.num_classes - 1
    return f"Nobody said the names of its classes: LABEL_0 to LABEL_{last} stand there; --labels FILE names them"


def _check_file(source: Path, out: Path, force: bool) -> None:
    """Raises ConfigError where `out` cannot be written, is read, or would be lost."""
    check_there(source)
    check_ending(out)
    check_out_file(out, inputs=_files_of(source), is_ours=None if force else refuse_other_file)


def _weights_of(
    source: Path, given: Mapping[str, object] | None
) -> tuple[Mapping[str, Tensor], EncoderConfig, AboutWeights, Path]:
    """Ours, the model, what is known of it, and the checkpoint."""
    from vmae2_ds.runs.open import about_run, is_run, labels_of
    from vmae2_ds.runs.trained import weights_of_run
    from vmae2_ds.weights.source import read_all

    names = labels_of(source)
    if not is_run(source):
        read = read_all(source, given)
        labels = None if names is None else tuple(names)
        return read.state, read.found.model, read.found.about._replace(labels=labels), source
    if given is not None:
        raise ConfigError(f"--config is for files: the run {source} says what its model is; leave it out")
    found = weights_of_run(source)
    return found.weights, found.run.model, about_run(found.run, names), found.checkpoint


def _names_in(file: Path, model: EncoderConfig) -> tuple[str, ...]:
    from vmae2_ds.runs.open import read_names

    if not isinstance(model, ClassifierConfig) or not model.num_classes:
        raise ConfigError(f"--labels {file} is for classifiers, and this model has no classes; leave it out")
    return tuple(read_names(file, model.num_classes, "--labels"))


def _in_dtype(state: Mapping[str, Tensor], dtype: str) -> tuple[Mapping[str, Tensor], str]:
    """The tensors in that type, and a word on what they are and were."""
    import torch

    from vmae2_ds.weights.lazy_state import dtypes_of, in_dtype

    before = ", ".join(sorted({str(found).removeprefix("torch.") for found in dtypes_of(state).values()}))
    if dtype == "keep":
        return state, f"{before} kept"
    return in_dtype(state, getattr(torch, dtype)), dtype if before == dtype else f"{dtype} (was {before})"


def _files_of(source: Path) -> Iterator[Path]:
    """Every file that reading `source` may need, and what its run wrote beside; looked up only where --out exists."""
    if not source.is_dir():
        yield source
        return
    runs = [top for top in (source.parent.parent, source, *source.iterdir()) if (top / "run.json").is_file()]
    for run in runs:  # not an earlier export that lies in it
        yield from (run / "run.json", run / "ema.safetensors", *(run / "ckpt").rglob("*"))
    if not runs:
        yield from source.iterdir()


@contextlib.contextmanager
def _disk(out: Path) -> Iterator[None]:
    """What the disk refuses is one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}; nothing was written") from None
