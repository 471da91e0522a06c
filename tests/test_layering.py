"""How the code hangs together: imports point down, heavy packages have one door, files stay small and portable."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vmae2_ds"
MODULES = sorted(PACKAGE.rglob("*.py"))


def files_in(folder: str) -> list[Path]:
    """The modules of an inner folder."""
    return sorted(path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__")


LAYERS = (
    {"errors", "provenance"},
    {"contracts", "disk", "dist", "hidden_packages", "host", "json_lines"},
    {"console"},
    {"config", "data"},
    {"cost", "draw", "masking", "model", "recipes"},
    {"data.clips", "engine", "objectives", "weights"},
    {"checkpoint", "data.readers"},
    {"data.sources"},
    {"data.feed", "data.tools"},
    {"doctor", "guard", "runs", "track"},
    {
        "downstream.classify",
        "downstream.detection_map",
        "downstream.features",
        "downstream.in_turn",
        "downstream.json_files",
        "launch",
        "train",
    },
    {"downstream", "downstream.ava", "downstream.probe", "downstream.tad", "train.distil"},
    {"tune"},
    {"cli"},
    {"__main__"},
)
"""Low to high. A name is a folder of vmae2_ds, or a file on top of it; an inner folder has a place of its own. Within a folder
only cycles are forbidden."""

DOORS = {
    "deepspeed": {
        *(
            "engine.lean_import",
            "engine.partitioned",
            "engine.ranks",
            "engine.shards",
            "engine.step",
            "checkpoint.safe_load",
        ),
        "doctor.deepspeed_ops",
    },
    "decord": {"data.readers.decord"},
    "torchcodec": {"data.readers.torchcodec"},
    "av": {
        *("data.readers.common", "data.readers.frame_index", "data.readers.pyav"),
        *("data.tools.encode", "data.tools.video_facts"),
    },
    "flash_attn": {"model.attention"},
    "flash_attn_interface": {"model.attention"},
    "timm": {"model.stochastic_depth", "data.clips.augment"},
    "matplotlib": {"draw.charts", "draw.pictures", "draw.sheet"},
    "wandb": {"track.wandb", "track.wandb_file"},
    "mlflow": {"track.mlflow"},
    "comet_ml": {"track.comet"},
    "transformers": set(),
    "fcntl": {"disk"},
}
"""Package -> the modules that may import it."""

LAZY = {"deepspeed", "decord", "torchcodec", "av", "flash_attn", "flash_attn_interface", "matplotlib"}
LAZY |= {"wandb", "mlflow", "comet_ml"}
"""Doors that stay shut until a function needs them: the rest works where these packages do not."""

WITHOUT_TORCH = (
    "errors",
    "contracts",
    "disk",
    "hidden_packages",
    "host",
    "json_lines",
    "provenance",
    "masking",
    *(
        f"{folder}.{path.stem}"
        for folder in ("cli", "console", "config", "cost", "doctor", "launch", "recipes", "track")
        for path in files_in(folder)
    ),
    "data.feed.shared_memory",
    "data.sources.list_formats",
    "data.sources.manifest",
    "data.sources.mixture",
    "runs.export",
    "runs.first_look",
    "weights.ours",
    "downstream.ava.boxes",
    "downstream.ava.check",
    "downstream.ava.person_boxes",
    "downstream.ava.plain_pickle",
    "downstream.classify.evaluate",
    "downstream.classify.scores",
    "downstream.features.arguments",
    "downstream.features.extract",
    "downstream.features.sidecar",
    "downstream.features.windows",
    "downstream.ava.clip_files",
    "downstream.ava.detect",
    "downstream.ava.key_frames",
    "downstream.ava.label_map",
    "downstream.ava.row_columns",
    "downstream.ava.row_files",
    "downstream.ava.rows",
    "downstream.ava.score",
    "downstream.ava.score_report",
    "downstream.ava.linking",
    "downstream.ava.tube_convert",
    "downstream.ava.tube_files",
    "downstream.ava.tube_report",
    "downstream.ava.tubes",
    "downstream.ava.video_map",
    "downstream.ava.videos",
    "downstream.ava.show",
    "downstream.tad.annotations",
    "downstream.tad.detections",
    "downstream.tad.detect",
    "downstream.tad.videos",
    "downstream.tad.score",
    "downstream.tad.score_report",
    "downstream.tad.show",
)
"""Modules that answer `--help` and planning questions at once: importing them must not pull in torch."""

MAX_LINES = 400


def name_of(path: Path) -> str:
    """`vmae2_ds/data/readers/table.py` -> `data.readers.table`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_lazy(block: ast.AST) -> bool:
    """A function, or `if TYPE_CHECKING:`."""
    return isinstance(block, ast.FunctionDef) or (
        isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    )


@cache
def imports_of(path: Path) -> tuple[tuple[str, bool], ...]:
    """(absolute name, is it imported with the module) for everything a file imports; `from a import b` gives both a and a.b."""
    tree = ast.parse(path.read_text())
    inside = {id(node) for block in ast.walk(tree) if _is_lazy(block) for node in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: write the import in full, from vmae2_ds..."
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [(name, id(node) not in inside) for name in names]
    return tuple(found)


@cache
def known_modules() -> frozenset[str]:
    """All but the package itself."""
    return frozenset(name_of(module) for module in MODULES) - {""}


def own_imports(path: Path) -> set[str]:
    """The modules of vmae2_ds that a file imports, without the package's name."""
    known = known_modules()
    names = {name.removeprefix("vmae2_ds.") for name, _ in imports_of(path) if name.startswith("vmae2_ds.")}
    return (names & known) - {name_of(path)}


def room_of(module: str) -> str:
    """The folder or file of LAYERS that a module lies in: `data.readers.pyav` -> `data.readers`."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if any(name in names for names in LAYERS):
            return name
    pytest.fail(f"vmae2_ds/{parts[0]} has no layer: add it to LAYERS in {Path(__file__).name}")


def layer_of(room: str) -> int:
    return next(height for height, names in enumerate(LAYERS) if room in names)


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = room_of(name_of(path))
    for target in own_imports(path):
        there = room_of(target)
        if there != here:
            assert layer_of(there) < layer_of(here), f"{name_of(path)} imports {target}, which is not below it"


def test_every_folder_has_a_layer_of_its_own() -> None:
    folders = {name_of(path) for path in PACKAGE.rglob("__init__.py")} - {""}
    assert {folder for folder in folders if room_of(folder) != folder} == set()


def test_no_import_cycles() -> None:
    graph = {name_of(path): own_imports(path) for path in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_have_one_door(path: Path) -> None:
    me = name_of(path)
    for name, at_module_level in imports_of(path):
        package = name.partition(".")[0]
        if package in DOORS:
            assert me in DOORS[package], f"{me} imports {package}; go through {sorted(DOORS[package]) or 'benchmarks/'}"
            assert not (package in LAZY and at_module_level), (
                f"{me}: import {package} inside the function that needs it"
            )


def test_light_modules_do_not_import_torch() -> None:
    lines = [f"import vmae2_ds.{name}" for name in WITHOUT_TORCH]
    code = "; ".join(["import sys", *lines, "sys.exit('torch' in sys.modules)"])
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@cache
def tracked() -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return tuple(ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


def test_files_stay_small() -> None:
    code = {path for path in tracked() if path.suffix == ".py"} | set(MODULES)
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in code}
    assert not {name: size for name, size in sizes.items() if size > MAX_LINES}, f"split these: over {MAX_LINES} lines"


def test_no_machine_paths() -> None:
    # a home or work folder of somebody's machine; the lookbehind lets folders of these names in a longer path pass
    machine = re.compile(rb"(?<![\w./-])/(?:work|root|home|Users)/[\w.]")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if b"\0" not in path.read_bytes()[:1024]
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if machine.search(line)
    ]
    assert not found, f"paths of one machine: {found}"
