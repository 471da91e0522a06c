"""docs/YOUR_VIDEOS.md: all its commands run one after another at desk size, and leave what the page says they do."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.downstream.tad.test_page import commands, exit_code, unknown_options, verb_of
from vmae2_ds.checkpoint.whole import tag_of
from vmae2_ds.config.model import ClassifierConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

PAGE = (Path(__file__).parents[1] / "docs" / "YOUR_VIDEOS.md").read_text()
CLIP = "--num-frames 8 --size 32 --workers 0"
TRAIN = (
    "--data.num-frames 8 --data.size 32 --data.workers 0 --model.encoder.depth 2 --model.decoder.depth 1 "
    "--model.attention math --train.global-batch 8 --train.micro-batch 2 --train.save-every 1 --train.log-every 1 "
    "--train.no-tensorboard --data.hold-back 0.4 --train.validate-every 0.2 --optim.warmup-epochs 0.2"
)
MORE = {
    "data prepare": "--sample 0",
    "pretrain": TRAIN,
    "visualize": "--clips 1",
    "extract": "--workers 0",
    "probe": CLIP,
}
"""What makes a command of the page cheap."""
SMALLER = {
    "pretrain vit_b_continue": "pretrain vit_ti_continue_desk",
    ".pth": ".safetensors",
    "--part-s 10": "--part-s 1",
    "--optim.freeze-encoder-steps 400": "--optim.freeze-encoder-steps 2",
    "--optim.decay 10": "--optim.decay 0.3",
    "--clips 4": "",
    "--stride 16": "--stride 8",
}


def write_models() -> None:
    """A masked autoencoder of the desk's size, and a classifier of it, without a decoder."""
    model, clip = ModelConfig.of_size("tiny", patch=8), ClipGeometry(8, 32, 32, 2, 8)
    encoder, decoder = (
        tower.model_copy(update={"depth": depth}) for tower, depth in ((model.encoder, 2), (model.decoder, 1))
    )
    model = model.model_copy(update={"encoder": encoder, "decoder": decoder})
    weights = MaskedAutoencoder(model, clip, seed=0).state_dict()
    write_weights(to_layout(weights, model), Path("vit_b_hybrid_pt_800e.safetensors"), model)
    classifier = ClassifierConfig(encoder=model.encoder, patch=8, num_classes=3)
    weights = Classifier(classifier, clip, seed=1).state_dict()
    write_weights(to_layout(weights, classifier), Path("my_encoder.safetensors"), classifier)


def write_films() -> None:
    """Twelve films, no two of one name, a file that is none, and lists of labelled ones beside them."""
    made = write_synthetic_set(SynthArguments(folder=Path("films"), train_videos=8, val_videos=4, size=64, frames=32))
    for listed, name in ((made.train, "labelled"), (made.val, "labelled_val")):
        rows = ["path,label"]
        for row in listed.read_text().splitlines()[1:]:
            path, label, _ = row.split(",")
            film = Path("films", path).rename(Path("films", path.replace("/", "/" + name)))
            rows.append(f"{film},{label}")
        Path(f"{name}.csv").write_text("\n".join(rows) + "\n")
        listed.unlink()
    Path("films/torn.mp4").write_text("no video")


@pytest.mark.slow
def test_the_page_runs_from_the_films_to_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_films()
    write_models()
    best = ""
    asked = commands(PAGE)
    assert [verb_of(words) for words in asked] == [
        "data list", "data check", "data prepare", "plan", "pretrain", "pretrain", "visualize", "extract", "probe", "probe",
        "pretrain", "export",
    ]  # fmt: skip
    for words in asked:
        verb, line = verb_of(words), shlex.join(words)
        if verb != "plan":  # which takes a recipe's options too
            assert unknown_options(words) == [], line
        for large, small in SMALLER.items():
            line = line.replace(large, small)
        line = f"{line} {MORE.get(verb, '')}".replace("step00006000", best)
        if verb == "pretrain" and "--train.branch" not in line:
            line += " --train.max-steps 4"
        assert exit_code(shlex.split(line)) == 0, line
        if "--train.run runs/films " in line:
            best = best_by_the_page()
            assert Path("runs/films/ckpt", best).is_dir()
    (bad,) = Path("checked/bad.csv").read_text().splitlines()[1:]
    assert "films/torn.mp4" in bad
    held_back = [json.loads(row)["step"] for row in Path("runs/films/validation.jsonl").read_text().splitlines()]
    assert held_back[0] == 0
    assert held_back[-1] == 4
    assert len(list(Path("features").glob("*.npy"))) == len(Path("small/manifest.csv").read_text().splitlines()) - 1
    assert json.loads(Path("runs/films_cooled/finished.json").read_text())
    assert Path("films_vit_b/model.safetensors").is_file()


def best_by_the_page() -> str:
    """The folder of the step that the page's line of Python prints."""
    (code,) = re.findall(r'^python (-c ".*")$', PAGE.replace("\\\n", ""), re.MULTILINE)
    told = subprocess.run([sys.executable, *shlex.split(code)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"'step': (\d+)", told)
    assert found is not None, told
    return tag_of(int(found[1]))


@pytest.mark.parametrize(("name", "gpu"), [("A100 80GB", "a100-80g"), ("RTX 4090", "rtx-4090")])
def test_its_table_is_what_the_planner_says(name: str, gpu: str, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", PAGE, re.MULTILINE)
    capsys.readouterr()
    words = f"plan vit_b_continue --gpus 1 --gpu {gpu} --videos 5000 --gpu-hour-price 2 --json".split()
    assert exit_code(words) == 0
    plan = json.loads(capsys.readouterr().out)
    hours, cost = plan["hours"], plan["cost"]
    assert row.split(" | ")[:-1] == [
        f"{plan['memory_gib']['total']['expected']:.1f}",
        f"{60 * hours['expected']:.0f} min",
        f"{60 * hours['best']:.0f} min to {hours['worst']:.1f} h",
        f"{cost['expected']:.2g} ({cost['best']:.2g} to {cost['worst']:.2g})",
    ]
