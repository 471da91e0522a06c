"""Places for weights, looked at without torch: which names can be written, and what is there that may be replaced."""

from __future__ import annotations

from pathlib import Path

from vmae2_ds.disk import sha256_of
from vmae2_ds.errors import ConfigError
from vmae2_ds.weights.about import read_about, said_beside

WRITTEN = (".safetensors", ".pth", ".pt")
"""Endings of files of weights."""
WEIGHTS, CONFIG, PREPROCESSOR, CARD = "model.safetensors", "config.json", "preprocessor_config.json", "README.md"
BESIDE = (CONFIG, PREPROCESSOR, CARD)
"""What is written beside the weights of a transformers folder, in whose header their SHA-256 stand."""
AVERAGE = "ema.safetensors"
"""A run's averaged weights, which lie beside its run.json."""


def check_ending(out: Path) -> None:
    """Raises ConfigError where the name says no format that can be written."""
    if out.suffix not in WRITTEN:
        raise ConfigError(f"--out {out}: the name must end in .safetensors, .pth or .pt")


def refuse_other_file(out: Path) -> bool:
    """True for a .safetensors file of an earlier import or export; raises ConfigError for every other file that is there.

    Its header says so. A .pth says of nobody who wrote it; a run's average and a transformers folder's weights are a part of
    something.
    """
    is_part = bool(said_beside(out)) or (out.name == AVERAGE and (out.parent / "run.json").is_file())
    if is_part or read_about(out).model is None:
        raise ConfigError(
            f"--out {out} is there, and nothing in it says that it is an earlier import or export alone; "
            "name another file, or replace it with --force"
        )
    return True


def refuse_other_folder(folder: Path) -> bool:
    """True for an earlier export, as it was written; raises ConfigError where a file would be lost that somebody else wrote."""
    sums = said_beside(folder / WEIGHTS)
    for name in (WEIGHTS, *BESIDE):
        path = folder / name
        if path.exists() and not (sums if name == WEIGHTS else _is_written(path, sums.get(name))):
            raise ConfigError(
                f"--out {folder}: its {name} is not as an export wrote it; name another folder, or replace "
                f"{', '.join((WEIGHTS, *BESIDE))} there with --force"
            )
    if not sums:
        raise ConfigError(
            f"--out {folder} holds files of something else; name a new folder, or write into it with --force"
        )
    return True


def _is_written(path: Path, digest: str | None) -> bool:
    return digest is not None and path.is_file() and sha256_of(path) == digest
