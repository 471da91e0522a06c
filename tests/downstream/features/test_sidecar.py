"""A folder of features says what they are, and what is not whole or of another kind is refused with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae2_ds.downstream.features.sidecar import (
    INFO,
    PUBLISHED,
    FeatureInfo,
    VideoFeatures,
    claim_folder,
    feature_names,
    is_finished,
    read_feature_info,
    read_features,
    write_features,
)
from vmae2_ds.errors import ConfigError, DataError


def info(**changes: Any) -> FeatureInfo:
    values: dict[str, Any] = {
        **{"model": "tiny", "weights": "a" * 64, "grid": "opengvlab", "window": 16, "stride": 4, "interval": 1},
        **{"offset_frames": 8, "pixels": "imagenet", "resize": "crop", "size": 32, "precision": "fp32", "width": 6},
    }
    return FeatureInfo(**values | changes)


ABOUT = VideoFeatures(frames=30, fps=25.0, rows=4)
FEATURES = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    claim_folder(tmp_path, info())
    write_features(tmp_path, "one", FEATURES, ABOUT)
    return tmp_path


def test_what_is_written_is_read_and_plain_numpy_reads_it(folder: Path) -> None:
    assert read_feature_info(folder) == info()
    array, about = read_features(folder, "one")
    assert about == ABOUT
    assert about.end_s == pytest.approx(1.2)
    assert np.array_equal(array, FEATURES)
    assert np.array_equal(np.load(folder / "one.npy"), FEATURES)
    assert feature_names(folder) == ["one"]
    assert is_finished(folder, "one")
    assert not is_finished(folder, "two")


@pytest.mark.parametrize("bytes_left", [0, 40, 128, 128 + 24 * 4 - 1])
def test_a_file_cut_short_is_refused_with_one_line(folder: Path, bytes_left: int) -> None:
    file = folder / "one.npy"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(DataError, match=r"one\.npy is cut short") as refused:
        read_features(folder, "one")
    assert "\n" not in str(refused.value)
    assert not is_finished(folder, "one"), "the same command makes it again"


def test_what_is_not_there_or_not_as_the_folder_says_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"two\.npy: there are no features"):
        read_features(folder, "two")
    np.save(folder / "one.npy", FEATURES[:3])
    with pytest.raises(DataError, match=r"has 3 rows, and one\.json says 4"):
        read_features(folder, "one")
    np.save(folder / "one.npy", FEATURES[:, :5])
    with pytest.raises(DataError, match=r"holds float32 \(4, 5\)"):
        read_features(folder, "one")
    (folder / "one.json").unlink()
    np.save(folder / "one.npy", FEATURES)
    with pytest.raises(DataError, match=r"not finished, there is no one\.json"):
        read_features(folder, "one")
    (folder / INFO).write_text('{"grid": "mine"}')
    with pytest.raises(DataError, match="no description of features"):
        read_feature_info(folder)
    (folder / INFO).unlink()
    with pytest.raises(DataError, match=r"no features\.json"):
        read_feature_info(folder)


def test_folders_of_others_features_are_refused_by_name_of_what_differs(folder: Path) -> None:
    other = info(grid="opentad", stride=8, weights="b" * 64, model="another name of it")
    assert info().differing(info(model="another name of it")) == []
    assert info().differing(other) == ["weights bbbbbbbbbbbb..., not aaaaaaaaaaaa...", "grid opentad, not opengvlab",
                                       "stride 8, not 4"]  # fmt: skip
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"grid opengvlab, not opentad; stride 4, not 8"):
        claim_folder(folder, other)
    claim_folder(folder, info())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_published_features_are_read_with_nothing_beside_them(tmp_path: Path) -> None:
    claim_folder(tmp_path, PUBLISHED["opentad_thumos"])
    np.save(tmp_path / "video_test_0000004.npy", np.zeros((3, 1408), np.float32))
    array, about = read_features(tmp_path, "video_test_0000004")
    assert (array.shape, about.frames, about.rows) == ((3, 1408), None, 3)
    assert feature_names(tmp_path) == ["video_test_0000004"]
    assert PUBLISHED["opentad_thumos"].differing(PUBLISHED["opengvlab_thumos"])
