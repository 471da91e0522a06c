"""Lists that name classes: which label a name is belongs to the run, and the names stay with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.lines import MODELS
from tests.runs.opened import open_run_folder
from tests.train.distil.test_teacher import TEACHER, written
from vmae2_ds.config.finetune import FinetuneConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.data.sources.class_names import implied_names
from vmae2_ds.data.sources.inputs import read_inputs
from vmae2_ds.data.sources.labels import check_names
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, evaluate
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.guard.rank_report import report_of
from vmae2_ds.runs.first_look import first_look

Make = Callable[..., FinetuneConfig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("path,label,who\na.mp4,walk,1\nb.mp4,run,2\n")
    (tmp_path / "names.txt").write_text("run\nwalk\nsit\n")

    def make(num_classes: int = 3, run: Path | None = None, **data: object) -> FinetuneConfig:
        asked = {"manifest": tmp_path / "list.csv", "labels": tmp_path / "names.txt", "ignore_columns": (), **data}
        return FinetuneConfig(
            model=ClassifierConfig.of_size("tiny", num_classes=num_classes),
            data=LabelledDataConfig.model_validate(asked),
            train=FinetuneTrainConfig(run=run or tmp_path / "run"),
        )

    return make


def test_a_run_s_lists_may_name_classes_and_have_columns_of_their_own(make: Make) -> None:
    (source,) = open_mixture(make().data).sources
    assert [entry.label for entry in source.manifest] == [1, 0]
    with pytest.raises(DataError, match=r"unknown column 'who'.*--data.ignore-columns who"):
        open_mixture(make(ignore_columns=None).data)
    with pytest.raises(DataError, match=r"label='walk'.*--data.labels FILE"):
        open_mixture(make(labels=None).data)


def test_pre_training_does_not_look_at_labels(make: Make, tmp_path: Path) -> None:
    data = PretrainDataConfig(manifest=tmp_path / "list.csv", ignore_columns=("who",))
    (source,) = open_mixture(data).sources
    assert [entry.label for entry in source.manifest] == [None, None]


def test_every_source_of_a_mixture_is_read_with_the_names(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mix.toml").write_text('[[source]]\nname = "x"\nmanifest = "list.csv"\n')
    (source,) = open_mixture(make(manifest=None, mixture=str(tmp_path / "mix.toml")).data).sources
    assert [entry.label for entry in source.manifest] == [1, 0]


def test_a_model_of_another_number_of_classes_is_refused(make: Make) -> None:
    names = open_mixture(make().data).form.names
    check_names(make(), names)
    with pytest.raises(ConfigError, match=r"names 3 classes.*num_classes=400; set --model.num-classes 3"):
        check_names(make(num_classes=400), names)


def test_what_labels_and_names_lack_is_seen_before_torch_is_there(make: Make, tmp_path: Path) -> None:
    train = FinetuneTrainConfig(global_batch=2, micro_batch=1, max_steps=2)
    first_look(make().model_copy(update={"train": train}))
    (tmp_path / "val.csv").write_text("path\na.mp4\n")
    for config, told in (
        (make(num_classes=400), "names 3 classes"),
        (make(val_manifest=tmp_path / "val.csv"), r"val\.csv: video 1, a\.mp4, has no label"),
        (make(manifest=tmp_path / "val.csv"), r"val\.csv: video 1, a\.mp4, has no label"),
    ):
        with pytest.raises(ConfigError, match=told):
            first_look(config.model_copy(update={"train": train}))


def test_the_names_are_kept_with_the_run_and_decide_whether_it_is_the_same(make: Make, tmp_path: Path) -> None:
    folder = open_run_folder(make()).path
    assert (folder / "labels.txt").read_text() == "run\nwalk\nsit\n"
    (tmp_path / "moved.txt").write_text("run\r\nwalk\r\nsit")
    assert open_run_folder(make(labels=tmp_path / "moved.txt")).path == folder
    (tmp_path / "other.txt").write_text("walk\nrun\nsit\n")
    with pytest.raises(ConfigError, match=r"--data.labels: the names in .*other.txt has changed"):
        open_run_folder(make(labels=tmp_path / "other.txt"))


def test_hosts_with_other_names_are_told_apart(make: Make, tmp_path: Path) -> None:
    config = make()
    before = report_of(config, read_inputs(config), sees_folder=True)
    (tmp_path / "names.txt").write_text("walk\nrun\nsit\n")
    assert report_of(config, read_inputs(config), sees_folder=True).lists != before.lists


def test_an_evaluation_by_names_is_the_one_by_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, TEACHER, "w.safetensors")
    made = write_synthetic_set(SynthArguments(folder=tmp_path / "set", train_videos=3, val_videos=1, size=32, frames=8))
    names = [f"class {number}" for number in range(TEACHER.num_classes)]
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
    rows = [(f"set/train/{row:05d}.mp4", (2 * row + 1) % len(names)) for row in range(3)]
    (tmp_path / "numbers.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    (tmp_path / "named.csv").write_text(
        "path,who,label\n" + "".join(f"{path},me,{names[label]}\n" for path, label in rows)
    )
    assert made.train.is_file()
    clips = {"clips": 1, "crops": 1, "num_frames": 4, "size": 24, "stride": 1, "workers": 0, "precision": "fp32"}
    results = [
        evaluate(EvaluateArguments(source=file, manifest=tmp_path / "numbers.csv", out=tmp_path / "one", **clips)),
        evaluate(
            EvaluateArguments(
                source=file,
                manifest=tmp_path / "named.csv",
                out=tmp_path / "two",
                labels=tmp_path / "names.txt",
                ignore_columns=("who",),
                **clips,
            )
        ),
    ]
    assert results[0]["top1"] == results[1]["top1"]
    one, two = (np.load(tmp_path / name / "scores.npz") for name in ("one", "two"))
    assert one["label"].tolist() == two["label"].tolist() == [label for _, label in rows]
    np.testing.assert_array_equal(one["score"], two["score"])


def test_names_that_are_numbers_or_repeat_are_not_taken_from_a_model_for_lists() -> None:
    file = Path("w.safetensors")
    known = implied_names(["run", "walk"], file)
    assert known is not None
    assert known.numbers == {"run": 0, "walk": 1}
    assert (
        implied_names(["1", "walk"], file) is implied_names(["run", "run"], file) is implied_names(None, file) is None
    )


@pytest.mark.parametrize("verb", ["evaluate", "probe", "data check", "data prepare", "data pack", "data index"])
def test_every_verb_that_reads_labels_takes_names_and_leaves_columns_out(verb: str) -> None:
    assert {"labels", "ignore_columns"} <= MODELS[verb].model_fields.keys()
