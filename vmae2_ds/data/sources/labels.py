"""Labels and names against a model's classes, without torch."""

from __future__ import annotations

import numpy as np

from vmae2_ds.config.run import RunConfig
from vmae2_ds.data.sources.class_names import ClassNames
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.errors import ConfigError


def check_names(config: RunConfig, names: ClassNames | None) -> None:
    """Raises ConfigError where `data.labels` gives more or fewer names than the model has classes."""
    if names is not None and len(names.names) != config.classes:
        raise ConfigError(
            f"--data.labels {names.file} names {len(names.names)} classes, and the model has num_classes="
            f"{config.classes}; set --model.num-classes {len(names.names)}, or give the file of its classes"
        )


def check_labels(manifest: Manifest, num_classes: int) -> None:
    """Raises ConfigError, naming the first row, where a video has no label or one outside 0 .. num_classes - 1."""
    for first, labels in manifest.label_blocks():
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            row = first + int(wrong[0])
            video, label = manifest.listed(row), manifest.listed(row).label
            if label is None:
                raise ConfigError(
                    f"{manifest.file}: video {row + 1}, {video.path}, has no label; every video needs one here"
                )
            raise ConfigError(
                f"{manifest.file}: video {row + 1}, {video.path}, has label {label}, and the model has num_classes="
                f"{num_classes} (labels 0 .. {num_classes - 1}); set --model.num-classes or fix the list"
            )
