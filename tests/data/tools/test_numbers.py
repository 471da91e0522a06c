"""Numbers that the data tools take: every numeric option of every tool refuses what makes no sense, before anything is read."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from vmae2_ds.cli.main import main
from vmae2_ds.data.entry import ReadAs
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.check import check_manifest
from vmae2_ds.data.tools.index import index_manifest
from vmae2_ds.data.tools.kinetics import merge_kinetics
from vmae2_ds.data.tools.pack import pack_manifest
from vmae2_ds.data.tools.prepare import prepare_manifest
from vmae2_ds.data.tools.shards import index_shards
from vmae2_ds.data.tools.synthetic import write_synthetic_set
from vmae2_ds.data.tools.video_facts import probe_entry
from vmae2_ds.errors import ConfigError

TOOLS: dict[str, Callable[..., object]] = {
    "check": check_manifest,
    "prepare": prepare_manifest,
    "pack": pack_manifest,
    "index": index_manifest,
    "index-shards": index_shards,
    "synth": write_synthetic_set,
    "merge-kinetics": merge_kinetics,
}
MAY_BE_0 = {"pictures", "seed", "shuffle", "crf", "sample", "val_videos", "shard_mib"}


def numeric(tool: str) -> dict[str, type]:
    """Option -> int or float, of all that a tool takes."""
    hints = typing.get_type_hints(TOOLS[tool])
    kinds = {
        name: [kind for kind in (int, float) if kind in (hint, *typing.get_args(hint))] for name, hint in hints.items()
    }
    return {name: kinds[name][0] for name in inspect.signature(TOOLS[tool]).parameters if kinds[name]}


OPTIONS = [(tool, name, kind) for tool in TOOLS for name, kind in numeric(tool).items()]


def test_the_options_are_those_of_the_help() -> None:
    assert {(tool, name) for tool, name, _ in OPTIONS} >= {
        ("check", "timeout_s"), ("check", "num_frames"), ("check", "classes"), ("prepare", "gop"), ("pack", "shard_mib"),
        ("pack", "shuffle"), ("index-shards", "workers"), ("synth", "fps"),
    }  # fmt: skip


@pytest.mark.parametrize(("tool", "name", "kind"), OPTIONS, ids=[f"{tool} {name}" for tool, name, _ in OPTIONS])
def test_numbers_without_sense_are_refused_with_their_range(tool: str, name: str, kind: type, tmp_path: Path) -> None:
    senseless: list[float] = [-1, 10**20] + ([] if name in MAY_BE_0 else [0])
    if kind is float:
        senseless += [float("nan"), float("inf"), float("-inf"), -0.1]
    place = [tmp_path / "out"] if tool == "synth" else ["none.csv", tmp_path / "out"]
    for value in senseless:
        with pytest.raises(ConfigError, match=rf"^--{name.replace('_', '-')} {value}: a number from \S+ to \S+$"):
            TOOLS[tool](*place, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("check none.csv --out o --timeout-s 0", "--timeout-s 0.0: a number from 0.1 to 86400"),
        ("check none.csv --out o --stride -1", "--stride -1: a number from 1 to 100000"),
        ("check none.csv --out o --reader pyaw", "unknown reader 'pyaw'"),
        ("check none.csv --out o --kind frames --template x.jpg", "gives every frame one name"),
        ("check none.csv --out o --kind frames --template {a}.jpg", "no format of a number"),
        ("prepare none.csv --out o --short-side 3", "--short-side 3: a number from 16 to 16384"),
        ("prepare none.csv --out o --crf 99", "--crf 99: a number from 0 to 51"),
        ("pack none.csv --out o --shard-mib -1", "--shard-mib -1.0: a number from 0 to 1048576"),
        ("index-shards none.tar --out o --workers 0", "--workers 0: a number from 1 to 256"),
        ("synth o --size 33", "--size 33: an even number of pixels, as H.264 keeps its colours; try 32 or 34"),
        ("synth o --train-videos 0", "--train-videos 0: a number from 1 to 1000000"),
        ("merge-kinetics o", "no set named"),
    ],
)
def test_the_command_line_says_it_in_one_line(
    words: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["data", *words.split()])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vmae2: ")
    assert told in line
    assert not list(tmp_path.iterdir())


def test_the_ends_of_the_ranges_work(tmp_path: Path) -> None:
    made = write_synthetic_set(tmp_path / "set", 1, 0, size=16, frames=1, fps=1000)
    (entry,) = read_manifest(made.train)
    facts = probe_entry(entry, ReadAs())
    assert (facts.frames, facts.height, facts.width) == (1, 16, 16)
    prepared = prepare_manifest(made.train, tmp_path / "out", short_side=16, gop=1, crf=51, workers=1, sample=0)
    assert (prepared.videos, prepared.speedups) == (1, [])
    assert check_manifest(made.train, tmp_path / "checked", num_frames=1, stride=1, min_frames=1, pictures=0).bad == 0
    assert pack_manifest(made.train, tmp_path / "packed", shard_mib=0).shards == 1
