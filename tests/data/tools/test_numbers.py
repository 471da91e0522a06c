"""Numbers that the data tools take: what makes no sense is refused in one line, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.cli.main import main
from vmae2_ds.data.entry import ReadAs
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.check import CheckArguments, check_manifest
from vmae2_ds.data.tools.pack import PackArguments, pack_manifest
from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.data.tools.video_facts import probe_entry


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("check none.csv --out o --timeout-s 0", "--timeout-s 0.0: at least 0.1"),
        ("check none.csv --out o --stride -1", "--stride -1: at least 1"),
        ("check none.csv --out o --reader pyaw", "unknown reader 'pyaw'"),
        ("check none.csv --out o --kind frames --template x.jpg", "gives every frame one name"),
        ("check none.csv --out o --kind frames --template {a}.jpg", "no format of a number"),
        ("prepare none.csv --out o --short-side 3", "--short-side 3: at least 16"),
        ("prepare none.csv --out o --crf 99", "--crf 99: at most 51"),
        ("pack none.csv --out o --shard-mib -1", "--shard-mib -1.0: at least 0"),
        ("index-shards none.tar --out o --workers 0", "--workers 0: at least 1"),
        ("synth o --size 33", "--size 33: an even number of pixels, as H.264 keeps its colours; try 32 or 34"),
        ("synth o --train-videos 0", "--train-videos 0: at least 1"),
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
    made = write_synthetic_set(
        SynthArguments(folder=tmp_path / "set", train_videos=1, val_videos=0, size=16, frames=1, fps=1000)
    )
    (entry,) = read_manifest(made.train)
    facts = probe_entry(entry, ReadAs())
    assert (facts.frames, facts.height, facts.width) == (1, 16, 16)
    prepared = prepare_manifest(
        PrepareArguments(manifest=made.train, out=tmp_path / "out", short_side=16, gop=1, crf=51, workers=1, sample=0)
    )
    assert (prepared.videos, prepared.speedups) == (1, [])
    assert (
        check_manifest(
            CheckArguments(
                manifest=made.train, out=tmp_path / "checked", num_frames=1, stride=1, min_frames=1, pictures=0
            )
        ).bad
        == 0
    )
    assert pack_manifest(PackArguments(manifest=made.train, out=tmp_path / "packed", shard_mib=0)).shards == 1
