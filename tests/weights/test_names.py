"""Names in files of others: one rule for prefixes and for every reader; and what no tensor shows, from a config file."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.test_layouts import model_of
from vmae2_ds.config.finetune import FinetuneConfig, FinetuneTrainConfig, HeadlessConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.config.stages import with_options
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, evaluate
from vmae2_ds.downstream.probe.frozen import FrozenEncoder
from vmae2_ds.downstream.probe.probe import ProbeArguments, probe
from vmae2_ds.errors import CheckpointError, ConfigError, DataError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, normalise_pixels
from vmae2_ds.runs.export import ExportArguments, ImportArguments, export_weights, import_weights
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.runs.open import labels_of, load_for, open_classifier, open_model
from vmae2_ds.weights.layouts import LAYOUTS, StateDict, bare, to_layout
from vmae2_ds.weights.source import read_all, read_given
from vmae2_ds.weights.transformers_config import transformers_config_of

GEOMETRY = ClipGeometry(4, 16, 16, 2, 8)
ENCODER = TowerConfig(width=192, depth=2, heads=3, mlp=24)
MODELS: dict[str, EncoderConfig] = {
    "autoencoder": ModelConfig(encoder=ENCODER, decoder=TowerConfig(width=96, depth=1, heads=3, mlp=24), patch=8),
    "classifier": ClassifierConfig(encoder=ENCODER, patch=8, num_classes=5),
}
PREFIXES = ("", "encoder.", "backbone.", "model.", "module.", "_orig_mod.", "module._orig_mod.model.")
NARROW = TowerConfig(width=48, depth=2, heads=4, mlp=24)
"""Of a width that no published model has: the number of heads is in no tensor."""


def weights_of(config: EncoderConfig) -> StateDict:
    return dict(model_of(config, GEOMETRY).state_dict())


def written(path: Path, state: StateDict) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("stage", "layout"),
    [
        (stage, name)
        for name, about in LAYOUTS.items()
        for stage, config in MODELS.items()
        if type(config) in about.stages
    ],
)
def test_prefixes_come_off_key_by_key_for_every_reader(tmp_path: Path, stage: str, layout: str) -> None:
    config = MODELS[stage]
    ours = weights_of(config)
    theirs = to_layout(ours, config, layout)
    file = written(tmp_path / "x.safetensors", {p + name: theirs[name] for p, name in zip(cycle(PREFIXES), theirs)})
    read = read_all(file)
    assert (read.found.model, read.layout) == (config, layout)
    weights, report = load_for(file, config)
    assert (report.new, report.dropped) == ((), ())
    for found in (read.state, weights, open_model(file).weights):
        torch.testing.assert_close(found, ours, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder."])
def test_a_head_that_has_no_prefix_is_kept_where_the_encoder_has_one(tmp_path: Path, prefix: str) -> None:
    config = MODELS["classifier"]
    ours = weights_of(config)
    theirs = {name if name.startswith("head.") else prefix + name: x for name, x in to_layout(ours, config).items()}
    file = written(tmp_path / "x.safetensors", theirs)
    _, weights, _ = open_classifier(file)
    torch.testing.assert_close(weights["head.weight"], ours["head.weight"], rtol=0, atol=0)
    assert not load_for(file, config)[1].new
    assert "none missing, none extra" in import_weights(ImportArguments(source=file, out=tmp_path / "y.safetensors"))


READERS: dict[str, Callable[[Path], object]] = {
    "import": lambda file: import_weights(ImportArguments(source=file, out=file.with_name("out.safetensors"))),
    "--train.init": lambda file: load_for(file, MODELS["classifier"]),
    "probe": open_model,
    "evaluate": open_classifier,
}


@pytest.mark.parametrize("reader", sorted(READERS))
@pytest.mark.parametrize("prefix", ["backbone.", "module.", "_orig_mod."])
def test_two_names_that_become_one_are_refused_by_name(tmp_path: Path, prefix: str, reader: str) -> None:
    config = MODELS["classifier"]
    theirs = to_layout(weights_of(config), config)
    file = written(tmp_path / "x.safetensors", theirs | {f"{prefix}fc_norm.weight": torch.zeros(192)})
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{prefix}fc_norm\.weight.* once prefixes come off"):
        READERS[reader](file)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("blocks.0._orig_mod.attn.proj.weight", "blocks.0.attn.proj.weight"),  # blocks compiled one by one
        ("_fsdp_wrapped_module.blocks.1._checkpoint_wrapped_module.norm1.bias", "blocks.1.norm1.bias"),
        ("model.module.encoder.patch_embed.proj.bias", "patch_embed.proj.bias"),
        ("encoder_to_decoder.weight", "encoder_to_decoder.weight"),
        ("decoder.blocks.0.norm1.weight", "decoder.blocks.0.norm1.weight"),
        ("my_model.blocks.0.norm1.weight", "my_model.blocks.0.norm1.weight"),
    ],
)
def test_what_a_name_is_without_its_prefixes(name: str, short: str) -> None:
    assert bare(name) == short


def test_what_is_drawn_anew_is_a_warning_with_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = MODELS["classifier"]
    assert isinstance(config, ClassifierConfig)
    theirs = to_layout(weights_of(config), config)
    whole = written(tmp_path / "whole.safetensors", theirs)
    headless = {name: x for name, x in theirs.items() if not name.startswith("head.")}
    for file, warned in ((whole, False), (written(tmp_path / "headless.safetensors", headless), True)):
        caplog.clear()
        initial_weights(FinetuneConfig(model=config, train=FinetuneTrainConfig(init=file)))
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == ([f"{file} does not have these; they are newly drawn: head.weight, head.bias"] * warned)


@pytest.fixture
def hub_folder(tmp_path: Path) -> tuple[Path, StateDict]:
    """As the authors' repositories on the hub are: `model.` before each key, no head, and code of their own."""
    config = HeadlessConfig(encoder=NARROW, patch=8)
    ours = weights_of(config)
    folder = tmp_path / "hub"
    folder.mkdir()
    written(folder / "model.safetensors", {f"model.{name}": x for name, x in to_layout(ours, config).items()})
    fields = {
        "model_type": "VideoMAEv2_Base",
        "auto_map": {"AutoModel": "modeling_videomaev2.VideoMAEv2", "AutoConfig": "modeling_config.VideoMAEv2Config"},
        "model_config": {"img_size": 16, "patch_size": 8, "num_classes": 0, "num_heads": 4, "all_frames": 4},
    }
    (folder / "config.json").write_text(json.dumps(fields))
    for name in ("modeling_videomaev2.py", "modeling_config.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    return folder, ours


def test_a_hub_folder_without_a_head_is_an_encoder_and_its_code_is_not_run(
    tmp_path: Path, hub_folder: tuple[Path, StateDict]
) -> None:
    folder, ours = hub_folder
    opened = open_model(folder)
    assert type(opened.run.model) is HeadlessConfig
    assert opened.run.geometry == GEOMETRY
    torch.testing.assert_close(opened.weights, ours, rtol=0, atol=0)
    encoder = FrozenEncoder(with_options(opened.run, data={"workers": 0}), opened.weights)  # as probe does
    clip_BTHWC = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = Classifier(ClassifierConfig(encoder=NARROW, patch=8, num_classes=3), GEOMETRY).eval()
    whole.load_state_dict(ours, strict=False)
    with torch.inference_mode():
        expected_BD = whole.features(normalise_pixels(every_cube(clip_BTHWC, GEOMETRY)))
    torch.testing.assert_close(encoder(clip_BTHWC), expected_BD)
    weights, report = load_for(folder, whole.config)  # --train.init
    assert report.new == ("head.weight", "head.bias")
    assert set(weights) == set(ours)
    assert "no head" in import_weights(ImportArguments(source=folder, out=tmp_path / "w.safetensors"))
    again = open_model(tmp_path / "w.safetensors")
    assert again.run.model == opened.run.model
    assert again.run.geometry == GEOMETRY
    torch.testing.assert_close(again.weights, ours, rtol=0, atol=0)
    assert not (tmp_path / "was_run").exists()
    (tmp_path / "list.csv").write_text("path,label\na.mp4,0\n")
    with pytest.raises(ConfigError, match=r"w\.safetensors is an encoder without a head, which has no classes"):
        evaluate(EvaluateArguments(source=tmp_path / "w.safetensors", manifest=tmp_path / "list.csv"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors.index.json", r"in pieces \(model\.safetensors\.index\.json\); save them in one file"),
        ("readme", r"it has no model\.safetensors"),
    ],
)
def test_a_folder_without_one_file_of_weights_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    fields = transformers_config_of(MODELS["classifier"], GEOMETRY)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / name).write_text("{}")
    for read in (read_all, open_model, lambda folder: load_for(folder, MODELS["classifier"])):
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path)


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED, "no config.json that can be read"),
        ("[1]", "no object with fields"),
        ({"hidden_size": "wide"}, "config.json is of no model: width: "),
        ({"num_attention_heads": 5}, "multiple of heads=5"),
        ({"architectures": ["VideoMAEModel", "VideoMAEForPreTraining"]}, "config.json is not one of a VideoMAE"),
        ({"architectures": 3}, "config.json is not one of a VideoMAE"),
        ({"id2label": 7}, "config.json is not one of a VideoMAE"),
        ({"id2label": {"0": "a"}}, r"num_classes: "),
        ({"patch_size": [8, 8]}, "config.json is of no model: patch: "),
        ({"image_size": "big", "num_frames": -4}, None),  # not needed: the published clip is taken
        ({"id2label": dict.fromkeys("01234", 0)}, None),  # as many classes, but no names
        ({"model_config": {"num_heads": -1}}, r"encoder\.heads: "),
        ({"model_config": {"num_heads": "x", "img_size": "x"}}, None),  # of a width that is known
    ],
)
def test_a_config_json_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, content: str | dict[str, Any], message: str | None
) -> None:
    config = MODELS["classifier"]
    written(tmp_path / "model.safetensors", to_layout(weights_of(config), config, "transformers"))
    text = content
    if isinstance(content, dict):
        text = json.dumps(transformers_config_of(config, GEOMETRY) | content)
    (tmp_path / "config.json").write_text(str(text))
    if message is None:
        assert type(open_model(tmp_path).run.model) is ClassifierConfig
        assert labels_of(tmp_path) is None
        return
    for read in (read_all, open_model, labels_of):
        with pytest.raises((CheckpointError, ConfigError), match=message) as refused:
            read(tmp_path)
        assert "\n" not in str(refused.value)


def test_a_folder_of_two_classes_that_nobody_named_is_read(tmp_path: Path) -> None:
    """transformers leaves the names out where they are its defaults."""
    config = ClassifierConfig(encoder=ENCODER, patch=8, num_classes=2)
    ours = weights_of(config)
    written(tmp_path / "model.safetensors", to_layout(ours, config, "transformers4"))
    fields = transformers_config_of(config, GEOMETRY)
    del fields["id2label"], fields["label2id"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_all(tmp_path).found.model == config


def narrow(stage: str) -> EncoderConfig:
    towers = {"encoder": NARROW} | ({"decoder": NARROW} if stage == "autoencoder" else {})
    return MODELS[stage].model_copy(update=towers)


def given_heads(config: EncoderConfig) -> dict[str, Any]:
    return {name: {"heads": 4} for name in ("encoder", "decoder") if hasattr(config, name)}


@pytest.mark.parametrize("stage", sorted(MODELS))
@pytest.mark.parametrize(
    "fields",
    [
        given_heads,
        lambda config: config.model_dump(mode="json"),
        lambda config: transformers_config_of(config, GEOMETRY),
        lambda config: {"stage": "any", "model": config.model_dump(mode="json"), "data": {}},  # a run.json
    ],
    ids=["heads", "whole", "transformers", "run"],
)
def test_a_width_that_nobody_published_is_read_with_a_config(
    tmp_path: Path, stage: str, fields: Callable[[EncoderConfig], dict[str, Any]]
) -> None:
    config = narrow(stage)
    ours = weights_of(config)
    file = written(tmp_path / "x.safetensors", to_layout(ours, config))
    with pytest.raises(CheckpointError, match=r"encoder of width 48 is not in its weights.*--config FILE"):
        read_all(file)
    (tmp_path / "c.json").write_text(json.dumps(fields(config)))
    given = read_given(tmp_path / "c.json")
    assert read_all(file, given).found.model == config
    opened = open_model(file, given=given)
    assert opened.run.model == config
    torch.testing.assert_close(opened.weights, ours, rtol=0, atol=0)
    import_weights(ImportArguments(source=file, out=tmp_path / "y.safetensors", config=tmp_path / "c.json"))
    assert open_model(tmp_path / "y.safetensors").run.model == config


def test_a_config_reaches_the_verbs_that_open_a_file(tmp_path: Path) -> None:
    """Without one the model is not told; with one what is wrong is the list: a label, and a video that is none."""
    config = narrow("classifier")
    file = written(tmp_path / "x.safetensors", to_layout(weights_of(config), config))
    given, listed, beyond = tmp_path / "c.json", tmp_path / "list.csv", tmp_path / "beyond.csv"
    given.write_text(json.dumps(given_heads(config)))
    (tmp_path / "a.mp4").write_bytes(b"x")
    listed.write_text("path,label\na.mp4,1\n")
    beyond.write_text("path,label\na.mp4,9\n")
    clip: dict[str, Any] = {"num_frames": 4, "size": 16, "workers": 0}
    asked: list[tuple[Callable[..., object], str]] = [
        (
            lambda **more: evaluate(EvaluateArguments(source=file, manifest=beyond, **clip, **more)),
            r"a\.mp4, has label 9, and the model has num_classes=5",
        ),
        (
            lambda **more: probe(ProbeArguments(source=file, manifest=listed, val_manifest=listed, **clip, **more)),
            "none of its 1 videos can be read",
        ),
    ]
    for verb, message in asked:
        with pytest.raises(CheckpointError, match="encoder of width 48 is not in its weights"):
            verb()
        with pytest.raises((ConfigError, DataError), match=message):
            verb(config=given)
    assert "encoder 48x2" in export_weights(ExportArguments(source=file, out=tmp_path / "w.pth", config=given))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"--config .*c\.json: "),
        ("[]", "an object with fields of the model config"),
        ('{"encoder": {"heads": 5}}', r"the given config: encoder: .*multiple of heads=5"),
        ('{"encoder": {"heads": 4}, "colour": 1}', "the given config: colour: Extra inputs"),
        ('{"encoder": {"heads": 4, "width": 64}}', r"of another shape: .*expected \(64,"),
        ('{"encoder": {"heads": 4}, "decoder": {"width": 48}}', "the given config is of another kind of model"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    config = narrow("classifier")
    file = written(tmp_path / "x.safetensors", to_layout(weights_of(config), config))
    (tmp_path / "c.json").write_text(content)
    with pytest.raises((CheckpointError, ConfigError), match=message) as refused:
        import_weights(ImportArguments(source=file, out=tmp_path / "y.safetensors", config=tmp_path / "c.json"))
    assert "\n" not in str(refused.value)
