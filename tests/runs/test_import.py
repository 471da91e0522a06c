"""`vmae2 import` and `vmae2 export`: every layout there and back by file, and folders that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae2_ds.config.model import SIZES, ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, evaluate
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.runs.export import ExportArguments, ImportArguments, export_weights, import_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import LAYOUTS, StateDict, to_layout
from vmae2_ds.weights.source import read_all

GEOMETRY = ClipGeometry(4, 32, 32, 2, 16)
ENCODER = SIZES["tiny"][0].model_copy(update={"depth": 2})
DECODER = SIZES["tiny"][1].model_copy(update={"depth": 1})
MODELS: dict[str, EncoderConfig] = {
    "pretrain": ModelConfig(encoder=ENCODER, decoder=DECODER),
    "classifier": ClassifierConfig(encoder=ENCODER, num_classes=7),
}


def drawn(config: EncoderConfig) -> StateDict:
    make: Any = Classifier if isinstance(config, ClassifierConfig) else MaskedAutoencoder
    model = make(config, GEOMETRY, seed=None)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("stage", sorted(MODELS))
def test_out_by_file_and_in_again_is_bit_exact(tmp_path: Path, layout: str, stage: str) -> None:
    config = MODELS[stage]
    ours = drawn(config)
    write_weights(to_layout(ours, config), tmp_path / "first.pth", config)
    is_folder = layout.startswith("transformers")
    out = tmp_path / ("folder" if is_folder else "second.safetensors")
    if type(config) not in LAYOUTS[layout].stages:
        with pytest.raises(ConfigError, match="no place"):
            export_weights(ExportArguments(source=tmp_path / "first.pth", out=out, layout=layout))  # type: ignore[arg-type]
        return
    said = export_weights(ExportArguments(source=tmp_path / "first.pth", out=out, layout=layout))  # type: ignore[arg-type]
    assert f"tensors of layout {layout}" in said
    for source in (out, out / "model.safetensors") if is_folder else (out,):
        found, (_, read_config, _), read_layout = read_all(source)
        assert (read_config, read_layout) == (config, layout)
        torch.testing.assert_close(found, ours, rtol=0, atol=0)
    said = import_weights(ImportArguments(source=out, out=tmp_path / "third.safetensors", size=None))
    assert f"{len(ours)} tensors of layout {layout}, none missing, none extra" in said
    torch.testing.assert_close(read_all(tmp_path / "third.safetensors").state, ours, rtol=0, atol=0)


def test_a_transformers_folder_has_all_that_is_needed(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip extra: hf)")
    config = MODELS["classifier"]
    write_weights(to_layout(drawn(config), config), tmp_path / "w.safetensors", config)
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    layout: Any = "transformers" if version >= (5, 6) else "transformers4"
    export_weights(
        ExportArguments(source=tmp_path / "w.safetensors", out=tmp_path / "hf", layout=layout, num_frames=4, size=32)
    )
    model, report = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not [name for name in report["missing_keys"] if not name.endswith("attention.key.bias")]  # zero, 5.6 to 5.17
    assert not report["unexpected_keys"]
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "hf")
    frames = [torch.zeros(3, 48, 64, dtype=torch.uint8).numpy()] * 4
    with torch.inference_mode():
        assert model(**processor(frames, return_tensors="pt")).logits.shape == (1, 7)
    card = (tmp_path / "hf" / "README.md").read_text()
    versions = "5.6 or newer" if layout == "transformers" else "up to 5.5, or 5.18 and newer"
    assert f"VideoMAEForVideoClassification.from_pretrained(FOLDER)` of transformers {versions}" in card
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_frames"] == 4


@pytest.mark.parametrize("stage", sorted(MODELS))
def test_our_own_files_tell_a_model_of_any_width(tmp_path: Path, stage: str) -> None:
    """The number of heads is in no tensor: for a width that nobody published, only the note in the file says it."""
    tower = TowerConfig(width=48, depth=2, heads=3, mlp=96)
    config = MODELS[stage].model_copy(update={"encoder": tower})
    ours = drawn(config)
    write_weights(to_layout(ours, config), tmp_path / "w.safetensors", config)
    found, (_, read_config, _), _ = read_all(tmp_path / "w.safetensors")
    assert read_config == config
    torch.testing.assert_close(found, ours, rtol=0, atol=0)
    write_weights(to_layout(ours, config), tmp_path / "w.pth", config)
    with pytest.raises(CheckpointError, match="number of heads of the encoder of width 48"):
        read_all(tmp_path / "w.pth")


def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path) -> None:
    config = MODELS["classifier"]
    state = to_layout(drawn(config), config)
    del state["blocks.1.norm2.bias"]
    write_weights(state, tmp_path / "torn.pth", config)
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.1\.norm2\.bias"):
        import_weights(ImportArguments(source=tmp_path / "torn.pth", out=tmp_path / "out.safetensors"))
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"known key layout \(published, .*; nearest .*place: conv1\.weight"):
        import_weights(ImportArguments(source=tmp_path / "resnet.pth", out=tmp_path / "out.safetensors"))
    write_weights(to_layout(drawn(config), config), tmp_path / "w.pth", config)
    with pytest.raises(CheckpointError, match="is not of size base: it has encoder 192x2, 7 classes, patch 16"):
        import_weights(ImportArguments(source=tmp_path / "w.pth", out=tmp_path / "out.safetensors", size="base"))
    with pytest.raises(ConfigError, match="transformers reads a folder"):
        export_weights(
            ExportArguments(source=tmp_path / "w.pth", out=tmp_path / "out.safetensors", layout="transformers")
        )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'hidden_size'"):
        import_weights(ImportArguments(source=tmp_path / "empty", out=tmp_path / "out.safetensors"))


def test_a_class_count_that_does_not_fit_is_said_in_one_line(tmp_path: Path) -> None:
    """By evaluate: names for other classes, labels beyond the classes, and a model that has none."""
    config = MODELS["classifier"]
    file = tmp_path / "w.safetensors"
    write_weights(to_layout(drawn(config), config), file, config)
    (tmp_path / "a.mp4").write_bytes(b"x")
    listed, names = tmp_path / "list.csv", tmp_path / "names.txt"
    listed.write_text("path,label\na.mp4,6\n")
    names.write_text("walk\nrun\n")
    with pytest.raises(ConfigError, match=r"names\.txt has 2 names, and the model has 7 classes"):
        evaluate(EvaluateArguments(source=file, manifest=listed, labels=names))
    listed.write_text("path,label\na.mp4,7\n")
    with pytest.raises(ConfigError, match=r"a\.mp4, has label 7, and the model has num_classes=7 \(labels 0 \.\. 6\)"):
        evaluate(EvaluateArguments(source=file, manifest=listed))
    write_weights(to_layout(drawn(MODELS["pretrain"]), MODELS["pretrain"]), tmp_path / "mae.pth", MODELS["pretrain"])
    with pytest.raises(ConfigError, match=r"mae\.pth is a masked autoencoder, which has no classes; fine-tune it"):
        evaluate(EvaluateArguments(source=tmp_path / "mae.pth", manifest=listed))
