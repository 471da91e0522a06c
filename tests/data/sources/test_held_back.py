"""Which videos are held back: BLAKE2b from hashlib, here, over names that this file takes apart itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.data.sources.manifest import read_manifest, write_index
from vmae2_ds.data.sources.mixture import Mixture, open_parts, videos_of_both
from vmae2_ds.errors import ConfigError, DataError

SHARE = 0.3


def is_held(name: str, share: float = SHARE) -> bool:
    return int(blake2b(name.encode(), digest_size=8).hexdigest(), 16) / 2**64 < share


PATHS = [f"film{film:02}/cut{cut}.mp4" for film in range(40) for cut in range(3)]


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    """A list of these paths, the first of which is there."""

    def write(paths: list[str], name: str = "list.csv", header: str = "path") -> Path:
        first = tmp_path / paths[0].split(",")[0]
        first.parent.mkdir(exist_ok=True)
        first.write_bytes(b"x")
        (tmp_path / name).write_text("\n".join([header, *paths]) + "\n")
        return tmp_path / name

    return write


def names(mixture: Mixture | None, source: int = 0) -> list[str]:
    if mixture is None:
        return []
    manifest = mixture.sources[source].manifest
    return [manifest.listed(row).path for row in range(len(manifest))]


def parts(manifest: Path, by: str = "video", share: float = SHARE) -> tuple[list[str], list[str]]:
    train, held = open_parts(PretrainDataConfig(manifest=manifest, hold_back=share, hold_back_by=by))
    return names(train), names(held)


@pytest.mark.parametrize(
    ("by", "name_of"),
    [
        ("video", lambda path: path),
        ("folder", lambda path: path.split("/")[0]),
        ("film[0-9]+", lambda path: path[:6]),
        (r"film(\d)\d/", lambda path: path[4]),
    ],
)
def test_a_video_is_held_back_by_the_hash_of_its_own_or_its_film_s_name(
    listed: Callable[..., Path], by: str, name_of: Callable[[str], str]
) -> None:
    train, held = parts(listed(PATHS), by)
    assert held == [path for path in PATHS if is_held(name_of(path))]
    assert train == [path for path in PATHS if not is_held(name_of(path))]
    assert train
    assert held
    assert not {name_of(path) for path in train} & {name_of(path) for path in held}


def test_it_stays_held_back_when_videos_come_and_when_more_is(listed: Callable[..., Path]) -> None:
    held = set(parts(listed(PATHS[::2]))[1])
    more = set(parts(listed([*reversed(PATHS), "later.mp4"]))[1])
    assert held
    assert held == more & set(PATHS[::2])
    assert more < set(parts(listed([*PATHS, "later.mp4"]), share=0.5)[1])


def test_parts_of_one_file_stay_together(listed: Callable[..., Path]) -> None:
    rows = [f"{path},{start},8" for path in PATHS[:20] for start in (0, 8, 16)]
    data = PretrainDataConfig(manifest=listed(rows, header="path,start,frames"), hold_back=SHARE)
    train, held = open_parts(data)
    assert held is not None
    assert set(names(train)) | set(names(held)) == set(PATHS[:20])
    assert not set(names(train)) & set(names(held))
    (source,) = held.sources
    found = [(video.path, video.start) for video in map(source.manifest.listed, range(len(source.manifest)))]
    assert found == [(path, start) for path in PATHS[:20] if is_held(path) for start in (0, 8, 16)]


def test_an_index_holds_back_what_its_list_does_block_by_block(listed: Callable[..., Path], tmp_path: Path) -> None:
    path = listed([f"{path},{number}" for number, path in enumerate(PATHS)], header="path,label")
    write_index(path, tmp_path / "index")
    assert parts(tmp_path / "index") == parts(path)
    whole = read_manifest(tmp_path / "index")
    blocks = list(whole.path_blocks(rows=7))
    assert [first for first, _ in blocks] == list(range(0, len(PATHS), 7))
    assert [path.decode() for _, block in blocks for path in block] == PATHS
    part = whole.part(~np.isin(range(len(PATHS)), range(10, 30)))
    kept = [*range(10), *range(30, len(PATHS))]
    assert [entry.label for entry in part] == kept
    found = list(part.label_blocks(rows=7))
    assert [int(label) for _, block in found for label in block] == kept
    assert [first for first, _ in found] == [sum(len(block) for _, block in found[:at]) for at in range(len(found))]
    assert part.rows.digest == whole.rows.digest
    with pytest.raises(IndexError):
        part[len(kept)]


def test_of_a_mixture_each_source_holds_back_its_own(listed: Callable[..., Path], tmp_path: Path) -> None:
    """The second has none to hold back; shares by number are those of what is trained on."""
    none = [path for path in PATHS if not is_held(path)][:8]
    listed(PATHS, "a.csv")
    listed(none, "b.csv")
    mix = tmp_path / "mix.toml"
    mix.write_text('[[source]]\nname="a"\nmanifest="a.csv"\nstride=3\n[[source]]\nname="b"\nmanifest="b.csv"\n')
    train, held = open_parts(PretrainDataConfig(mixture=str(mix), hold_back=SHARE))
    kept = [path for path in PATHS if not is_held(path)]
    assert names(train) == kept
    assert names(train, 1) == none
    assert held is not None
    assert [(source.name, source.stride) for source in held.sources] == [("a", 3)]
    assert names(held) == [path for path in PATHS if is_held(path)]
    assert [source.share for source in train.sources] == pytest.approx(
        [len(kept) / (len(kept) + 8), 8 / (len(kept) + 8)]
    )


def test_what_cannot_be_held_back_is_told(listed: Callable[..., Path]) -> None:
    path = listed(PATHS)
    with pytest.raises(DataError, match=r"--data.hold-back-by 'film0\.' finds nothing in the path 'film10/cut0.mp4'"):
        parts(path, "film0.")
    one = next(folder for number in range(99) if is_held(folder := f"film{number:02}"))
    with pytest.raises(
        ConfigError, match=r"hold-back 0.3 by folder leaves nothing to train on of the 2 videos of .*list"
    ):
        parts(listed([f"{one}/a.mp4", f"{one}/b.mp4"]), "folder")
    with pytest.raises(ValueError, match=r"val_manifest=val.csv and hold_back=0.1 both name validation videos: leave"):
        PretrainDataConfig(val_manifest=Path("val.csv"), hold_back=0.1)
    with pytest.raises(ValueError, match=re.escape("hold_back_by='(' is neither video nor folder nor a regular expr")):
        PretrainDataConfig(hold_back=0.1, hold_back_by="(")
    assert open_parts(PretrainDataConfig(manifest=listed(PATHS), hold_back=1e-9))[1] is None


def test_a_list_of_its_own_that_is_trained_on_is_found_whatever_its_paths_start_from(
    listed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = open_parts(PretrainDataConfig(manifest=listed(PATHS)))[0]
    absolute = [str(tmp_path / path) for path in PATHS[5:8]]
    path = tmp_path / "val.csv"
    path.write_text("\n".join(["path", *absolute, "./film00/../film01/cut0.mp4", "elsewhere/cut1.mp4"]) + "\n")
    assert (tmp_path / PATHS[0]).exists()
    found = videos_of_both(read_manifest(listed(PATHS[:1], "one.csv")), mixture)
    assert found == [str(tmp_path / PATHS[0])]
    for each in PATHS[5:8]:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).touch()
    assert videos_of_both(read_manifest(path), mixture) == sorted([*absolute, str(tmp_path / "film01/cut0.mp4")])
