"""What this machine lacks that something would be measured with, and what then has no figures."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from vmae2_ds.host import cxx_compiler

PACKAGES = {
    "decord": "videos are read by another reader: its figures are not those of the recipes, which read with decord",
    "transformers": "peers has no figures of transformers",
    "flash_attn": "no figures of the kernel flash",
    "deepspeed": "nothing is measured under DeepSpeed's engine: no real run, no ZeRO",
    "matplotlib": "the report has no drawings; their numbers stand in tables",
    "av": "no videos can be drawn, so nothing is measured that reads them",
}
COMPILER = "C++ compiler"
WITHOUT_COMPILER = "nothing is compiled on this machine: no compiled steps, no operators of DeepSpeed's own"


def missing() -> Iterator[tuple[str, str]]:
    """What, and what follows."""
    for name, so in PACKAGES.items():
        if find_spec(name) is None:
            yield name, so
    if cxx_compiler().path is None:
        yield COMPILER, WITHOUT_COMPILER
