"""Whether a video was trained on is decided by its file, by whatever link it is named."""

from __future__ import annotations

from pathlib import Path

from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.downstream.trained_on import trained_on


def test_a_link_to_a_video_that_is_trained_on_is_that_video(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    for name in ("train/a.mp4", "train/b.mp4", "val/b.mp4"):
        (tmp_path / name).write_text("a video")
    (tmp_path / "val" / "a.mp4").symlink_to(tmp_path / "train" / "a.mp4")
    for folder in ("train", "val"):
        (tmp_path / f"{folder}.csv").write_text(f"path\n{folder}/a.mp4\n{folder}/b.mp4\n")
    entries = list(read_manifest(tmp_path / "val.csv"))
    mixture = Mixture.of_manifest(read_manifest(tmp_path / "train.csv"), "pyav")
    assert trained_on(entries, mixture) == {entries[0].name}
