"""Features that stay on disk: each list is decoded and encoded once per encoder, and what is kept is never too old."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vmae2_ds.config.run import RunConfig
from vmae2_ds.data.sources.list_formats import PLAIN_LIST, ListForm
from vmae2_ds.data.sources.manifest import manifest_digest
from vmae2_ds.disk import whole_file
from vmae2_ds.downstream.probe.folds import Features
from vmae2_ds.downstream.probe.frozen import Allocate, Encode, clip_settings, features_of
from vmae2_ds.errors import ConfigError


def kept_features(
    folder: Path,
    makers: Mapping[str, str],
    run: RunConfig,
    encoders: Mapping[str, Encode],
    manifest: Path,
    root: Path | None,
    clips: int,
    form: ListForm = PLAIN_LIST,
) -> dict[str, Features]:
    """`features_of`, but mapped from files in `folder`, which are made where they are not there yet.

    Args:
        makers: what tells each encoder from every other, as `FrozenEncoder.identity`. With it, the list's content and form, the
            root and how clips are taken make a file's name; so nothing stale is ever used.

    Raises as `features_of`, ConfigError where the folder cannot be written.
    """
    about = [str(manifest_digest(manifest)), str(root or manifest.parent), clips, clip_settings(run)]
    about += [] if form == PLAIN_LIST else [form.ignore_columns, form.names and form.names.digest]
    keys = {
        name: hashlib.sha256(json.dumps([maker, *about]).encode()).hexdigest()[:20] for name, maker in makers.items()
    }
    missing = {name: encode for name, encode in encoders.items() if not (folder / f"{keys[name]}.npz").is_file()}
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _make(
                {name: folder / keys[name] for name in missing},
                lambda allocate: features_of(run, missing, manifest, root, clips, allocate, form),
            )
        except OSError as error:
            raise ConfigError(f"--cache {folder}: {error}") from None
    return {name: _open(folder, keys[name]) for name in encoders}


def _make(places: Mapping[str, Path], features: Callable[[Allocate], dict[str, Features]]) -> None:
    """Straight into files, so that the tokens of a long list need no memory; the small ones follow once the large are whole."""
    with contextlib.ExitStack() as large:
        parts = {name: large.enter_context(whole_file(place.with_suffix(".npy"))) for name, place in places.items()}

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            return np.lib.format.open_memmap(parts[name], "w+", dtype, shape)

        made = features(allocate)
        for found in made.values():
            found.feature_VF.flush()  # type: ignore[attr-defined]  # it lies in a memmap
    for name, found in made.items():
        with whole_file(places[name].with_suffix(".npz")) as part, part.open("wb") as small:
            np.savez(small, label=found.label_V, source=found.source_V, path=found.path_V)


def _open(folder: Path, key: str) -> Features:
    with np.load(folder / f"{key}.npz") as small:
        label_V, source_V, path_V = (small[name] for name in ("label", "source", "path"))
    return Features(np.load(folder / f"{key}.npy", mmap_mode="r")[: len(label_V)], label_V, source_V, path_V)
