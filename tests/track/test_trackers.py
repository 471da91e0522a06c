"""Trackers as they are, offline: what their own files hold of a run that is killed and goes on."""

from __future__ import annotations

import json
import logging
import os
import signal
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from tests.track.test_follow import wait_for
from tests.track.wandb_rows import records_of_wandb, rows_of_wandb
from vmae2_ds.config.trackers import PACKAGES, TrackConfig
from vmae2_ds.recipes.pretrain import RECIPES
from vmae2_ds.track.mlflow import open_mlflow
from vmae2_ds.track.start import Trackers
from vmae2_ds.track.tracker import About
from vmae2_ds.train.metrics import MetricsWriter

KEYS = {"WANDB_API_KEY": "5ec4e7" * 6 + "abcd", "COMET_API_KEY": "c0ffee" * 6, "MLFLOW_TRACKING_TOKEN": "70ce4" * 8}


class Tracked(NamedTuple):
    run: Path
    rows: dict[int, dict[str, Any]]
    """What the run's files hold in the end, by step: metrics and validation together."""


def write(run: Path, first: int, last: int) -> None:
    """The rows of steps after `first`, as every start of the run would write them."""
    metrics, validation = (MetricsWriter(run / f"{name}.jsonl", None, first) for name in ("metrics", "validation"))
    for step in range(first + 1, last + 1):
        if step % 4 == 0:
            validation.write({"step": step, "epoch": step / 4, "val_loss": 1 / step, "val_top1": None})
        about = {
            "step": step,
            "epoch": step / 4,
            "loss": float("nan") if step == 3 else 1 / 3 + step,
            "spikes": step // 2,
        }
        metrics.write({**about, "source_share/(others)": 0.1 * step, "lr": 1e-7 / step, "time": 1.6e9 + step / 7})
    metrics.close()
    validation.close()


def rows_in(run: Path) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for name in ("metrics", "validation"):
        for line in (run / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows[row["step"]] = rows.get(row["step"], {}) | row
    return rows


class Heard(logging.Handler):
    """What the run's log gets of its trackers."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.message = record.getMessage()
        self.records.append(record)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """All its processes are killed with checkpoint 5 behind it; then it comes to its end."""
    run = tmp_path_factory.mktemp("runs") / "recipe" / "20260101-000000_abc"
    run.mkdir(parents=True)
    config = RECIPES["vit_ti_pretrain_desk"]()
    long = {"source_strides": {f"source{number}": 2 for number in range(3000)}}  # past a block of W&B's file
    (run / "run.json").write_text(config.changed(data=long).model_dump_json())
    (run / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    (run / "env.json").write_text(
        '{"commit": "abc1234", "ranks": 8, "hosts": [{"host": "a"}], "earlier": [{"ranks": 4}]}'
    )
    track = TrackConfig(to=tuple(PACKAGES), mode="offline", tags=("tag",), group="group")  # type: ignore[arg-type]
    logger, log = logging.getLogger("vmae2_ds.track.start"), Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "handlers", [log])
        patch.setattr(logger, "level", logging.INFO)
        for name, key in KEYS.items():
            patch.setenv(name, key)
        write(run, 0, 7)
        killed = Trackers(run, track)
        wait_for(lambda: len(log.records) == len(PACKAGES))
        for process in killed._processes.values():
            os.killpg(process.pid, signal.SIGKILL)
        for process in killed._processes.values():
            process.wait()

        write(run, 5, 12)
        (run / "pictures" / "step00000008").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(run / "pictures" / "step00000008" / "clip0.png")
        with Trackers(run, track) as trackers:
            trackers.close("finished", 60)
    warned = [record.message for record in log.records if record.levelno >= logging.WARNING]
    assert [message.partition(":")[0] for message in sorted(warned)] == sorted(PACKAGES), (
        "of the three that were killed"
    )
    return Tracked(run, rows_in(run))


def test_wandb_offline_holds_every_row_and_column_once(tracked: Tracked) -> None:
    folder = tracked.run / "trackers"
    assert len(list(folder.rglob("*.wandb"))) == 2, "one of each start"
    steps = rows_of_wandb(folder)
    assert {step: row for step, row in steps.items() if row} == tracked.rows
    runs = [record.run for record in records_of_wandb(folder) if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.display_name, run.run_group, *run.tags) for run in runs} == {
        (runs[0].run_id, "recipe/20260101-000000_abc", "group", "tag")
    }
    config = {item.key: json.loads(item.value_json) for item in runs[-1].config.update}
    assert len(config["data"]["source_strides"]) == 3000
    assert config["ds"] == {"zero_optimization": {"stage": 3}}
    assert config["env"] == {"commit": "abc1234", "ranks": 8}
    items = [item for record in records_of_wandb(folder) for item in record.history.item]
    assert [item.value_json for item in items if "caption" in item.nested_key] == [
        '"pictures/step00000008/clip0 (step 8)"'
    ]


def test_mlflow_in_a_folder_holds_every_number_once(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient((tracked.run / "trackers" / "mlflow").as_uri())
    (experiment,) = [found for found in client.search_experiments() if found.name == "vmae2_ds"]
    (run,) = client.search_runs([experiment.experiment_id])
    steps: dict[int, dict[str, Any]] = {}
    for column in {column for row in tracked.rows.values() for column in row}:
        named = column.replace("(", "_").replace(")", "_")
        for metric in client.get_metric_history(run.info.run_id, named):
            assert column not in steps.setdefault(metric.step, {})
            steps[metric.step][column] = metric.value
            assert column == "val_loss" or metric.timestamp == int(1000 * (1.6e9 + metric.step / 7))
    assert steps == numbers_of(tracked.rows)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "recipe/20260101-000000_abc")
    assert run.data.params["data.num_frames"] == "16"
    assert run.data.params["ds.zero_optimization.stage"] == "3"
    assert {"group", "tag"} < {*run.data.tags}
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kept == {"run.json", "ds.json", "env.json", "pictures"}


def test_mlflow_gets_the_settings_that_a_first_start_was_cut_off_from_telling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    (tmp_path / "run.json").write_text(json.dumps({f"setting{number}": number for number in range(150)}))
    about = About(tmp_path, TrackConfig(mode="offline"), "a" * 32, True, 1)
    log_batch, batches = MlflowClient.log_batch, []

    def only_once(client: Any, run: str, **what: Any) -> None:
        batches.append(what)
        if len(batches) == 2:
            raise ConnectionError("no route to host")
        log_batch(client, run, **what)

    monkeypatch.setattr(MlflowClient, "log_batch", only_once)
    with pytest.raises(ConnectionError):
        open_mlflow(about)
    opened = open_mlflow(about)
    params = opened._client.get_run(opened._run).data.params
    assert {name: params.get(name) for name in map("setting{}".format, range(150))} == {
        f"setting{number}": str(number) for number in range(150)
    }


def test_comet_offline_holds_every_number_once(tracked: Tracked) -> None:
    steps: dict[int, dict[str, Any]] = {}
    messages = []
    for path in (tracked.run / "trackers" / "comet").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            messages += [json.loads(line) for line in archive.read("messages.json").splitlines()]
    columns = {column for row in tracked.rows.values() for column in row}
    for message in messages:
        metric = message["payload"].get("metric", {})
        if metric.get("metricName") in columns:
            row = steps.setdefault(metric["step"], {})
            assert metric["metricName"] not in row
            row[metric["metricName"]] = metric["metricValue"]
    assert steps == numbers_of(tracked.rows)
    others = {
        message["payload"]["key"]: message["payload"]["value"] for message in messages if message["type"] == "log_other"
    }
    assert (others["Name"], others["state"]) == ("recipe/20260101-000000_abc", "finished")


def test_no_file_of_a_run_holds_a_key(tracked: Tracked) -> None:
    for path in tracked.run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    content = b"".join(map(archive.read, archive.namelist()))
            assert not [name for name, key in KEYS.items() if key.encode() in content], path


def numbers_of(rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Without what is null: trackers that know numbers alone have nothing there."""
    return {step: {key: value for key, value in row.items() if value is not None} for step, row in rows.items()}
