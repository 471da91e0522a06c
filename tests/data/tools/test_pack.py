"""Tar shards: the same videos by the same rows, readable by webdataset, restartable, and honest about a full disk."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.readers.storage import fetch
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture, open_mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.data.tools.pack import PackArguments, pack_manifest
from vmae2_ds.data.tools.shards import IndexShardsArguments, expand, index_shards
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import ConfigError, DataError

SMALL = 2**20


@pytest.fixture
def listed(synthetic_set: SyntheticSet, tmp_path: Path) -> Path:
    """Twelve videos, two of them as parts of one more row each, and one that is not there."""
    videos = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))
    rows = [[path, number % 5, "a" if number < 6 else "b", "", ""] for number, path in enumerate(videos)]
    rows += [[videos[0], 0, "a", 4, 8], ["none.mp4", 1, "a", "", ""]]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "source", "start", "frames"], *rows])
    return tmp_path / "list.csv"


def pack(listed: Path, out: Path, **asked: object) -> object:
    return pack_manifest(PackArguments(manifest=listed, out=out, **{"shard_mib": 0, **asked}))  # type: ignore[arg-type]  # a shard a video


@pytest.mark.parametrize("shuffle", [None, 3])
def test_rows_and_bytes_are_those_of_the_files(listed: Path, tmp_path: Path, shuffle: int | None) -> None:
    packed = pack_manifest(PackArguments(manifest=listed, out=tmp_path / "out", shard_mib=1, shuffle=shuffle))
    assert (packed.videos, packed.rows, packed.bad) == (12, 13, 1)
    loose, inside = read_manifest(listed), read_manifest(tmp_path / "out/manifest.csv")
    assert inside.is_packed
    for row in range(13):
        one, other = loose[row], inside[row]
        assert (one.label, one.source, one.start, one.frames) == (other.label, other.source, other.start, other.frames)
        assert fetch(other) == Path(one.path).read_bytes()
    assert inside[12][5:] == inside[0][5:]  # parts of one film share its copy
    lines = [json.loads(line) for line in (tmp_path / "out/bad_files.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["none.mp4"]


def test_samples_are_those_of_the_files(
    listed: Path, tmp_path: Path, make_config: Callable[..., PretrainConfig]
) -> None:
    pack_manifest(PackArguments(manifest=listed, out=tmp_path / "out", shard_mib=1))
    (tmp_path / "mix.toml").write_text('[[source]]\nname = "x"\nmanifest = "out/manifest.csv"\nkind = "shards"\n')
    loose = PretrainDataset(make_config(), Mixture.of_manifest(read_manifest(listed), "pyav"))
    inside = PretrainDataset(make_config(), open_mixture(PretrainDataConfig(mixture=str(tmp_path / "mix.toml"))))
    for row in (0, 5, 12):
        assert torch.equal(loose[SampleKey(1, row)].clip_KTHWC, inside[SampleKey(1, row)].clip_KTHWC)
    for reader in ("decord", "pyav"):
        mixture = Mixture.of_manifest(read_manifest(tmp_path / "out/manifest.csv"), reader)
        assert torch.equal(
            loose[SampleKey(1, 5)].clip_KTHWC, PretrainDataset(make_config(), mixture)[SampleKey(1, 5)].clip_KTHWC
        )


def test_webdataset_reads_the_shards(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "out", shuffle=1)
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(shards) == 13  # one of them holds nothing: its file is not there
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    loose = read_manifest(listed)
    assert sorted(int(sample["__key__"]) for sample in samples) == list(range(12))
    for sample in samples:
        entry = loose[int(sample["__key__"])]
        assert sample["mp4"] == Path(entry.path).read_bytes()
        assert int(sample["cls"]) == entry.label


def test_the_same_list_gives_the_same_bytes(listed: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack_manifest(PackArguments(manifest=listed, out=tmp_path / name, shard_mib=1, shuffle=7))
    assert (tmp_path / "one/shards.jsonl").read_text() == (tmp_path / "two/shards.jsonl").read_text()
    assert (tmp_path / "one/manifest.csv").read_text() == (tmp_path / "two/manifest.csv").read_text()


def test_a_rerun_writes_only_what_is_missing_or_damaged(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = pack(listed, out)
    kept = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert pack(listed, out).written == 0  # type: ignore[attr-defined]
    (out / "000003.tar").unlink()
    (out / "000005.tar").write_bytes(b"short")
    flipped = bytearray(kept["000007.tar"])
    flipped[700] ^= 1
    (out / "000007.tar").write_bytes(flipped)
    assert pack(listed, out).written == 2  # type: ignore[attr-defined]
    assert (out / "000007.tar").read_bytes() == bytes(flipped)
    again = pack(listed, out, verify=True)
    assert again == first._replace(written=1)  # type: ignore[attr-defined]
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == kept


def test_another_list_or_setting_is_refused(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"begun with other settings \(shuffle: was None, now 1\); name another --out"
    ):
        pack(listed, tmp_path / "out", shuffle=1)
    listed.write_text(listed.read_text() + "more.mp4,,,,\n")
    with pytest.raises(ConfigError, match="begun with other settings"):
        pack(listed, tmp_path / "out")


def test_a_kill_at_any_time_loses_the_shard_in_work(listed: Path, tmp_path: Path) -> None:
    """Shards come one by one; the process is killed after the third, in the middle of the fourth."""
    program = f"""
import os, signal, sys
from pathlib import Path
from vmae2_ds.data.tools import pack
inner, count = pack.fetch, 0
def fetch(entry):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(entry)
pack.fetch = fetch
pack.pack_manifest(pack.PackArguments(manifest={str(listed)!r}, out={str(tmp_path / "out")!r}, shard_mib=0))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["000000.tar", "000001.tar", "000002.tar"]
    assert not (tmp_path / "out/manifest.csv").exists()
    again = pack(listed, tmp_path / "out")
    assert (again.written, again.videos) == (9 + 1, 12)  # type: ignore[attr-defined]  # the last one holds no video
    whole = pack(listed, tmp_path / "whole")
    assert again._replace(out=whole.out, written=0) == whole._replace(written=0)  # type: ignore[attr-defined]


def test_a_full_disk_is_one_line_and_loses_nothing_finished(listed: Path, tmp_path: Path) -> None:
    """A real file system of 64 KiB where root may mount one, else a limit on the size of files."""
    room = tmp_path / "room"
    room.mkdir()
    mounted = (
        os.getuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(room)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(DataError, match=r"No space left on device.*the same command goes on") as full:
            pack(listed, room / "out")
        assert "\n" not in str(full.value)
        finished = sorted(path.name for path in (room / "out").glob("*.tar"))
        assert finished
        assert not list((room / "out").glob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(room)], check=True)
        assert pack(listed, room / "out").written == 13 - len(finished)  # type: ignore[attr-defined]
    finally:
        subprocess.run(["umount", str(room)], check=True)


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(listed: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
        with pytest.raises(DataError, match="File too large"):
            pack_manifest(PackArguments(manifest=listed, out=tmp_path / "out", shard_mib=10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert pack_manifest(PackArguments(manifest=listed, out=tmp_path / "out", shard_mib=10)).videos == 12


def test_two_jobs_on_one_folder(listed: Path, tmp_path: Path) -> None:
    program = f"""
import fcntl, sys
file = open({str(tmp_path / "out/.lock")!r}, "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    (tmp_path / "out").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="held by another vmae2 data pack"):
        pack(listed, tmp_path / "out")
    holder.communicate()
    pack(listed, tmp_path / "out")


# --- shards that something else wrote --------------------------------------------------------------------------------


def test_foreign_shards_are_indexed_with_their_labels(synthetic_set: SyntheticSet, tmp_path: Path) -> None:
    videos = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"s-{shard:03d}.tar")) as tar:
            for number in range(3):
                path = videos[3 * shard + number]
                label = {} if number == 2 else {"cls": number}
                tar.write({"__key__": f"k/{shard}{number}", "mp4": path.read_bytes(), "txt": "a caption", **label})
    indexed = index_shards(IndexShardsArguments(shards=str(tmp_path / "s-{000..001}.tar"), out=tmp_path / "list.csv"))
    assert (indexed.shards, indexed.videos, indexed.labelled) == (2, 6, 4)
    manifest = read_manifest(tmp_path / "list.csv")
    assert [fetch(entry) for entry in manifest] == [path.read_bytes() for path in videos[:6]]
    assert [entry.label for entry in manifest] == [0, 1, None, 0, 1, None]
    assert index_shards(IndexShardsArguments(shards=str(tmp_path / "s-*.tar"), out=tmp_path / "again.csv")).videos == 6
    by_url = index_shards(IndexShardsArguments(shards=f"file://{tmp_path}/s-000.tar", out=tmp_path / "url.csv"))
    assert by_url.videos == 3
    assert fetch(read_manifest(tmp_path / "url.csv")[1]) == videos[1].read_bytes()


def test_what_is_no_shard_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(os.urandom(5000))
    with pytest.raises(DataError, match=r"a\.tar: not a tar shard"):
        index_shards(IndexShardsArguments(shards=str(tmp_path / "a.tar"), out=tmp_path / "list.csv"))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        member = tarfile.TarInfo("readme.txt")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"hi"))
    with pytest.raises(DataError, match="no video in 1 shard"):
        index_shards(IndexShardsArguments(shards=str(tmp_path / "b.tar"), out=tmp_path / "list.csv"))
    with pytest.raises(DataError, match="no such shards"):
        index_shards(IndexShardsArguments(shards=str(tmp_path / "c*.tar"), out=tmp_path / "list.csv"))
    assert not (tmp_path / "list.csv").exists()
    assert expand("x/{8..11}.tar") == [f"x/{number}.tar" for number in (8, 9, 10, 11)]
    assert expand("s3://b/{00..01}-{0..1}.tar") == [f"s3://b/0{a}-{b}.tar" for a in (0, 1) for b in (0, 1)]
    assert np.unique(expand("{000..999}")).size == 1000
