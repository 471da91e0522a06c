"""Data tools as several ranks or parts: the same result as one process, nothing done twice, and whoever is lost is named."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.tools.part_process import NoChild, Start
from vmae2_ds.cli.main import main
from vmae2_ds.data.tools import division, parallel, parts
from vmae2_ds.data.tools.check import CheckArguments, check_manifest
from vmae2_ds.data.tools.index import IndexArguments, index_manifest
from vmae2_ds.data.tools.job_folder import PartDone
from vmae2_ds.data.tools.pack import PackArguments, PackedManifest, pack_manifest
from vmae2_ds.data.tools.parts import part_here
from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import ConfigError
from vmae2_ds.host import Cores

VIDEOS = 6
PREPARE = {"short_side": 32, "gop": 4, "workers": 1, "sample": 0}
CHECK = {"pictures": 0, "workers": 1, "num_frames": 4, "stride": 1}
GIVEN = {"prepare": PREPARE, "check": CHECK, "pack": {"shard_mib": 0}}
"""A shard a video; nothing that takes time beside the work."""
SHARD_MIB = 0.02
"""A shard of a few videos."""
BAD = {"text.mp4", "other.mp4", "none.mp4"}


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No watchdog's child in this process either."""
    monkeypatch.setattr(parallel, "Watchdog", NoChild)


@pytest.fixture(scope="module")
def listed(synthetic_set: SyntheticSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small videos, one of them as two parts and under two names, two that are none, one that is not there."""
    folder = tmp_path_factory.mktemp("listed") / "set"
    folder.mkdir()
    sound = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))[:VIDEOS]
    for number, path in enumerate(sound):
        shutil.copy(path, folder / f"{number}.mp4")
    for name in ("text.mp4", "other.mp4"):
        (folder / name).write_text(f"{name}: no video\n")
    rows = [f"{number}.mp4,{number % 3},," for number in range(VIDEOS)]
    rows += ["0.mp4,0,4,8", "./1.mp4,1,,", "text.mp4,1,,", "other.mp4,1,,", "none.mp4,2,,"]
    (folder / "list.csv").write_text("path,label,start,frames\n" + "".join(f"{row}\n" for row in rows))
    return folder / "list.csv"


def words(verb: str, listed: Path, out: Path, *more: str) -> list[str]:
    options = [word for name, value in GIVEN[verb].items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["data", verb, str(listed), "--out", str(out), *options, *more]


def content(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made_by_one(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """What one process makes, once for each verb."""

    @functools.cache
    def made(verb: str) -> dict[str, bytes]:
        out = tmp_path_factory.mktemp("one") / "out"
        with pytest.raises(SystemExit) as stop:
            main(words(verb, listed, out))
        assert not stop.value.code
        return content(out)

    return made


@pytest.mark.parametrize("verb", GIVEN)
def test_ranks_that_are_killed_and_gone_on_with_by_another_number_give_what_one_gives(
    verb: str, listed: Path, tmp_path: Path, made_by_one: Callable[[str], dict[str, bytes]]
) -> None:
    """Three ranks, of which one is killed after one file; then two go on: what is in the folder, and what was done."""
    one, out = made_by_one(verb), tmp_path / "out"
    args = words(verb, listed, out)
    other_name = set() if verb == "prepare" else {"./1.mp4"}  # two names of one file are one copy
    go = tmp_path / "go"  # the last rank waits until the first has seen that another is gone
    first = [
        Start(args, tmp_path, rank, 3, die_at, wait)
        for rank, die_at, wait in ((0, -1, ""), (1, 1, ""), (2, -1, str(go)))
    ]
    first[0].wait_until_said("the others go on")
    go.touch()
    ends = [start.end() for start in first]
    assert [code for code, _, _ in ends] == [78, -signal.SIGKILL, 0], ends
    host = os.uname().nodename
    assert f"rank 1 is gone on {host}: 1 of its" in ends[0][2], ends[0][2]
    assert "missing; the others go on" in ends[0][2], "said while the others work"
    assert "the same command goes on, on any number of ranks" in ends[0][2]
    done = Counter((tmp_path / "counted").read_text().split())
    assert sorted(done.values()) == [1] * len(done)
    assert 1 < len(done) < VIDEOS + len(BAD)
    second = [Start(args, tmp_path, rank, 2) for rank in range(2)]
    ends = [start.end() for start in second]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[1][1] == ""
    assert "in an earlier start rank 1 is gone" in ends[0][2]
    files = VIDEOS + len(BAD) + len(other_name)
    assert f"{files} of {files} " in ends[0][2].splitlines()[-1], "rank 0 tells how far all are"
    assert content(out) == one
    again = Counter((tmp_path / "counted").read_text().split())
    assert {name for name, times in again.items() if times > 1} <= (BAD if verb == "prepare" else set())
    assert set(again) == {f"{number}.mp4" for number in range(VIDEOS)} | other_name | BAD


@pytest.mark.parametrize("verb", GIVEN)
def test_parts_of_an_array_job_in_any_order_give_what_one_gives(
    verb: str,
    listed: Path,
    tmp_path: Path,
    made_by_one: Callable[[str], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, out = made_by_one(verb), tmp_path / "out"
    capsys.readouterr()
    for part in ("3/3", "1/3", "2/3"):
        with pytest.raises(SystemExit) as stop:
            main(words(verb, listed, out, "--part", part))
        assert not stop.value.code
        said = capsys.readouterr().out
        if part != "2/3":
            assert said.startswith(f"part {part} is done: ")
            assert "part 2/3 has not begun" in said
    assert content(out) == one
    with pytest.raises(SystemExit):  # a task of a finished job that comes again changes nothing
        main(words(verb, listed, out, "--part", "1/3"))
    assert content(out) == one


@pytest.mark.parametrize("shuffle", [None, 3])
def test_parts_that_pack_close_their_shards_where_one_process_does(
    listed: Path, tmp_path: Path, shuffle: int | None
) -> None:
    """Shards of a few videos each, and folders that were begun by fewer; one of the shards is lost on the way."""

    one = packed(listed, tmp_path / "one", shuffle)
    assert isinstance(one, PackedManifest)
    assert 2 < one.shards < VIDEOS
    for file in sorted(one.out.glob("*.tar"))[:-1]:  # each is full, and was not before its last video
        with tarfile.open(file) as tar:
            members = tar.getmembers()
        videos = [member for member in members if member.name.endswith(".mp4")]
        blocks = -(-members[-1].size // tarfile.BLOCKSIZE)
        assert members[-1].offset_data + blocks * tarfile.BLOCKSIZE >= SHARD_MIB * 2**20
        assert videos[-1].offset - 2 * tarfile.BLOCKSIZE < SHARD_MIB * 2**20, "in front of it lies its label"
    out = tmp_path / "out"
    assert isinstance(packed(listed, out, shuffle, "2/2"), PartDone)
    assert isinstance(packed(listed, out, shuffle, "1/3"), PartDone)
    shards = sorted(out.glob("*.tar"))
    shards[0].unlink()
    assert packed(listed, out, shuffle) == one._replace(out=out, written=one.shards - len(shards) + 1)
    assert content(out) == content(one.out)


def packed(listed: Path, out: Path, shuffle: int | None = None, part: str | None = None) -> PackedManifest | PartDone:
    return pack_manifest(PackArguments(manifest=listed, out=out, shard_mib=SHARD_MIB, shuffle=shuffle, part=part))


def test_a_video_that_grows_between_parts_is_packed_once(listed: Path, tmp_path: Path) -> None:
    """Who plans anew would close shards elsewhere."""
    folder = tmp_path / "set"
    shutil.copytree(listed.parent, folder)
    assert isinstance(packed(folder / "list.csv", tmp_path / "out", part="2/2"), PartDone)
    for number in range(VIDEOS):
        with (folder / f"{number}.mp4").open("ab") as file:
            file.write(bytes(50_000))
    done = packed(folder / "list.csv", tmp_path / "out", part="1/2")
    assert isinstance(done, PackedManifest)
    assert (done.videos, done.rows) == (VIDEOS + len(BAD), VIDEOS + 1 + len(BAD))
    shards = (tmp_path / "out/shards.jsonl").read_text().splitlines()
    ends = [(json.loads(line)["begin"], json.loads(line)["end"]) for line in shards]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]


def test_videos_behind_urls_are_packed_into_the_shards_of_the_same_files(listed: Path, tmp_path: Path) -> None:
    """Their storage is asked for their sizes; else each would have a shard of its own."""
    names = [f"{number}.mp4" for number in range(VIDEOS)]
    for kind, prefix in (("files", f"{listed.parent}/"), ("urls", f"file://{listed.parent}/")):
        (tmp_path / f"{kind}.csv").write_text("path\n" + "".join(f"{prefix}{name}\n" for name in names))
        packed(tmp_path / f"{kind}.csv", tmp_path / kind)
    files, urls = ((tmp_path / kind / "shards.jsonl").read_text() for kind in ("files", "urls"))
    assert files == urls
    assert len(files.splitlines()) == 2


def test_shards_that_were_closed_by_another_rule_stay(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that an earlier version began, which closed its shards a little later or earlier."""
    out = tmp_path / "out"
    with monkeypatch.context() as earlier:
        earlier.setattr("vmae2_ds.data.tools.pack.tar_bytes_of", lambda sizes, has_label: 2**20 * (sizes > 0))
        packed(listed, out)
    lines = (out / "shards.jsonl").read_text().splitlines(keepends=True)
    (out / "shards.jsonl").write_text("".join(lines[:2]))  # stopped after two
    kept = {name: (out / name).stat().st_mtime_ns for name in ("000000.tar", "000001.tar")}
    for shard in sorted(out.glob("*.tar"))[2:]:
        shard.unlink()
    done = packed(listed, out)
    assert isinstance(done, PackedManifest)
    assert done.videos == VIDEOS + len(BAD)
    assert (out / "shards.jsonl").read_text().splitlines(keepends=True)[:2] == lines[:2]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_the_first_rank_or_part_alone_reads_a_list_and_indexes_it(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def index(out: str, part: str | None = None) -> object:
        return index_manifest(IndexArguments(manifest=listed, out=tmp_path / out, part=part))

    one = index("one")
    monkeypatch.setattr("vmae2_ds.data.tools.index.write_index", None)  # nobody else may
    assert str(index("out", "2/2")) == "part 2/2 has nothing to do: part 1/2 reads the list, once, and writes the index"
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert isinstance(index("out"), PartDone)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert index("out", "1/2") == one._replace(folder=tmp_path / "out")  # type: ignore[attr-defined]
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_two_parts_that_end_at_once_put_one_result_together(
    listed: Path, tmp_path: Path, made_by_one: Callable[[str], dict[str, bytes]]
) -> None:
    """Held back until both are at work, then let go: one tells of the result, the other that there is one or who has it."""
    one, out, go = made_by_one("check"), tmp_path / "out", tmp_path / "go"
    starts = [Start(words("check", listed, out, "--part", f"{part}/2"), tmp_path, wait_for=str(go)) for part in (1, 2)]
    deadline = time.monotonic() + 60
    while len(list((out / ".parts").glob("*.jsonl"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(SystemExit) as stop:  # neither one process nor other parts come in between
        main(words("check", listed, out))
    assert stop.value.code == 2
    go.touch()
    ends = [start.end() for start in starts]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert sum("clean.csv, bad.csv, report.html" in said for _, said, _ in ends) == 1
    assert content(out) == one


def test_parts_that_do_not_fit_together_are_refused(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def prepare(part: str | None, **asked: object) -> object:
        return prepare_manifest(PrepareArguments(manifest=listed, out=out, part=part, **{**PREPARE, **asked}))  # type: ignore[arg-type]

    for part in ("0/4", "5/4", "1/0"):
        with pytest.raises(ConfigError, match="parts are numbered from 1 to N"):
            prepare(part)
    for part in ("1", "a/b", "-1/2", "1/2/3", ""):
        with pytest.raises(ConfigError, match="write i/N"):
            prepare(part)
    assert not out.exists()
    assert isinstance(prepare("1/3"), PartDone)
    with pytest.raises(ConfigError, match=r"other settings \(crf: was 20, now 30\)"):
        prepare("2/3", crf=30)
    with pytest.raises(ConfigError, match=r"begun with other settings \(seed: was 0, now 1\); give all parts the same"):
        prepare("2/3", seed=1)
    with pytest.raises(ConfigError, match="holds files of something else"):
        check_manifest(CheckArguments(manifest=listed, out=out, part="2/3"))
    go = tmp_path / "go"
    with held_back(
        Start(words("prepare", listed, out, "--part", "2/3"), tmp_path, wait_for=str(go)),
        out / ".parts/00002.jsonl",
        go,
    ):
        with pytest.raises(
            ConfigError, match=r"worked on in 3 parts: part 2/3 is at work on .*; this is part 1/4 of 4"
        ):
            prepare("1/4")
        with pytest.raises(ConfigError, match=r"part 2/3 is at work on"):
            prepare("2/3")
        with pytest.raises(ConfigError, match="worked on in 3 parts"):
            prepare(None)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torch started 2 ranks, which share the work by themselves"):
        part_here("1/2")


def test_a_tool_in_the_shell_of_an_allocation_says_how_to_share_the_work_or_do_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(
        ConfigError, match=r"8 tasks.*would do all of the work; write srun in front.*--part 1/1"
    ) as told:
        part_here(None)
    assert "train" not in str(told.value)
    assert part_here("1/1").of == 1


@pytest.mark.parametrize(("bound", "ranks", "expected"), [(8, 1, 8), (8, 3, 2), (8, 16, 1), (4, 3, 4)])
def test_ranks_of_a_host_share_its_cores_unless_each_is_bound_to_its_own(
    bound: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 64, "LOCAL_WORLD_SIZE": ranks}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(parts, "cores", lambda: Cores(8, bound, None))
    assert parts.at_once_here(None) == expected
    assert parts.at_once_here(5) == 5


@contextlib.contextmanager
def held_back(start: Start, file: Path, go: Path) -> Iterator[None]:
    """A part at work for as long as the block lasts."""
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        yield
    finally:
        go.touch()
        assert start.end()[0] == 0


def test_a_part_that_is_lost_or_stopped_is_named_by_the_others(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = Start(words("prepare", listed, out, "--part", "2/2"), tmp_path, die_at=1).end()
    assert killed[0] == -signal.SIGKILL
    said = Start(words("prepare", listed, out, "--part", "1/2"), tmp_path).end()[1]
    assert f"part 2/2 is gone on {os.uname().nodename}: 1 of its" in said
    assert "start --part 2/2 again" in said
    go = tmp_path / "go"
    start = Start(words("prepare", listed, out, "--part", "2/2"), tmp_path, wait_for=str(go))
    deadline = time.monotonic() + 60
    while parts.read_status(out / ".parts/00002").pid != start.pid:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    start.stop(signal.SIGTERM)
    code, _, err = start.end()
    assert code == 75, err
    assert "stopped by SIGTERM; what is finished stays, and the same command goes on" in err


# --- division --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [2, 3, 7])
def test_parts_have_each_file_once_and_like_cost(of: int) -> None:
    rng = np.random.default_rng(0)
    costs = (10 ** rng.uniform(4, 9, 4000)).astype(np.int64)
    costs[::of] *= 3  # every of-th is large: parts that take turns would not be alike
    shares = [division.share(costs, part, of) for part in range(of)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(4000))
    loads = [costs[share].sum() for share in shares]
    assert max(loads) - min(loads) < 0.001 * sum(loads)
    left = shares[0]  # of a part that never ran, another number of parts has about as much each
    others = [len(np.intersect1d(left, division.share(costs, part, 2 * of))) for part in range(2 * of)]
    assert max(others) < 2 * len(left) / (2 * of)


def test_names_are_numbered_as_they_first_occur() -> None:
    rng = np.random.default_rng(1)
    names = [f"n{number}" for number in rng.integers(0, 300, 1000)]
    found = division.Distinct(names)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    assert found.of_place.tolist() == [numbers[name] for name in names]
    assert found.first.tolist() == [names.index(name) for name in numbers]
    assert [found.number_of(name) for name in numbers] == list(numbers.values())
    assert found.number_of("other") is None
