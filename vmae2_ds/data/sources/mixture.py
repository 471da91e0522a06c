"""Which videos a run draws from: one manifest, or a mixture file of several sources with shares, strides and kinds."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from vmae2_ds.config.finetune import LabelledDataConfig
from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.config.run import DataConfig, ReaderName
from vmae2_ds.config.strict import StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import ReadAs
from vmae2_ds.data.readers.choice import choose_reader
from vmae2_ds.data.readers.storage import check_template
from vmae2_ds.data.sources.class_names import read_class_names
from vmae2_ds.data.sources.held_back import is_held_back
from vmae2_ds.data.sources.list_formats import PLAIN_LIST, ListForm
from vmae2_ds.data.sources.manifest import Manifest, read_manifest
from vmae2_ds.data.sources.order import SampleKey, SampleOrder
from vmae2_ds.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

SAMPLED, SAMPLE_TIMEOUT_S = 4, 30.0
"""Videos of each source that --data.reader auto measures, and the seconds that one may take where no limit was set."""

SHARE_TOLERANCE = 1e-6
"""How far shares may be from 1 together; what is off is most likely a source forgotten."""


class SourceConfig(StrictModel):
    """One `[[source]]` table of a mixture file."""

    name: str = Field(min_length=1)
    """Name of the source in counts, strides and messages."""
    manifest: Path
    """List or indexed folder of the source's videos, relative to data.root, else to the mixture file's folder."""
    root: Path | None = None
    """Folder of the source's videos, relative to the same place as its manifest; default: the manifest's folder."""
    weight: float | None = Field(None, gt=0)
    """Weight of the source; its share is this divided by the sum of all weights."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the source in every stretch of samples; the shares of a file sum to 1."""
    max_epochs: float | None = Field(None, gt=0)
    """Passes over the source after which it is used up and the others take its share."""
    stride: int | None = Field(None, gt=0)
    """Step between frames; default: data.source_strides, then data.stride."""
    fps: float | None = Field(None, gt=0)
    """Frames per second of the clip, instead of a stride: each video gets the step that comes nearest at its own frame
    rate."""
    kind: Literal["video", "frames", "shards"] = "video"
    """What the manifest lists: video files, folders of frames, or videos in tar shards."""
    template: str = "{:05}.jpg"
    """File name of frame number k in a folder of frames, as a Python format."""
    reader: ReaderName | None = None
    """Video reader for this source; default: data.reader."""

    @model_validator(mode="after")
    def _fits_together(self) -> SourceConfig:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride and fps say the same thing twice; keep one")
        if self.weight is not None and self.share is not None:
            raise ValueError("weight and share say the same thing twice; keep one")
        if self.kind == "frames":
            if self.fps is not None:
                raise ValueError("frame folders do not tell their rate; give a stride instead of fps")
            try:
                check_template(self.template)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self


class MixtureConfig(StrictModel):
    """A mixture file, as written."""

    name: str
    """Name of the mixture in messages."""
    source: tuple[SourceConfig, ...] = Field(min_length=1)
    """The sources; their order is part of a run's identity."""

    @model_validator(mode="after")
    def _fits_together(self) -> MixtureConfig:
        names = [source.name for source in self.source]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"source {sorted(twice)[0]!r} given twice")
        for field in ("share", "weight"):
            given = [source.name for source in self.source if getattr(source, field) is not None]
            if given and len(given) < len(names):
                lacking = sorted(set(names) - set(given))
                raise ValueError(
                    f"{given[0]!r} has a {field} and {lacking[0]!r} has none; give all sources one, or none"
                )
        total = sum(source.share or 0 for source in self.source)
        if total and abs(total - 1) > SHARE_TOLERANCE:
            raise ValueError(f"the shares sum to {total:g}, not to 1; fix them, or write them as weight")
        return self


class Source(NamedTuple):
    """One source, opened."""

    name: str | None
    """Name of the source; None where each row of the manifest names its own."""
    manifest: Manifest
    share: float
    max_videos: int | None
    """Samples after which it is used up."""
    stride: int | None
    fps: float | None
    how: ReadAs


class Mixture(NamedTuple):
    """The sources that a run draws from."""

    name: str
    """The mixture's file or name, for messages."""
    sources: tuple[Source, ...]
    form: ListForm = PLAIN_LIST
    """How the lists were read, and the names of the classes."""
    written: tuple[SourceConfig, ...] = ()
    """The sources as the mixture file has them; none where a single list was named."""

    @classmethod
    def of_manifest(cls, manifest: Manifest, reader: str) -> Mixture:
        """A mixture of one."""
        return cls(manifest.file, (Source(None, manifest, 1.0, None, None, None, ReadAs(reader=reader)),))

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which samples are counted."""
        return tuple(
            name for source in self.sources for name in ((source.name,) if source.name else source.manifest.sources)
        )

    @property
    def num_videos(self) -> int:
        """Videos of all sources: an epoch of the mixture is that many samples."""
        return sum(len(source.manifest) for source in self.sources)

    def key_of(self, video: int) -> SampleKey:
        """The first epoch's sample of video 0 .. num_videos-1, source by source."""
        for number, source in enumerate(self.sources):
            if video < len(source.manifest):
                return SampleKey(0, video, number)
            video -= len(source.manifest)
        raise IndexError(f"{self.name} has {self.num_videos} videos")

    def choose_reader(self, timeout_s: float) -> str:
        """The reader that suits a sample of the videos whose source names none; measured, and logged with its figures."""
        undecided = [source for source in self.sources if source.how.reader == "auto" and source.how.kind == "video"]
        videos = [
            source.manifest[len(source.manifest) * number // SAMPLED]
            for source in undecided
            for number in range(min(SAMPLED, len(source.manifest)))
        ]
        choice = choose_reader(videos, ReadAs(), timeout_s or SAMPLE_TIMEOUT_S)
        log.info("%s", choice)
        return choice.name

    def with_reader(self, reader: str) -> Mixture:
        """This mixture, read with `reader` where a source asks for no other."""
        sources = tuple(
            source._replace(how=source.how._replace(reader=reader)) if source.how.reader == "auto" else source
            for source in self.sources
        )
        return self._replace(sources=sources)

    def identity(self) -> dict[str, Any]:
        """What decides which video every position of a run is, and of which class: the lists' and the names' content, and how
        sources are mixed and read. Plain JSON.
        """
        named = {} if self.form.names is None else {"labels": self.form.names.digest}
        digests = [source.manifest.rows.digest for source in self.sources]
        if not self.written:
            return {"manifest": digests[0], **named}
        sources = {
            f"source {source.name!r}": {"list": digest, **source.model_dump(mode="json", exclude={"manifest", "root"})}
            for source, digest in zip(self.written, digests, strict=True)
        }
        return {"the sources' order": list(sources), **sources, **named}

    def order(self, seed: int) -> SampleOrder:
        """The run's sequence of samples."""
        return SampleOrder(
            [len(source.manifest) for source in self.sources],
            seed,
            shares=[source.share for source in self.sources],
            limits=[source.max_videos for source in self.sources],
        )

    def describe(self) -> list[str]:
        """A line a source: how many videos, their share, how often they are seen in an epoch of the mixture."""
        lines = []
        for source in self.sources:
            videos = len(source.manifest)
            passes = source.share * self.num_videos / videos
            end = "" if source.max_videos is None else f", at most {counted(source.max_videos / videos, 'epoch')}"
            lines.append(
                f"source {source.name or self.name}: {counted(videos, 'video')}, {source.share:.2%} of the samples, "
                f"{counted(float(f'{passes:.3g}'), 'pass', 'passes')} in an epoch{end}"
            )
        return lines


def open_mixture(data: DataConfig, form: ListForm | None = None) -> Mixture:
    """The videos to train on of those named by `data.manifest` or `data.mixture`; as `open_parts`."""
    return open_parts(data, form)[0]


def open_parts(data: DataConfig, form: ListForm | None = None) -> tuple[Mixture, Mixture | None]:
    """The videos named by `data.manifest` or `data.mixture`: those to train on, and those held back by `data.hold_back`, None
    where there are none. Raises ConfigError or DataError.

    `form`: that of `form_of`, where it has been read already.
    """
    if form is None:
        form = form_of(data)
    if data.manifest is not None:
        train, held = _parts(read_manifest(data.manifest, data.root, form=form), data)
        mixture = Mixture.of_manifest(train, data.reader)._replace(form=form)
        return mixture, None if held is None else Mixture.of_manifest(held, data.reader)
    check_videos_are_named(data)
    config, base = _read_mixture(data)
    opened = [(source, *_parts(_open_source(source, base, form), data)) for source in config.source]
    weights = [source.share or source.weight or len(train) for source, train, _ in opened]
    sources = [
        Source(
            source.name,
            train,
            weight / sum(weights),
            None if source.max_epochs is None else int(source.max_epochs * len(train)),
            source.stride,
            source.fps,
            ReadAs("frames" if source.kind == "frames" else "video", source.template, source.reader or data.reader),
        )
        for (source, train, _), weight in zip(opened, weights, strict=True)
    ]
    mixture = Mixture(str(data.mixture), tuple(sources), form, config.source)
    held_back = tuple(
        source._replace(manifest=held) for source, (_, _, held) in zip(sources, opened, strict=True) if held is not None
    )
    return mixture, Mixture(str(data.mixture), held_back) if held_back else None


def _parts(manifest: Manifest, data: DataConfig) -> tuple[Manifest, Manifest | None]:
    """The videos of a list that are trained on, and those held back; raises ConfigError where none is left to train on."""
    if not isinstance(data, PretrainDataConfig) or not data.hold_back:
        return manifest, None
    is_held = is_held_back(manifest, data.hold_back, data.hold_back_by)
    if is_held.all():
        raise ConfigError(
            f"--data.hold-back {data.hold_back:g} by {data.hold_back_by} leaves nothing to train on of the "
            f"{counted(len(manifest), 'video')} of {manifest.file}; hold back less, or by something of which there is more"
        )
    return manifest.part(~is_held), manifest.part(is_held) if is_held.any() else None


def videos_of_both(manifest: Manifest, mixture: Mixture) -> list[str]:
    """Files of a list that a mixture has, too; compared where their last names are alike, as lists are long."""
    files = {os.path.normpath(video.path) for video in manifest}
    last_names = {os.fsencode(os.path.basename(file)) for file in files}
    found = {
        os.path.normpath(source.manifest[first + place].path)
        for source in mixture.sources
        for first, paths in source.manifest.path_blocks()
        for place, path in enumerate(paths)
        if os.path.basename(path) in last_names
    }
    return sorted(files & found)


def form_of(data: DataConfig) -> ListForm:
    """How the lists of a run are read; raises ConfigError."""
    if not isinstance(data, LabelledDataConfig):  # pre-training does not look at labels, whatever they are
        return ListForm(ignore_columns=data.ignore_columns, label_is_read=False)
    names = None if data.labels is None else read_class_names(data.labels, "--data.labels")
    return ListForm(ignore_columns=data.ignore_columns, names=names)


def check_videos_are_named(data: DataConfig) -> None:
    """Raises ConfigError where neither a list nor a mixture is named."""
    if data.manifest is None and data.mixture is None:
        raise ConfigError(
            "no videos named: give --data.manifest FILE or --data.mixture FILE (or make a set with: vmae2 data synth FOLDER)"
        )


def ready_mixtures() -> dict[str, Path]:
    """The mixture files that come with the package, by name."""
    folder = Path(str(resources.files("vmae2_ds"))) / "mixtures"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read_mixture(data: DataConfig) -> tuple[MixtureConfig, Path]:
    """The mixture without the sources left out, and the folder its paths start from."""
    assert data.mixture is not None, "checked by check_videos_are_named"
    ready = ready_mixtures()
    path = ready.get(data.mixture, Path(data.mixture))
    if data.mixture in ready and data.root is None:
        raise ConfigError(f"the mixture {data.mixture} needs --data.root, the folder that holds its lists (see {path})")
    config = _parse_mixture(path, ready)
    kept = tuple(source for source in config.source if source.name not in data.leave_out)
    for name in data.leave_out:
        if all(source.name != name for source in config.source):
            names = ", ".join(source.name for source in config.source)
            raise ConfigError(f"--data.leave-out: {path} has no source {name!r}; it has {names}")
    if not kept:
        raise ConfigError(f"--data.leave-out leaves no source of {path}")
    return config.model_copy(update={"source": kept}), path.parent if data.root is None else data.root


def _parse_mixture(path: Path, ready: dict[str, Path]) -> MixtureConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(str(path), ready, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"--data.mixture {path}: {reason}; {hint}give a TOML or JSON file of sources, or one of {', '.join(ready)}"
        ) from None
    try:
        written = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return MixtureConfig.model_validate({"name": path.stem} | written if isinstance(written, dict) else written)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ""
        if first["type"] == "extra_forbidden":
            fields = list(SourceConfig.model_fields if len(first["loc"]) > 1 else MixtureConfig.model_fields)
            near = difflib.get_close_matches(str(first["loc"][-1]), fields, n=1)
            known = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(fields)}"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {f'{where}: ' if where else ''}{message}{known}") from None


def _open_source(source: SourceConfig, base: Path, form: ListForm) -> Manifest:
    root = None if source.root is None else base / source.root
    manifest = read_manifest(base / source.manifest, root, form=form._replace(frame_folders=source.kind == "frames"))
    if manifest.is_packed != (source.kind == "shards"):
        has = "has the columns shard, offset, bytes" if manifest.is_packed else "has no columns shard, offset, bytes"
        raise ConfigError(f"source {source.name!r} has kind = {source.kind!r}, but {manifest.file} {has}")
    return manifest
