"""A tiny encoder in a file and a few videos of known frames, for the tests of extraction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

WINDOW, SIZE, WIDTH = 8, 16, 24
CONFIG = ClassifierConfig(encoder=TowerConfig(width=WIDTH, depth=2, heads=2, mlp=32), num_classes=3, patch=8)


def write_encoder(path: Path, seed: int = 0) -> Path:
    """A classifier with drawn weights, large enough to tell frames apart."""
    model = Classifier(CONFIG, ClipGeometry(WINDOW, SIZE, SIZE, 2, 8), seed=seed)
    for parameter in model.parameters():
        parameter.data *= 3
    write_weights(to_layout(dict(model.state_dict()), CONFIG), path, CONFIG)
    return path


def write_video(path: Path, frames: int, seed: int = 0, gop: int = 12, edges: tuple[int, int] = (24, 40)) -> None:
    """An mp4 of a moving texture."""
    ground = np.random.default_rng(seed).integers(0, 255, (*edges, 3), np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=20, options={"g": str(gop), "bf": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *edges, "yuv420p"
        for number in range(frames):
            picture = np.roll(ground, 2 * number, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)


def write_list(path: Path, rows: Sequence[str], columns: str = "path") -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path
