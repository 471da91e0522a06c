"""Where an evaluation goes: found before the first video, shown before it is written, and in place of no other one."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.train.distil.test_teacher import TEACHER, written
from vmae2_ds.console import progress
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.downstream.classify import evaluate as verb
from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, evaluate
from vmae2_ds.downstream.classify.scores import FILES, folder_for
from vmae2_ds.draw import charts as draw
from vmae2_ds.errors import ConfigError

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 8 frames."""
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("videos"), train_videos=3, val_videos=1, size=32, frames=8)
    ).train


@pytest.fixture
def run(tmp_path: Path, listed: Path) -> Evaluate:
    file = written(tmp_path, TEACHER, "w.safetensors")

    def run(**options: Any) -> dict[str, Any]:
        chosen = {"clips": 1, "crops": 1, "num_frames": 4, "size": 24, "stride": 1, "workers": 0, "precision": "fp32"}
        return evaluate(EvaluateArguments(source=file, **{"manifest": listed, **chosen, **options}))

    return run


def test_another_evaluation_gets_a_folder_of_its_own(run: Evaluate, tmp_path: Path) -> None:
    """Other clips, then other weights under the same name; the same evaluation again has its own place."""
    folder = tmp_path / "eval" / "train_w_1x1"
    first = run()
    assert Path(first["folder"]) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    kept = (folder / "result.json").read_bytes()
    assert Path(run()["folder"]) == folder
    assert Path(run(stride=2)["folder"]) == folder.with_name("train_w_1x1.2")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        about, names = file.metadata(), file.keys()
        changed = {name: 2 * file.get_tensor(name) for name in names}
    save_file(changed, tmp_path / "w.safetensors", about)
    assert Path(run()["folder"]) == folder.with_name("train_w_1x1.3")
    assert (folder / "result.json").read_bytes() == kept


def test_a_folder_that_was_named_is_never_taken_from_another_evaluation(run: Evaluate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out=out)
    run(out=out)
    with pytest.raises(ConfigError, match=r"--out .*out holds other results \(of other stride\); name another folder"):
        run(out=out, stride=2)


@pytest.mark.parametrize("name", FILES)
def test_files_of_somebody_else_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[1]\n")
    with pytest.raises(ConfigError, match=f"holds a {name} "):
        folder_for(tmp_path, tmp_path / "default", {"clips": 1}, [])
    assert (tmp_path / name).read_text() == "[1]\n"
    default = folder_for(None, tmp_path, {"clips": 1}, [])
    assert default == tmp_path.with_name(f"{tmp_path.name}.2")


def test_nothing_is_mixed_into_a_folder_of_other_files_or_into_the_list_s(listed: Path, tmp_path: Path) -> None:
    """On one rank before the weights are read; folder_for says the same to several."""
    file, project = tmp_path / "none.pth", tmp_path / "project"
    file.touch()
    project.mkdir()
    (project / "main.py").write_text("mine")
    for out, why in ((project, "holds files of something else"), (listed.parent, "is the folder of .*, which is read")):
        before = sorted(out.iterdir())
        with pytest.raises(ConfigError, match=f"--out {out} {why}"):
            evaluate(EvaluateArguments(source=file, manifest=listed, out=out))
        with pytest.raises(ConfigError, match=f"--out {out} {why}"):
            folder_for(out, tmp_path / "default", {"clips": 1}, [listed])
        assert sorted(out.iterdir()) == before
    (project / "main.py").rename(project / ".part123")  # what a killed evaluation left
    assert folder_for(project, tmp_path / "default", {"clips": 1}, [listed]) == project


def test_a_place_that_cannot_be_written_is_found_before_the_first_video(
    run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "score_videos", lambda *_: pytest.fail("videos were scored"))
    file = tmp_path / "c.json"
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*c\.json is a file; name a folder"):
        run(out=file)
    assert file.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"--out /proc/nowhere: .*; name a place that can be written"):
        run(out=Path("/proc/nowhere"))


def test_figures_are_shown_before_a_disk_that_filled_up_meanwhile_refuses_them(
    run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(draw, "draw_confusion", full)  # the tables before it are written
        with pytest.raises(
            ConfigError, match=r"the figures above could not be written to .*out: No space left on device"
        ):
            run(out=tmp_path / "out")
    (shown,) = [message for message in caplog.messages if "top-1" in message]
    assert "(3 videos, 1x1 views, 0 unreadable)" in shown
    assert list((tmp_path / "out").iterdir()) == []
    run(out=tmp_path / "out")  # once there is room
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_an_evaluation_tells_how_far_it_is(
    run: Evaluate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "TELL_EVERY_S", 0.0)
    result = run()
    told = [message for message in caplog.messages if "videos scored, " in message and "; of the next" not in message]
    said = dict.fromkeys(message.partition(",")[0] for message in told)  # a slow one is told of again
    assert list(said) == [f"{done} of 3 videos scored" for done in (1, 2, 3)]
    assert json.loads((Path(result["folder"]) / "result.json").read_text())["videos"] == 3
