"""Packages: those that are needed, by name; readers, flash_attn and others, imported, which may raise, hang or crash."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib import metadata
from pathlib import Path

import vmae2_ds
from vmae2_ds.config.trackers import PACKAGES as TRACKERS
from vmae2_ds.doctor.finding import Finding, green, red, yellow
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.provenance import commit, is_found

PYTHONS = ((3, 10), (3, 13))
"""From the first on, and below the second: setup.py's bounds."""
REQUIRED = ("torch", "deepspeed", "numpy", "timm", "pydantic", "tyro", "safetensors", "psutil", "fsspec")
"""What no run starts without; modules are named as they are imported."""
WANTED = ("torchvision", "av", "webdataset", "tensorboard", "matplotlib", "PIL", "jinja2", "rich")
"""What some readers, logs, reports and tools need."""
PIP_NAMES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "torchcodec": "'vmae2_ds[torchcodec]'",
    **{package: f"'vmae2_ds[{extra}]'" for extra, package in TRACKERS.items()},
}
"""Module -> what pip calls it, where that differs."""


def look_at_code(needs: Needs) -> list[Finding]:
    """Which vmae2_ds this is, under which Python."""
    del needs
    folder, version = Path(vmae2_ds.__file__).parents[1], platform.python_version()
    value = f"{vmae2_ds.__version__} ({commit() or 'no checkout'}) in {folder}, Python {version}"
    figures = {"version": vmae2_ds.__version__, "commit": commit(), "folder": str(folder), "python": version}
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return [yellow("vmae2_ds", f"{value}: not one it is tested with", "a Python from 3.10 to 3.12", **figures)]
    return [green("vmae2_ds", value, **figures)]


def look_at_requirements(needs: Needs) -> list[Finding]:
    """Whether everything that setup.py asks for can be found, without importing it."""
    missing = [name for name in (*REQUIRED, *needs.trackers) if not is_found(name)]
    wanted = [name for name in WANTED if not is_found(name)]
    remedy = f"pip install {' '.join(PIP_NAMES.get(name, name) for name in [*missing, *wanted])}"
    figures = {"missing": missing, "wanted": wanted}
    if missing:
        return [red("requirements", f"not installed: {', '.join(missing)}", remedy, **figures)]
    if wanted:
        value = f"not installed: {', '.join(wanted)}; what needs them says so"
        return [yellow("requirements", value, remedy, **figures)]
    return [green("requirements", "all installed", **figures)]


def look_at_package(package: str, needs: Needs) -> list[Finding]:
    """Import one package. For a process of its own: what an import does is the package's."""
    reader = next((name for name, behind in needs.readers.items() if behind == package), None)
    is_ours = reader is not None and needs.reader == reader
    pip = PIP_NAMES.get(package, package)
    if not is_found(package):
        return [_absent(package, needs, is_ours)]
    try:
        module = importlib.import_module(package)
    except BaseException as error:  # SystemExit too: nothing is known of what runs at import
        why = f"{version_of(package)} cannot be imported: {describe(error)}"
        remedy = f"pip install --force-reinstall {pip}"
        if package in REQUIRED:
            return [red(package, why, remedy, version=version_of(package))]
        if is_ours:
            return [red(package, why, f"{remedy}, or {_another_reader(package, needs)}", version=version_of(package))]
        return [yellow(package, why, remedy, version=version_of(package))]
    version = version_of(package) or str(getattr(module, "__version__", "of no version"))
    return [green(package, version, version=version)]


def _absent(package: str, needs: Needs, is_ours: bool) -> Finding:
    others = [name for name, behind in needs.readers.items() if is_found(behind)]
    pip = PIP_NAMES.get(package, package)
    if is_ours or (needs.reader == "auto" and package in needs.readers.values() and not others):
        value = f"not installed, and the recipe reads with it (--data.reader {needs.reader})"
        return red(package, value, f"pip install {pip}, or {_another_reader(package, needs)}", version=None)
    return green(package, "not installed; this recipe does without", version=None)


def _another_reader(package: str, needs: Needs) -> str:
    others = [name for name, behind in needs.readers.items() if behind != package and is_found(behind)]
    return f"--data.reader {others[0]}" if others else "--data.reader module:function of your own"


def version_of(package: str) -> str | None:
    """The version that is installed, without importing it."""
    for name in (package, *metadata.packages_distributions().get(package, [])):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def describe(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= 200 else f"{said[:197]}..."
