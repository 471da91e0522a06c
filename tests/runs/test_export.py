"""What export and import write: its types, target and class names; whole or not at all, and over nobody's files."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.made_checkpoint import counted, made_checkpoint
from tests.runs.test_import import MODELS, drawn
from vmae2_ds.config.finetune import FinetuneConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig, ModelConfig
from vmae2_ds.config.pretrain import ObjectiveConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.runs.export import ExportArguments, ImportArguments, export_weights, import_weights
from vmae2_ds.runs.open import labels_of, open_model
from vmae2_ds.weights.files import read_published, write_weights
from vmae2_ds.weights.layouts import LAYOUTS, to_layout
from vmae2_ds.weights.lazy_state import in_dtype

CLASSIFIER, AUTOENCODER = MODELS["classifier"], MODELS["pretrain"]
NAMES = ["ride a bike", "saut à la perche", "x", "y", "z", "v", "w"]
VERBS: list[Callable[..., str]] = [
    lambda **asked: import_weights(ImportArguments(**asked)),
    lambda **asked: export_weights(ExportArguments(**asked)),
]
FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in bfloat16, as others publish them; nothing but tensors is in it."""
    file = tmp_path_factory.mktemp("source") / "half.pth"
    write_weights(in_dtype(to_layout(drawn(CLASSIFIER), CLASSIFIER), torch.bfloat16), file, CLASSIFIER)
    return file


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise."""
    file = tmp_path_factory.mktemp("source") / "mae.pth"
    write_weights(to_layout(drawn(AUTOENCODER), AUTOENCODER), file, AUTOENCODER)
    return file


def out_of(folder: Path, layout: str) -> tuple[Path, Path]:
    """What is named, and the file of weights that is then there."""
    return (folder / "hf", folder / "hf" / "model.safetensors") if "former" in layout else (folder / "w.pth",) * 2


def dtypes_in(file: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in read_published(file).values()}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize(
    ("asked", "expected", "said"),
    [
        ({}, torch.float32, "float32 (was bfloat16)"),
        ({"dtype": "keep"}, torch.bfloat16, "bfloat16 kept"),
        ({"dtype": "float16"}, torch.float16, "float16 (was bfloat16)"),
    ],
)
def test_an_export_is_float32_unless_it_is_asked_for_more_or_less(
    tmp_path: Path, source: Path, layout: Any, asked: dict[str, Any], expected: torch.dtype, said: str
) -> None:
    out, file = out_of(tmp_path, layout)
    assert said in export_weights(ExportArguments(source=source, out=out, layout=layout, **asked))
    assert dtypes_in(file) == {expected}
    torch.testing.assert_close(
        {name: x.float() for name, x in open_model(file).weights.items()},
        {name: x.to(torch.bfloat16).float() for name, x in drawn(CLASSIFIER).items()},
        **({"rtol": 2**-11, "atol": 1e-7} if expected == torch.float16 else {"rtol": 0, "atol": 0}),
    )


def test_an_import_keeps_the_types_unless_another_is_asked_for(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "w.safetensors"
    assert "; bfloat16 kept; " in import_weights(ImportArguments(source=source, out=out))
    assert dtypes_in(out) == {torch.bfloat16}
    assert "; float32 (was bfloat16); " in import_weights(ImportArguments(source=source, out=out, dtype="float32"))
    assert dtypes_in(out) == {torch.float32}


def test_every_floating_point_type_is_kept_or_converted_or_refused_in_one_line(tmp_path: Path) -> None:
    state = to_layout(drawn(CLASSIFIER), CLASSIFIER)
    file, out = tmp_path / "w.pth", tmp_path / "w.safetensors"
    for dtype in (torch.float64, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
        stored = {name: x.to(dtype) for name, x in state.items()}
        torch.save(stored, file)
        import_weights(ImportArguments(source=file, out=out))
        assert {name: x.dtype for name, x in load_file(out).items()} == dict.fromkeys(state, dtype)
        export_weights(ExportArguments(source=file, out=out))
        torch.testing.assert_close(load_file(out), {name: x.float() for name, x in stored.items()}, rtol=0, atol=0)
    torch.save({name: x.to(torch.float8_e4m3fnuz) for name, x in state.items()}, file)
    with pytest.raises(CheckpointError, match=r"is torch\.float8_e4m3fnuz, which \.safetensors has no place for"):
        import_weights(ImportArguments(source=file, out=out))


def test_values_that_a_type_cannot_hold_are_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    state = to_layout(drawn(CLASSIFIER), CLASSIFIER)
    state["fc_norm.bias"] = state["fc_norm.bias"] + 70000
    write_weights(state, tmp_path / "w.safetensors", CLASSIFIER)
    for out in ("h.safetensors", "h.pth"):
        with pytest.raises(CheckpointError, match=r"fc_norm\.bias holds 7000\d(\.\d)?, and float16 ends at 65504"):
            export_weights(ExportArguments(source=tmp_path / "w.safetensors", out=tmp_path / out, dtype="float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


# --- over whose files --------------------------------------------------------------------------------------------------


def test_a_folder_of_somebody_else_is_left_as_it_is(tmp_path: Path, source: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("README.md", "config.json", "main.py"):
        (project / name).write_text(f"my {name}")
    with pytest.raises(ConfigError, match=r"project: its config\.json is not as an export wrote it.*--force"):
        export_weights(ExportArguments(source=source, out=project, layout="transformers"))
    assert {path.name: path.read_text() for path in project.iterdir()} == {
        name: f"my {name}" for name in ("README.md", "config.json", "main.py")
    }
    (project / "README.md").unlink()
    (project / "config.json").unlink()
    with pytest.raises(ConfigError, match="project holds files of something else"):
        export_weights(ExportArguments(source=source, out=project, layout="transformers"))
    export_weights(ExportArguments(source=source, out=project, layout="transformers", force=True))
    assert sorted(path.name for path in project.iterdir()) == [*FILES[:2], "main.py", *FILES[2:]]
    assert (project / "main.py").read_text() == "my main.py"


def test_an_earlier_export_is_replaced_but_not_a_card_that_was_written_on(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "hf"
    export_weights(ExportArguments(source=source, out=out, layout="transformers", num_frames=8))
    export_weights(ExportArguments(source=source, out=out, layout="transformers", num_frames=16))
    assert json.loads((out / "config.json").read_text())["num_frames"] == 16
    card = out / "README.md"
    card.write_text(card.read_text() + "Trained on my videos.\n")
    with pytest.raises(ConfigError, match=r"its README\.md is not as an export wrote it"):
        export_weights(ExportArguments(source=source, out=out, layout="transformers"))
    assert card.read_text().endswith("Trained on my videos.\n")
    export_weights(ExportArguments(source=source, out=out, layout="transformers", force=True))
    assert "my videos" not in card.read_text()
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_is_replaced_with_force_or_where_its_header_says_that_it_is_an_earlier_one(
    tmp_path: Path, source: Path, verb: Callable[..., str]
) -> None:
    """Not a text of mine, weights that another program saved, a .pth of anybody's, a run's average, a folder's weights."""
    mine, theirs, pickled = tmp_path / "m.safetensors", tmp_path / "t.safetensors", tmp_path / "p.pth"
    mine.write_text("{}")
    save_file({"a": torch.zeros(2)}, theirs, metadata={"format": "pt"})
    pickled.write_bytes(source.read_bytes())
    run, folder, own = tmp_path / "run", tmp_path / "hf", tmp_path / "own.safetensors"
    run.mkdir()
    (run / "run.json").write_text("{}")
    verb(source=source, out=own)
    (run / "ema.safetensors").write_bytes(own.read_bytes())
    export_weights(ExportArguments(source=source, out=folder, layout="transformers"))
    for file in (mine, theirs, pickled, run / "ema.safetensors", folder / "model.safetensors"):
        before = file.read_bytes()
        with pytest.raises(ConfigError, match=rf"--out .*{file.name} is there, .*; name another file, or .* --force$"):
            verb(source=source, out=file)
        assert file.read_bytes() == before
    verb(source=source, out=own)
    for file in (mine, theirs, pickled):
        verb(source=source, out=file, force=True)
        assert set(read_published(file)) == set(read_published(source))
    with pytest.raises(ConfigError, match="which is read"):
        verb(source=own, out=own, force=True)


def test_what_is_read_is_never_written_over(tmp_path: Path, source: Path) -> None:
    file, folder = tmp_path / "w.safetensors", tmp_path / "hf"
    import_weights(ImportArguments(source=source, out=file))
    export_weights(ExportArguments(source=source, out=folder, layout="transformers"))
    (tmp_path / "link.safetensors").symlink_to(file)
    before = file.read_bytes()
    for out in (file, tmp_path / "link.safetensors"):
        with pytest.raises(ConfigError, match="which is read"):
            import_weights(ImportArguments(source=file, out=out))
        with pytest.raises(ConfigError, match="which is read"):
            export_weights(ExportArguments(source=file, out=out))
    for write in (
        lambda: import_weights(ImportArguments(source=folder, out=folder / "model.safetensors")),
        lambda: export_weights(ExportArguments(source=folder, out=folder / "model.safetensors")),
        lambda: export_weights(ExportArguments(source=folder, out=folder, layout="transformers", force=True)),
    ):
        with pytest.raises(ConfigError, match="which is read"):
            write()
    run = FinetuneConfig(model=CLASSIFIER, data=LabelledDataConfig(num_frames=4, size=32))
    made_checkpoint(tmp_path / "run", run, counted(CLASSIFIER), stage=1, ranks=1)  # type: ignore[arg-type]
    (tmp_path / "run" / "ema.safetensors").write_bytes(before)
    for place in (tmp_path / "run", tmp_path / "run" / "ckpt" / "step00000001"):
        with pytest.raises(ConfigError, match="which is read"):
            export_weights(ExportArguments(source=place, out=tmp_path / "run" / "ema.safetensors"))
        for _ in range(2):  # an export that lies in the run is none of its own
            export_weights(ExportArguments(source=place, out=tmp_path / "run" / "mine.safetensors"))
    with pytest.raises(ConfigError, match=r"is the folder of .*which is read"):
        export_weights(
            ExportArguments(source=tmp_path / "run", out=tmp_path / "run", layout="transformers", force=True)
        )
    assert file.read_bytes() == before


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that takes no more: the system says no in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", VERBS)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_disk_that_fills_up_costs_the_new_file_and_not_the_old_one(
    tmp_path: Path, source: Path, name: str, write: Callable[..., str]
) -> None:
    write(source=source, out=tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with (
        files_of_at_most(100_000),
        pytest.raises(ConfigError, match=rf"{name}: File too large; nothing was") as refused,
    ):
        write(source=source, out=tmp_path / name, force=True)
    assert "\n" not in str(refused.value)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_on_a_full_disk_stays_as_it_was(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "hf"
    export_weights(ExportArguments(source=source, out=out, layout="transformers", num_frames=8))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with files_of_at_most(100_000), pytest.raises(ConfigError, match="hf: File too large"):
        export_weights(ExportArguments(source=source, out=out, layout="transformers", num_frames=16))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("layout", ["published", "transformers"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path, layout: Any) -> None:
    (tmp_path / "file").write_text("mine")
    nothing = tmp_path / "nothing.pth"
    nothing.touch()
    with pytest.raises(ConfigError, match=r"--out .*file"):
        export_weights(
            ExportArguments(
                source=nothing, out=tmp_path / "file" / ("hf" if layout == "transformers" else "w.pth"), layout=layout
            )
        )
    with pytest.raises(ConfigError, match=r"--out .*file"):
        import_weights(ImportArguments(source=nothing, out=tmp_path / "file" / "w.safetensors"))
    with pytest.raises(ConfigError, match=r"must end in \.safetensors, \.pth or \.pt"):
        export_weights(ExportArguments(source=nothing, out=tmp_path / "w.bin"))


# --- what is said of the weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "norm_pix_loss", "card"),
    [
        ("pixels", False, "predicts plain pixels in [0, 1] (`norm_pix_loss: false`)"),
        ("normalised", True, "predicts cubes normalised by their own mean and deviation"),
    ],
)
def test_a_run_s_target_is_in_its_export_and_in_what_is_made_of_that(
    tmp_path: Path, target: Any, norm_pix_loss: bool, card: str
) -> None:
    assert isinstance(AUTOENCODER, ModelConfig)
    data = PretrainDataConfig(num_frames=4, size=32, stride=2)
    run = PretrainConfig(model=AUTOENCODER, objective=ObjectiveConfig(target=target), data=data)
    made_checkpoint(tmp_path / "run", run, counted(AUTOENCODER), stage=1, ranks=1)
    export_weights(ExportArguments(source=tmp_path / "run", out=tmp_path / "hf", layout="transformers"))
    export_weights(ExportArguments(source=tmp_path / "run", out=tmp_path / "w.safetensors"))
    import_weights(ImportArguments(source=tmp_path / "hf", out=tmp_path / "again.safetensors"))
    for number, file in enumerate(("w.safetensors", "again.safetensors")):
        opened = open_model(tmp_path / file).run
        assert isinstance(opened, PretrainConfig)
        assert opened.objective.target == target
        assert (opened.data.num_frames, opened.data.size) == (4, 32)
        assert opened.data.stride == (4 if number else 2)  # which transformers has no place for
        export_weights(ExportArguments(source=tmp_path / file, out=tmp_path / f"hf{number}", layout="transformers"))
    for folder in ("hf", "hf0", "hf1"):
        fields = json.loads((tmp_path / folder / "config.json").read_text())
        assert (fields["norm_pix_loss"], fields["num_frames"], fields["image_size"]) == (norm_pix_loss, 4, 32)
        assert card in (tmp_path / folder / "README.md").read_text()


def test_a_target_that_nobody_said_is_the_published_one_and_the_card_says_so(tmp_path: Path, autoencoder: Path) -> None:
    export_weights(ExportArguments(source=autoencoder, out=tmp_path / "hf", layout="transformers"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["norm_pix_loss"] is True
    assert "What the decoder predicts is not said in the file" in (tmp_path / "hf" / "README.md").read_text()


def test_class_names_go_with_a_classifier(tmp_path: Path, source: Path) -> None:
    """From --labels or the run's labels.txt to transformers' config, and with the weights from there on."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    assert isinstance(CLASSIFIER, ClassifierConfig)
    run = FinetuneConfig(model=CLASSIFIER, data=LabelledDataConfig(num_frames=4, size=32))
    made_checkpoint(tmp_path / "run", run, counted(CLASSIFIER), stage=1, ranks=1)  # type: ignore[arg-type]
    (tmp_path / "run" / "labels.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    assert "LABEL" not in export_weights(
        ExportArguments(source=source, out=tmp_path / "a", layout="transformers", labels=tmp_path / "names.txt")
    )
    export_weights(ExportArguments(source=tmp_path / "run", out=tmp_path / "b", layout="transformers"))
    import_weights(ImportArguments(source=tmp_path / "a", out=tmp_path / "w.safetensors"))
    export_weights(ExportArguments(source=tmp_path / "w.safetensors", out=tmp_path / "c", layout="transformers4"))
    for folder in ("a", "b", "c"):
        fields = json.loads((tmp_path / folder / "config.json").read_text(encoding="utf-8"))
        assert fields["id2label"] == {str(number): name for number, name in enumerate(NAMES)}
        assert fields["label2id"] == {name: number for number, name in enumerate(NAMES)}
    for place in ("a", "run", "w.safetensors", "c/model.safetensors"):
        assert labels_of(tmp_path / place) == NAMES
    assert labels_of(source) is None
    said = export_weights(ExportArguments(source=source, out=tmp_path / "d", layout="transformers"))
    assert said.endswith("names of its classes: LABEL_0 to LABEL_6 stand there; --labels FILE names them")
    assert json.loads((tmp_path / "d" / "config.json").read_text())["id2label"]["6"] == "LABEL_6"
    assert labels_of(tmp_path / "d") is None


def test_names_that_do_not_fit_are_refused(tmp_path: Path, source: Path, autoencoder: Path) -> None:
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"--labels .*two\.txt has 2 names, and the model has 7 classes"):
        export_weights(ExportArguments(source=source, out=tmp_path / "w.pth", labels=tmp_path / "two.txt"))
    with pytest.raises(ConfigError, match="this model has no classes; leave it out"):
        export_weights(ExportArguments(source=autoencoder, out=tmp_path / "w.pth", labels=tmp_path / "two.txt"))
    assert not (tmp_path / "w.pth").exists()


def test_a_header_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    """Ours, and with a clip, a target and names that no model has."""
    state = to_layout(drawn(CLASSIFIER), CLASSIFIER)
    wrong = {"model": CLASSIFIER.model_dump_json(), "clip": '{"num_frames": -3}', "target": "sound", "labels": '["a"]'}
    save_file(state, tmp_path / "w.safetensors", metadata=wrong)
    opened = open_model(tmp_path / "w.safetensors").run
    assert (opened.model, opened.data.num_frames) == (CLASSIFIER, 16)
    assert labels_of(tmp_path / "w.safetensors") is None
    assert set(load_file(tmp_path / "w.safetensors")) == set(state)
