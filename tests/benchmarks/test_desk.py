"""The desk experiment on made clips: its lists, its chain that goes on where it was stopped, and its table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.desk.__main__ import main
from benchmarks.desk.lists import CLASSES, FRAMES, SIZE, write_lists
from benchmarks.desk.stages import settle_recipe
from benchmarks.desk.table import markdown
from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.tools.synthetic import draw_clip, write_video
from vmae2_ds.errors import EXIT_OK, ConfigError
from vmae2_ds.json_lines import rows_of

SHRINK = 2000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets as the real ones are listed: three subjects of two classes, one of them held back; frames of many lengths."""
    actions = tmp_path_factory.mktemp("data") / "actions"
    rng = np.random.default_rng(0)
    for name in ("ut_interaction", "body_gesture"):
        (actions / name).mkdir(parents=True)
        with (actions / f"{name}_manifest.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label", "label_id", "subject", "split"))
            for number in range(12):
                path, subject = f"{name}/{number}.mp4", number % 3
                write_video(actions / path, draw_clip(number % 2, rng, 48, 10 + 5 * number), 15)
                rows.writerow((path, "x", number % 2, f"S{subject}", "val" if subject == 2 else "train"))
    return actions.parent


def test_lists_keep_subjects_apart_and_clips_alike(data: Path, tmp_path: Path) -> None:
    lists = write_lists(data, tmp_path, 1, SHRINK)
    train, val = read_manifest(lists.train), read_manifest(lists.val)
    assert (len(train), len(val)) == (16, 8)
    assert {row.source for row in train} == {"ut_S0", "ut_S1", "bg_S0", "bg_S1"}
    assert {row.source for row in val} == {"ut_S2", "bg_S2"}
    assert {row.label for row in train if row.source.startswith("ut")} == {CLASSES["bg"], CLASSES["bg"] + 1}
    assert {row.label for row in read_manifest(lists.all_of["ut"])} == {0, 1}
    for row in train:
        clip = read_clip(row.path, lambda length, fps: np.arange(length))
        assert clip.shape[1:] == (SIZE, SIZE, 3)
        assert len(clip) <= FRAMES
    mixture = open_mixture(PretrainDataConfig(mixture=str(lists.mixture), reader="pyav"))
    assert [(source.name, source.share) for source in mixture.sources] == [("real", 0.1), ("synthetic", 0.9)]
    held_back = {row.path for row in val} | {row.path for row in read_manifest(lists.val_of["synthetic"])}
    assert not held_back & {row.path for source in mixture.sources for row in source.manifest}


@pytest.mark.slow
def test_the_chain_trains_once_and_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(data), "--out", str(tmp_path), "--seeds", "0", "--stages", "real", "--shrink", str(SHRINK)]
    assert main([*words, "--workers", "1"]) == EXIT_OK
    rows = list(rows_of(tmp_path / "rows.jsonl"))
    assert {(row["set"], row["how"], row["test"]) for row in rows} == {
        *(
            (of, how, test)
            for of in ("ut", "bg")
            for how in ("ridge", "motion")
            for test in ("leave one out", "unseen")
        ),
        *(("ut", "attentive", test) for test in ("leave one out", "unseen")),
        ("bg", "attentive", "unseen"),
    }
    assert {row["videos"] for row in rows if row["test"] == "leave one out"} == {12}
    first = (tmp_path / "runs" / "pretrain_pixels_real_seed0.log").read_text()
    capsys.readouterr()
    assert main([*words, "--workers", "1"]) == EXIT_OK
    assert list(rows_of(tmp_path / "rows.jsonl")) == rows
    assert (tmp_path / "runs" / "pretrain_pixels_real_seed0.log").read_text() == first
    assert "| pretrained, real |" in capsys.readouterr().out


def test_a_folder_without_the_sets_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "ut_interaction_manifest.csv is not there" in capsys.readouterr().err


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its finished runs would be taken for those of this one."""
    settle_recipe(tmp_path, 1)
    settle_recipe(tmp_path, 1)
    assert main(["--data", str(tmp_path), "--out", str(tmp_path), "--shrink", "2"]) == 2
    assert "holds runs of another recipe" in capsys.readouterr().err
    (tmp_path / "before" / "runs").mkdir(parents=True)  # by a version that noted nothing
    with pytest.raises(ConfigError, match="holds runs of another recipe"):
        settle_recipe(tmp_path / "before", 1)


def test_the_table_gives_mean_and_range_over_seeds() -> None:
    row = {"model": "student", "test": "unseen", "set": "ut", "how": "ridge", "videos": 12}
    rows = [{**row, "seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate((0.25, 0.5, 0.75))]
    assert "| student | 50.0 (25.0 to 75.0; 3) |" in markdown([*rows, rows[0]])
