"""Where an encoder with adapters may start from: what every kind of file, a run's export and OpenTAD's adapters give it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.downstream.tad.made_up_videos import end_to_end_config
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.model.seeded import SeededModel
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout


def config_from(file: Path) -> TadConfig:
    return end_to_end_config(Path(), (Path(), Path()), init=file)


def saved(folder: Path, kind: str) -> tuple[SeededModel, Path]:
    """A model with the encoder of these runs, and a file or folder of it."""
    tad = end_to_end_config(Path(), (Path(), Path()))
    encoder, patch = tad.model.encoder, tad.model.patch
    config: EncoderConfig
    model: SeededModel
    if kind == "pre-training":
        config = ModelConfig(encoder=encoder, patch=patch, decoder=TowerConfig(width=16, depth=1, heads=1, mlp=16))
        model = MaskedAutoencoder(config, tad.geometry, seed=3)
    else:
        config = ClassifierConfig(encoder=encoder, patch=patch, num_classes=5)
        model = Classifier(config, tad.geometry, seed=3)
    file = folder / "published.safetensors"
    write_weights(to_layout(model.state_dict(), config), file, config)
    if kind in ("transformers", "mmaction2"):
        out = folder / (kind if kind == "transformers" else f"{kind}.safetensors")
        export_weights(ExportArguments(source=file, out=out, layout=kind))  # type: ignore[arg-type]
        return model, out
    return model, file


@pytest.mark.parametrize("kind", ["pre-training", "classifier", "transformers", "mmaction2"])
def test_the_encoder_of_any_file_is_taken_whole_and_nothing_else(tmp_path: Path, kind: str) -> None:
    model, file = saved(tmp_path, kind)
    found = initial_weights(config_from(file))
    theirs = {
        name: x for name, x in model.state_dict().items() if name.startswith(("encoder.embed.", "encoder.blocks."))
    }
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)


def test_adapters_of_opentad_come_with_their_encoder(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "mmaction2")
    from safetensors.torch import load_file

    config = config_from(file)
    width, hidden = config.model.encoder.width, config.model.adapters.hidden(config.model.encoder.width)
    shapes = {
        "gamma": (1,), "dwconv.weight": (hidden, 1, 3), "dwconv.bias": (hidden,), "conv.weight": (hidden, hidden, 1),
        "conv.bias": (hidden,), "down_proj.weight": (hidden, width), "down_proj.bias": (hidden,),
        "up_proj.weight": (width, hidden), "up_proj.bias": (width,),
    }  # fmt: skip
    theirs = {f"module.backbone.model.{name}": tensor for name, tensor in load_file(file).items()}
    for number in (1, 2):
        for name, shape in shapes.items():
            theirs[f"module.backbone.model.backbone.blocks.{number}.adapter.{name}"] = torch.randn(shape)
    out = tmp_path / "adatad.pth"
    torch.save({"state_dict": theirs}, out)
    found = initial_weights(config_from(out))
    assert sum(name.startswith("adapters.") for name in found) == 18
    assert sum(name.startswith("encoder.") for name in found) == len(found) - 18
    last = theirs["module.backbone.model.backbone.blocks.2.adapter.conv.weight"]
    assert torch.equal(found["adapters.2.across.conv.weight"], last[..., 0])


def test_a_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "classifier")
    config = config_from(file)
    deeper = config.model.encoder.model_copy(update={"depth": 5})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        initial_weights(config.changed(model={"encoder": deeper}))
