"""What needs no torch does without it: help of every verb, and what a first look at the command line refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vmae2_ds.cli.main import VERBS

ROOT = Path(__file__).parents[2]


def outcomes(lines: list[list[str]], folder: Path) -> dict[str, int | str]:
    """Exit code, or the heavy package that was asked for, by command line; one process in `folder` for all of them."""
    command = [sys.executable, "-m", "tests.cli.without_heavy", json.dumps(lines)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return dict(zip((" ".join(line) for line in lines), json.loads(done.stdout), strict=True))


def test_help_of_every_verb_comes_without_heavy_packages(tmp_path: Path) -> None:
    found = outcomes([[], ["--help"], ["--version"], *([*verb.split(), "--help"] for verb in VERBS)], tmp_path)
    assert found.pop("") == 2
    assert {line: what for line, what in found.items() if what != 0} == {}


def test_the_list_of_verbs_comes_without_numpy_and_without_the_settings_of_stages() -> None:
    """Each verb's own help may need them; `vmae2 --help`, which people type most, is then a fifth of a second quicker."""
    code = "import sys, vmae2_ds.cli.main; sys.exit(not {'numpy', 'vmae2_ds.config.run'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_a_first_look_refuses_needs_no_heavy_package(tmp_path: Path) -> None:
    """A missing list, an empty one, bad shapes, labels that are no numbers: nobody waits for torch to be told."""
    video, empty, texts = (tmp_path / name for name in ("list.csv", "empty.csv", "texts.csv"))
    (tmp_path / "a.mp4").write_bytes(b"no video")
    video.write_text("path\na.mp4\n")
    empty.write_text("path,label\n")
    texts.write_text("path,label\na.mp4,cat\n")
    (one := tmp_path / "one.csv").write_text("path,label,source\na.mp4,0,a\na.mp4,1,a\n")
    (names := tmp_path / "names.txt").write_text("cat\n")
    refused = [
        "pretrain vit_ti_pretrain_desk",
        "pretrain vit_ti_pretrain_desk --data.manifest nowhere.csv",
        f"pretrain vit_ti_pretrain_desk --data.manifest {empty}",
        f"pretrain vit_ti_pretrain_desk --data.manifest {video} --data.size 70",
        f"pretrain vit_ti_pretrain_desk --data.manifest {video} --mask.decoder-ratio 0.3",
        f"pretrain vit_ti_pretrain_desk --data.manifest {video} --train.micro-batch 3",
        f"pretrain vit_ti_pretrain_desk --data.manifest {video} --train.ds-config zero9",
        f"pretrain vit_ti_pretrain_desk --data.manifest {video} --train.init nowhere.pth",
        f"finetune vit_ti_finetune_desk --data.manifest {texts}",
        f"finetune vit_ti_finetune_desk --data.manifest {video}",  # without labels
        f"finetune vit_ti_finetune_desk --data.manifest {texts} --data.labels {names}",  # of another number of classes
        f"finetune vit_ti_finetune_desk --data.manifest {texts} --data.labels nowhere.txt",
        f"finetune vit_ti_finetune_desk --data.manifest {video} --data.val-manifest nowhere.csv",
        f"distil vit_ti_distil_desk --data.manifest {video} --teacher nowhere.pth",
        f"distil vit_ti_distil_desk --data.manifest {video}",  # without a teacher
        f"distil vit_ti_distil_desk --data.manifest {video} --teacher {tmp_path} --distil.alpha 0.5",  # without labels
        "distil-cache vit_ti_distil_desk --data.manifest nowhere.csv",
        f"distil-cache vit_ti_distil_desk --data.manifest {video} --distil.cache answers",
        f"distil-cache vit_ti_distil_desk --data.manifest {video} --teacher {tmp_path}",
        "evaluate nowhere --manifest x.csv",
        f"evaluate {tmp_path} --manifest nowhere.csv",
        "predict nowhere a.mp4",
        "probe nowhere --manifest x.csv",
        f"probe {tmp_path} --manifest {one} --kind linear",  # of one source, and nothing to test on
        "tad score --gt nowhere.json --pred nowhere.json",
        "ava score --gt nowhere.csv --det nowhere.csv --labelmap nowhere.txt",
        "ava score-tubes --gt nowhere.pkl --det nowhere.csv",
        "ava convert nowhere.pkl --out x --fps 25",
        "visualize nowhere",
        "import nowhere.pth --out x.safetensors",
        "export nowhere --out x.pth",
        "data check nowhere.csv --out x",
        "data list nowhere --out x.csv",
        "data index nowhere.csv --out x",
        "data pack nowhere.csv --out x",
        "data prepare nowhere.csv --out x",
        "data index-shards nowhere.tar --out x.csv",
        "plan vit_b_pretrain_hybrid --gpus 8 --gpu a1000",
        "tune vit_b_pretrain_hybrid --gpus 7 --gpu h100",
        "launch slurm vit_b_pretrain_hybrid --nodes 7 --data.manifest x.csv",
        "launch hosts vit_b_pretrain_hybrid --hostfile nowhere --data.manifest x.csv",
    ]
    found = outcomes([line.split() for line in refused], tmp_path)
    assert {line: what for line, what in found.items() if what != 2} == {}
