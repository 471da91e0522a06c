"""The line that says which clips a model is shown tells what its file says from what is assumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.config.finetune import LabelledDataConfig
from vmae2_ds.runs import open as initial
from vmae2_ds.runs.open import clip_line
from vmae2_ds.weights.about import AboutWeights


@pytest.mark.parametrize(
    ("in_file", "given", "end"),
    [
        (None, {}, " (assumed: the file does not say)"),
        ({"num_frames": 16, "size": 224}, {}, " (assumed: the file does not say stride 4)"),
        ({"stride": 4}, {"size": 224}, " (assumed: the file does not say 16 frames)"),
        (None, {"num_frames": 16, "size": 224, "stride": 4}, ""),
        ({"num_frames": 16, "size": 224, "stride": 4}, {}, ""),
    ],
)
def test_what_a_file_does_not_say_is_called_assumed(
    in_file: dict[str, Any] | None, given: dict[str, int], end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "w.pth").touch()
    monkeypatch.setattr(initial, "read_about", lambda path: AboutWeights(clip=in_file))
    options = {"num_frames": None, "size": None, "stride": None, **given}
    assert clip_line(file, LabelledDataConfig(), **options) == f"16 frames of 224, stride 4{end}"


def test_a_run_s_clips_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    (tmp_path / "mean.safetensors").touch()
    data = LabelledDataConfig(num_frames=8, size=64, stride=2)
    for source in (tmp_path, tmp_path / "mean.safetensors"):
        assert clip_line(source, data, size=None) == "8 frames of 64, stride 2"
