"""First weights of a desk's encoder, as a file that a later stage starts from."""

from __future__ import annotations

from pathlib import Path

from vmae2_ds.downstream.probe.frozen import drawn_weights
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.runs.open import about_run
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout


def random_encoder(shape_of: Path, folder: Path, seed: int) -> Path:
    """A file in `folder` of an encoder like that of the run `shape_of`, its weights drawn from the seed."""
    run, _ = find_checkpoint(shape_of)
    file = folder / f"random{seed}.safetensors"
    if not file.is_file():
        weights = drawn_weights(run, 1000 + seed)  # as the probes of the desk draw them
        write_weights(to_layout(weights, run.model), file, run.model, about_run(run))
    return file
