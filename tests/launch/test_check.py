"""What a run's own start would refuse is refused where its script is written, for every launcher alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.cli.main import main

DISTIL = "vit_ti_distil_desk --train.micro-batch 1"
FINETUNE = "vit_ti_finetune_desk --train.micro-batch 1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lists of videos and a hostfile, in the current folder."""
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "bare.csv").write_text("path\n" + "a.mp4\n" * 64)
    (tmp_path / "far.csv").write_text("path,label\n" + "a.mp4,9999\n" * 64)
    (tmp_path / "good.csv").write_text("path,label\n" + "a.mp4,1\n" * 64)
    (tmp_path / "names.txt").write_text("cat\n")
    (tmp_path / "hosts").write_text("w1 slots=1\nw2 slots=1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("launcher", ["slurm --nodes 2 --gpus-per-node 1", "hosts --hostfile hosts"])
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (f"{DISTIL} --data.manifest good.csv", "no teacher named: give --teacher"),
        (f"{DISTIL} --data.manifest elsewhere.csv", "no teacher named: give --teacher"),
        (f"{DISTIL} --data.manifest bare.csv --teacher t.pth --distil.alpha 0.5", "has no label"),
        (f"{FINETUNE} --data.manifest bare.csv", "has no label"),
        (f"{FINETUNE} --data.manifest far.csv", "has label 9999"),
        (f"{FINETUNE} --data.manifest good.csv --data.labels names.txt", "names 1 classes"),
        (f"{FINETUNE} --data.manifest good.csv --data.val-manifest far.csv", "has label 9999"),
        ("vit_ti_pretrain_desk --data.manifest elsewhere.csv --mask.decoder-ratio 0.3", "0.3"),
        (f"{DISTIL} --data.manifest good.csv --teacher t.pth", ""),
        (f"{DISTIL} --data.manifest bare.csv --distil.cache answers --augment.mixup 0 --augment.cutmix 0", ""),
        (f"{FINETUNE} --data.manifest good.csv --data.val-manifest elsewhere.csv", ""),
    ],
)
def test_what_the_run_s_own_start_refuses_is_not_written(
    words: str, part: str, launcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are not on this host, a teacher's too, may be on those of the run; an empty `part`: it is written."""
    verb, *options = launcher.split()
    with pytest.raises(SystemExit) as stop:
        main(["launch", verb, *words.split(), *options])
    said = capsys.readouterr()
    assert (stop.value.code or 0) == (2 if part else 0), said.err
    if part:
        assert part in said.err.strip().splitlines()[-1]
        assert not said.out
