"""`vmae2 visualize`: clips as a masked autoencoder sees and completes them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro
from pydantic import Field

from vmae2_ds.config.pretrain import DecoderMask, PretrainConfig, Target
from vmae2_ds.config.strict import ClipLength, Edge, Part, Seed, StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.contracts import Masks, PretrainBatch, ReadFailure
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.disk import check_out_folder, check_there, write_whole
from vmae2_ds.dist import default_device
from vmae2_ds.downstream.hidden_error import (
    chosen_clip,
    hidden_error,
    in_words,
    measure_clips,
    on_list,
    spread_places,
    summed,
)
from vmae2_ds.downstream.trained_on import trained_on
from vmae2_ds.draw.charts import draw_curves
from vmae2_ds.draw.pictures import (
    DecodedPass,
    Reconstruction,
    animate_reconstruction,
    draw_reconstruction,
    filled_in,
)
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.json_lines import rows_of
from vmae2_ds.masking import count_masks

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signature below, and nothing else
    from torch import Tensor

    from vmae2_ds.data.feed.pretrain import PretrainDataset
    from vmae2_ds.objectives import Reconstruct
    from vmae2_ds.weights.layouts import StateDict

log = logging.getLogger(__name__)

MOST_CLIPS = 10_000
_OURS = re.compile(r"\.?(clip\d+\.(png|gif)|curves\.png|pictures\.json)(\.part\d+)?")


def _is_ours(folder: Path) -> bool:
    return all(_OURS.fullmatch(path.name) for path in folder.iterdir())


class VisualizeArguments(StrictModel):
    """Draw clips as a masked autoencoder sees and completes them, a PNG and an animation each, and a run's curves.

    Rows: the clip, what the encoder sees, what the decoder has to fill, the reconstruction alone, and with the visible
    cubes pasted in; then the whole frame: every hidden cube, decoded in as many passes of the decoder's mask as cover all.
    Returns the folder.
    """

    source: tyro.conf.Positional[Path]
    """Masked autoencoder: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), a
    checkpoint runs/.../ckpt/stepN, or a checkpoint file or folder (published, of transformers, or written by vmae2
    import)."""
    manifest: Path | None = None
    """List of videos to draw; default: the run's own. A checkpoint file has none, so it needs this option."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    clips: Annotated[int, Field(ge=1, le=MOST_CLIPS)] = 6
    """Number of videos to draw, spread over the list."""
    measured_clips: Annotated[int, Field(ge=0, le=MOST_CLIPS)] = 64
    """Number of videos, spread over the list, whose error on hidden cubes is measured beside two guesses, where the target is
    pixels; 0: none."""
    seed: Seed = 0
    """Seed of frames, crops and masks; another seed draws others of the same videos."""
    out: Path | None = None
    """Folder to write the pictures to; default: pictures/STEP in the run folder, or FILE_pictures beside a checkpoint
    file."""
    num_frames: ClipLength | None = None
    """Number of frames in a clip; default: the run's. Of a checkpoint file: what the file says, else 16."""
    size: Edge | None = None
    """Height and width of a clip in pixels; default: the run's. Of a checkpoint file: what the file says, else 224."""
    stride: ClipLength | None = None
    """Step between two frames of a clip; default: the run's. Of a checkpoint file: what the file says, else 4."""
    encoder_ratio: Part | None = None
    """Share of cubes hidden from the encoder; default: the run's, for a checkpoint file 0.9."""
    decoder: DecoderMask | None = None
    """Mask that chooses what one pass of the decoder reconstructs; default: the run's, for a checkpoint file
    running_cell."""
    decoder_ratio: Part | None = None
    """Share of cubes that one pass of the decoder leaves out; default: the run's, for a checkpoint file 0.5."""
    target: Target | None = None
    """What the decoder predicts: normalised cubes (published) or pixels; default: the run's. Of a checkpoint file: what
    the file says, else normalised."""
    config: Path | None = None
    """JSON file with fields of the model config that the weights of a checkpoint file do not show, such as {"encoder":
    {"heads": 8}}. A run says them itself."""


def visualize(asked: VisualizeArguments) -> Path:
    """Draw the clips asked for; returns the folder of the pictures."""
    if asked.out is not None:
        check_out_folder(asked.out, inputs=[] if asked.manifest is None else [asked.manifest], is_ours=_is_ours)
    check_there(asked.source)

    from vmae2_ds.checkpoint.zero_weights import read_weights
    from vmae2_ds.config.stages import CLIP_OPTIONS, with_options
    from vmae2_ds.data.feed.pretrain import PretrainDataset
    from vmae2_ds.runs.open import clip_line
    from vmae2_ds.runs.ready import autoencoder_of
    from vmae2_ds.train.report import write_report

    data = asked.model_dump(include=CLIP_OPTIONS)
    mask = asked.model_dump(include={"encoder_ratio", "decoder", "decoder_ratio"})
    found = _find(asked.source, asked.manifest, asked.config)
    learned = {"target": asked.target, "context_weight": 0.0 if asked.decoder == "none" else None}
    config = with_options(_by_share(found.config, asked), data=data, mask=mask, objective=learned)
    count_masks(config.mask, config.geometry)  # refuses what no mask can be
    if asked.manifest is None and config.data.manifest is not None and not config.data.manifest.exists():
        raise ConfigError(
            f"{config.data.manifest}, the list of the run {asked.source}, is not there; name one with --manifest"
        )
    other = {**data, **mask, "target": asked.target, "seed": asked.seed or None}
    folder = asked.out or found.pictures / _label(found, asked.manifest, other)
    inputs = [path for path in (asked.manifest, config.data.manifest) if path is not None]
    check_out_folder(folder, inputs=inputs, is_ours=_is_ours)
    if asked.manifest is not None:
        config = on_list(config, asked.manifest, asked.root)
    elif asked.root is not None:
        config = config.changed(data={"root": asked.root})
    drawing = _for_drawing(config, asked.seed)
    dataset = PretrainDataset(drawing, open_mixture(config.data).with_reader("pyav"))
    weights = read_weights(found.checkpoint) if found.weights is None else found.weights
    objective = autoencoder_of(config, weights).to(default_device()).eval()
    shown = min(asked.clips, dataset.mixture.num_videos)
    log.info("%s: %s of %s", found.checkpoint, counted(shown, "clip"), clip_line(asked.source, config.data, **data))
    drawn: list[dict[str, Any]] = []
    written: list[Path] = []
    for number, view in enumerate(reconstruct(objective, drawing, dataset, asked.clips)):
        still, moving = (folder / f"clip{number:02d}{suffix}" for suffix in (".png", ".gif"))
        draw_reconstruction(view.picture, still)
        animate_reconstruction(view.picture, moving)
        log.info("%s: %s", still, view.picture.title)
        written += [still, moving]
        drawn.append({"picture": still.name, "animation": moving.name, **view.about})
    for stale in {path for path in folder.glob("clip*") if _OURS.fullmatch(path.name)} - set(written):
        stale.unlink()  # of an earlier call for more clips
    settings = {
        **config.data.model_dump(include=set(data)),
        **config.mask.model_dump(),
        **config.objective.model_dump(),
    }
    measured = _measure(objective, drawing, dataset, asked, found)
    about = {
        "checkpoint": str(found.checkpoint),
        "seed": asked.seed,
        **settings,
        "hidden_cubes": measured,
        "clips": drawn,
    }
    write_whole(folder / "pictures.json", json.dumps(about, indent=1) + "\n")
    if found.run is not None:
        draw_curves(list(rows_of(found.run / "metrics.jsonl")), folder / "curves.png")
        if asked.out is None:
            log.info("report: %s", write_report(found.run))
    log.info("%s", measured["line"])
    return folder


NOT_MEASURED = "hidden cubes: not measured, because the prediction of a normalised target carries no colour"


def _measure(
    objective: Reconstruct,
    config: PretrainConfig,
    dataset: PretrainDataset,
    asked: VisualizeArguments,
    found: _SourceFound,
) -> dict[str, Any]:
    """The error on hidden cubes of `asked.measured_clips` clips, as pictures.json has it: in a line, together, and of each."""
    if config.objective.target != "pixels":
        return {"line": NOT_MEASURED}
    if not asked.measured_clips:
        return {"line": "hidden cubes: not measured, as asked for by --measured-clips 0"}
    clips = list(measure_clips(objective, config, dataset, asked.measured_clips))
    both = summed(clip.error for clip in clips)
    trained = _trained_on([clip.entry for clip in clips], asked.manifest, found)
    return {
        "line": f"hidden cubes of {_claim(len(clips), trained, found.config)}: {in_words(both)}",
        "videos": len(clips),
        "trained_on": trained,
        **both.as_json(),
        "clips": [{"video": clip.video, **clip.error.as_json()} for clip in clips],
    }


def _trained_on(entries: list[VideoEntry], manifest: Path | None, found: _SourceFound) -> int | None:
    """How many of the videos the run was trained on; None where its lists are not known, or not there."""
    if found.run is None:
        return None
    if manifest is None:
        return len(entries)
    try:
        mixture = open_mixture(found.config.data)
    except (ConfigError, DataError):
        return None
    names = trained_on(entries, mixture)
    return sum(entry.name in names for entry in entries)


def _claim(videos: int, trained: int | None, config: PretrainConfig) -> str:
    """What videos they are to the model, which is said to have seen none of them only where that is known."""
    if trained is None:
        return f"{counted(videos, 'video')} (whether it was trained on them is not known)"
    if trained == videos:
        return f"{counted(videos, 'video')} it was trained on"
    if trained:
        return f"{counted(videos, 'video')}, {trained} of which it was trained on"
    if (
        config.train.init is not None or config.train.branch is not None
    ):  # the weights that it began with may have learned from them
        return f"{counted(videos, 'video')} that this run was not trained on"
    return counted(videos, "unseen video")


def _by_share(config: PretrainConfig, asked: VisualizeArguments) -> PretrainConfig:
    """The run's masks without a number of cubes where a share, or another mask, is asked for."""
    by_number = {"visible": asked.encoder_ratio, "decoded": asked.decoder_ratio or asked.decoder}
    return config.changed(mask={name: None for name, other in by_number.items() if other is not None})


class _SourceFound(NamedTuple):
    """What SOURCE means."""

    source: Path
    config: PretrainConfig
    checkpoint: Path
    run: Path | None
    """The run folder; a file has none."""
    weights: StateDict | None
    """A file's, which are read to know the model; a run's are read after everything else was looked at."""

    @property
    def pictures(self) -> Path:
        """Folder of folders of pictures."""
        if self.run is not None:
            return self.run / "pictures"
        whole = self.source if self.source.name not in ("", "..") else self.source.resolve()
        return whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}_pictures")


def _find(source: Path, manifest: Path | None, fields: Path | None) -> _SourceFound:
    """Raises ConfigError or CheckpointError where `source` is no masked autoencoder, or a file without a list of videos."""
    from vmae2_ds.runs.folder import find_checkpoint
    from vmae2_ds.runs.open import is_run, open_model
    from vmae2_ds.weights.source import read_given

    given = read_given(fields)
    run: Path | None = None
    if is_run(source) and given is None:
        (config, checkpoint), weights = find_checkpoint(source), None
        run = checkpoint.parent.parent
    else:
        if manifest is None and source.exists() and not is_run(source):
            raise ConfigError(f"{source} is no run, which would name its videos; give --manifest LIST")
        config, weights, checkpoint = open_model(source, given=given)
    if not isinstance(config, PretrainConfig):
        what = f"a {config.stage} run" if run else "a classifier"
        raise ConfigError(f"{source} is {what}: only a masked autoencoder draws what it does not see")
    return _SourceFound(source, config, checkpoint, run, weights)


def _label(found: _SourceFound, manifest: Path | None, asked: dict[str, Any]) -> str:
    """A folder's name that tells these pictures from others of the same model: the step, the list, and what was asked."""
    words = [found.checkpoint.name] * (found.run is not None) + ([manifest.stem[:40]] if manifest is not None else [])
    words += [f"{name.replace('_', '-')}-{value}" for name, value in asked.items() if value is not None]
    return "_".join(words)


class DrawnClip(NamedTuple):
    """One clip, ready to be drawn, and what is kept about it."""

    picture: Reconstruction
    about: dict[str, Any]


def reconstruct(
    objective: Reconstruct, config: PretrainConfig, dataset: PretrainDataset, count: int
) -> Iterator[DrawnClip]:
    """Predictions for `count` videos spread over the data set, one view each, titled with the video and the clip's loss."""
    geometry, target, weight = config.geometry, config.objective.target, config.objective.context_weight
    for place in spread_places(dataset, count):
        clip = chosen_clip(config, dataset, place)
        decoded, losses = decode_passes(objective, clip.clip_THWC[None], clip.passes, weight)
        failures = list(dict.fromkeys(clip.failures))  # one may be drawn twice
        about = {"video": clip.entry.name, "unused": [one._asdict() for one in failures], **losses}
        title = title_of(clip.entry.name, failures, losses)
        clip_THWC = clip.clip_THWC.numpy()
        if target == "pixels":
            nothing_NP = np.full((geometry.num_cubes, geometry.cube_values), np.nan, np.float32)
            predicted_NP = filled_in(nothing_NP, decoded, nothing_NP, target)
            error = hidden_error(clip_THWC, predicted_NP, clip.passes[0].visible_V, geometry)
            about.update(error.as_json())
            title = f"{title}; {in_words(error, whose='its')}"
        yield DrawnClip(Reconstruction(clip_THWC, decoded, geometry, target, title, weight), about)


def decode_passes(
    objective: Reconstruct, clip_1THWC: Tensor, passes: list[Masks], context_weight: float = 0.0
) -> tuple[list[DecodedPass], dict[str, float]]:
    """What each pass predicts; and the mean squared error over the first pass's supervised cubes (`loss`, as in training:
    others count as `context_weight` of one) and over all that some pass supervises (`loss_hidden`), each cube once, as the
    first pass that decodes it has it."""
    import torch

    decoded, losses, error_N = [], [], np.full(objective.geometry.num_cubes, np.nan)
    for masks in passes:
        batch = PretrainBatch.of_clips(clip_1THWC, [masks]).to(default_device())
        with torch.no_grad():
            predicted_BMP, target_BMP = objective.predict(batch)
        error_M = (predicted_BMP.float() - target_BMP).square().mean(dim=-1)[0].double().cpu().numpy()
        decoded.append(DecodedPass(masks, predicted_BMP[0].float().cpu().numpy()))
        part_M = np.where(masks.is_supervised_M, 1.0, context_weight)
        losses.append(float(part_M @ error_M / (part_M.sum() or 1.0)))
        is_new_M = masks.is_supervised_M & np.isnan(error_N[masks.decode_M])
        error_N[masks.decode_M[is_new_M]] = error_M[is_new_M]
    return decoded, {"loss": losses[0], "loss_hidden": float(np.nanmean(error_N))}


def title_of(path: str, failures: list[ReadFailure], losses: dict[str, float]) -> str:
    """The video, what of the list it stands in for and why, and its losses."""
    shown = f"{Path(path).name}, loss {losses['loss']:.3f}, over all hidden cubes {losses['loss_hidden']:.3f}"
    if not failures:
        return shown
    named = ", ".join(f"{Path(one.path).name} ({one.reason})" for one in failures)
    return f"{named} could not be used; in {'its' if len(failures) == 1 else 'their'} place: {shown}"


def _for_drawing(config: PretrainConfig, seed: int) -> PretrainConfig:
    """One view per video, drawn from another seed than training's epoch 0 unless that is asked for."""
    data = config.data.model_copy(update={"views": 1, "crop_on": "workers"})
    return config.model_copy(update={"data": data, "train": config.train.model_copy(update={"seed": seed})})
