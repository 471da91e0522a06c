"""The pictures of a run's report, by the call of `vmae2 visualize` that drew them, with what it measured."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from vmae2_ds.draw.charts import errors_svg

MOST_PICTURES = 8

GUESSES = {"model": "the model", "nearest_cube": "nearest visible cube", "mean_colour": "clip's mean colour"}
"""Bars of the chart by their key in pictures.json."""


def picture_sets(folder: Path) -> list[dict[str, Any]]:
    """The newest stills of a run as they were drawn; the animations beside them are too large for a page."""
    found = (folder / "pictures").rglob("clip*.png")
    stills = sorted(found, key=lambda path: (path.stat().st_mtime, path))[-MOST_PICTURES:]
    return [
        {**_measured(place), "pictures": [_picture(path) for path in stills if path.parent == place]}
        for place in dict.fromkeys(path.parent for path in stills)
    ]


def _measured(folder: Path) -> dict[str, str | None]:
    """The line that was printed and a chart of its errors; None where an earlier version drew, or nothing was measured."""
    path = folder / "pictures.json"
    measured = json.loads(path.read_text()).get("hidden_cubes", {}) if path.is_file() else {}
    line = measured.get("line")
    if line is None or "squared_error" not in measured:
        return {"line": line and _sentence(line), "chart": None}
    levels = {name: measured["squared_error"][key] for key, name in GUESSES.items()}
    spread = {name: [clip["squared_error"][key] for clip in measured["clips"]] for key, name in GUESSES.items()}
    return {"line": _sentence(line), "chart": errors_svg(levels, spread, f"hidden cubes, {_name(folder)}")}


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _picture(path: Path) -> dict[str, str]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {
        "alt": f"{_name(path.parent)} {path.stem.replace('_', ' ')}".strip(),
        "data": f"data:image/png;base64,{data}",
    }


def _name(folder: Path) -> str:
    return "" if folder.name == "pictures" else folder.name.replace("_", " ")
