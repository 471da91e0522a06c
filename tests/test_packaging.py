"""What a wheel holds: every module, the ZeRO policies as `vmae2_ds/ds_configs`, page templates, mixtures, and the command."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """File names inside a wheel built, without the network, from the tracked files of this checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(out), "."], check=True, cwd=source)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "vmae2 = vmae2_ds.cli.main:main" in archive.read(entry_points).decode()
    return names


def tracked_files(folder: str, *suffixes: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if name.endswith(suffixes)}


def test_no_deepspeed_is_taken_that_applies_steps_that_are_not_finite() -> None:
    """Releases up to 0.19.2 do so under bf16 unless they are told otherwise."""
    (bound,) = re.findall(r'"deepspeed>=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert tuple(map(int, bound.split("."))) >= (0, 19, 3)


def test_every_module_template_and_mixture_is_in_the_wheel(wheel_names: set[str]) -> None:
    assert tracked_files("vmae2_ds", ".py", ".html", ".toml") <= wheel_names


def test_zero_policies_are_in_the_wheel(wheel_names: set[str]) -> None:
    assert {f"vmae2_ds/{name}" for name in tracked_files("ds_configs", ".json")} <= wheel_names


def test_nothing_else_is_installed(wheel_names: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names} <= {"vmae2_ds", "vmae2_ds-0.1.0.dist-info"}
