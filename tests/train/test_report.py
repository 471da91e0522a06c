"""The run report: complete for a whole run, still there for one that was killed, and self-contained."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vmae2_ds.config.distil import DistilConfig, DistilSettings
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ClassifierConfig, ModelConfig
from vmae2_ds.config.pretrain import ObjectiveConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.errors import ConfigError
from vmae2_ds.train.report import write_report

ROW = {"epoch": 0.5, "lr": 1e-3, "grad_norm": 0.25, "clips_per_s": 81.25, "step_time_s": 0.394, "data_wait_share": 0.01,
       "flat_loss": 0.992, "flops_per_s": 2.5e11, "mfu": 0.62, "skipped_steps": 0, "bad_videos": 2,
       "time": 0.0}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = PretrainConfig(
        recipe="desk", model=ModelConfig.of_size("tiny"), data=PretrainDataConfig(manifest=Path("videos <&>.csv"))
    )
    (tmp_path / "run.json").write_text(config.model_dump_json())
    (tmp_path / "env.json").write_text(json.dumps({"peak": {"flops": 4e11, "name": "a measured product"}, "ranks": 2}))
    rows = [json.dumps({"step": step, "loss": 1.05 - step / 100, **ROW}) for step in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    bad = [json.dumps({"path": f"bad{number}.mp4", "reason": "no frames"}) for number in range(25)]
    (tmp_path / "bad_files.jsonl").write_text("\n".join(bad) + "\n")
    return tmp_path


def text_of(page: str) -> str:
    """What a reader sees, without markup, styles and white space."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(page)
    return re.sub(r"\s+", " ", " ".join(found))


def test_a_whole_run(run: Path) -> None:
    page = write_report(run).read_text()
    text = text_of(page)
    for expected in ("0.6650", "first row 1.0400; predicting zeros would give 0.9920", "81.2", "62.0%",
                     "against a measured product", "250.0 GFLOP/s",
                     "bad19.mp4", "and 5 more", "videos <&>.csv", "encoder_ratio", "2 ranks"):  # fmt: skip
        assert expected in text, expected
    assert page.count("<svg") == 6


def test_the_page_is_self_contained(run: Path) -> None:
    (run / "pictures").mkdir()
    (run / "pictures" / "clip_0.png").write_bytes(b"\x89PNG")
    page = write_report(run).read_text()
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', re.sub(r"xlink:href", "href", page))


def test_what_was_measured_stands_above_its_pictures_as_bars_and_a_dot_for_each_clip(run: Path) -> None:
    """What an earlier version drew, or what was not measured, has its pictures alone, or the line that says why."""
    errors = [
        {"model": 0.02, "nearest_cube": 0.04, "mean_colour": 0.05},
        {"model": 0.04, "nearest_cube": 0.06, "mean_colour": 0.11},
    ]
    together = {key: sum(one[key] for one in errors) / 2 for key in errors[0]}
    told = {"line": "hidden cubes of 2 unseen videos: squared error 38 %", "squared_error": together,
            "clips": [{"squared_error": one} for one in errors]}  # fmt: skip
    for number, (name, hidden) in enumerate(
        {"step1": None, "step2": {"line": "hidden cubes: not measured"}, "step2_val": told}.items()
    ):
        place = run / "pictures" / name
        place.mkdir(parents=True)
        (place / "pictures.json").write_text(json.dumps({} if hidden is None else {"hidden_cubes": hidden}))
        for clip in ("clip00.png", "clip01.png"):
            (place / clip).write_bytes(b"\x89PNG")
            os.utime(place / clip, (number, number))
    page = write_report(run).read_text()
    text = text_of(page)
    assert page.count("<svg") == 7  # the curves, and one chart
    (svg,) = (part for part in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "nearest visible cube" in part)
    for said in (
        "the model",
        "0.0300",
        "0.0500: the model has 60 % of it",
        "0.0800: the model has 38 % of it",
        "mean colour",
    ):
        assert said in svg
    dots = [
        re.findall(r'<use [^>]*?x="([\d.]+)"', group) for group in re.findall(r"<g id=\"line2d_.*?</g>", svg, re.DOTALL)
    ]
    assert [len(set(places)) for places in dots if len(places) == 2] == [2, 2, 2]  # a dot of each clip at its own error
    line = "Hidden cubes of 2 unseen videos: squared error 38 %."
    order = ["step1 clip00", "step1 clip01", "Hidden cubes: not measured.", "step2 clip00", "step2 clip01", line]
    order += ["bars: all clips together", "step2 val clip00", "step2 val clip01"]
    places = [text.index(said) for said in order]
    assert places == sorted(places)


def test_a_killed_run(run: Path) -> None:
    for name in ("env.json", "bad_files.jsonl"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    assert "step 40" in text_of(write_report(run).read_text())
    (run / "metrics.jsonl").unlink()
    assert "No step has been logged yet." in write_report(run).read_text()


def test_missing_values_and_warnings(run: Path) -> None:
    rows = [
        {"step": 1, **ROW, "loss": None, "grad_norm": None, "mfu": None, "skipped_steps": 3, "data_wait_share": 0.5}
    ]
    (run / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    text = text_of(write_report(run).read_text())
    assert "Skipped: 3 steps, where" in text
    assert "50% of the time went into waiting for data" in text


def test_sources(run: Path) -> None:
    """Half and half for 36 rows, then one to three: the shares of all and of the last tenth, 4 of 40 rows."""
    counts = [
        (8 * step, 8 * step) if step <= 36 else (288 + 4 * (step - 36), 288 + 12 * (step - 36)) for step in range(1, 41)
    ]
    rows = [
        {
            "step": step,
            "loss": 1.0,
            **ROW,
            "source_videos/a<b": one,
            "source_videos/ssv2": other,
            "worker_mem_sum_gib": 1.5,
        }
        for step, (one, other) in enumerate(counts, 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = text_of(write_report(run).read_text())
    assert "a<b 304 47.50% 25.00% ssv2 336 52.50% 75.00%" in text
    assert "1.50 GiB" in text
    (run / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert "a<b 8 50.00% 50.00%" in text_of(write_report(run).read_text())


def test_spikes_and_hangs(run: Path) -> None:
    events = [
        {"step": 7, "what": "the loss of rank 1", "value": None, "limit": None, "action": "update left out", "time": 0},
        {"step": 9, "what": "the gradient norm", "value": 12.5, "limit": 3.0, "action": "back to step 8", "time": 0},
    ]
    (run / "guard.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "stacks").mkdir()
    (run / "stacks" / "rank0_1.txt").write_text("")  # of a rank that did not hang
    row = {"step": 40, "loss": 1.0, **ROW, "spikes": 1, "rollbacks": 1, "skipped_steps": 1}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    text = text_of(write_report(run).read_text())
    assert "7 the loss of rank 1 not finite - update left out" in text
    assert "9 the gradient norm 12.5 3 back to step 8" in text
    assert "1 spike of the loss or the gradient norm, 1 rollback: see below." in text
    assert "Skipped: 1 step, where a loss or gradient was not finite, or a spike." in text
    assert "Stacks of a hang" not in text
    (run / "stacks" / "rank1_1.txt").write_text("Thread 0x1")
    assert "Stacks of a hang: 1 file in stacks/, from rank1_1.txt" in text_of(write_report(run).read_text())


def test_one_source_needs_no_table(run: Path) -> None:
    row = {"step": 1, "loss": 1.0, **ROW, "source_videos/default": 8, "source_share/default": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert "share lately" not in write_report(run).read_text()


def test_pixels_are_compared_with_flat_cubes(run: Path) -> None:
    config = PretrainConfig(model=ModelConfig.of_size("tiny"), objective=ObjectiveConfig(target="pixels"))
    (run / "run.json").write_text(config.model_dump_json())
    page = write_report(run).read_text()
    assert "predicting zeros" not in page
    assert "every cube's own mean colours (known only to who sees it) would give 0.9920" in text_of(page)


CLASSIFIER = ClassifierConfig.of_size("tiny", num_classes=5)


@pytest.mark.parametrize(
    ("config", "loss", "level"),
    [
        (PretrainConfig(model=ModelConfig.of_size("tiny")), "mean squared error", "flat cubes"),
        (FinetuneConfig(model=CLASSIFIER), "cross-entropy", "equal chances"),
        (DistilConfig(model=CLASSIFIER), "divergence from the teacher", "equal chances"),
        (
            DistilConfig(model=CLASSIFIER, distil=DistilSettings(alpha=0.5, feature_weight=1)),
            "divergence from the teacher + cross-entropy + distance of features",
            "equal chances, features at right angles",
        ),
    ],
    ids=["pretrain", "finetune", "distil", "distil with labels and features"],
)
def test_the_loss_is_called_what_the_stage_learns(config: RunConfig, loss: str, level: str, run: Path) -> None:
    (run / "run.json").write_text(config.model_dump_json())
    page = write_report(run).read_text()
    assert f"<b>Loss ({loss}).</b>" in page
    assert f"{level}</text>" in page
    if not isinstance(config, PretrainConfig):
        assert "squared error" not in page
        assert "flat cubes" not in page
        assert f"first row 1.0400; {level} would give 0.9920" in text_of(page)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no run\.json"):
        write_report(tmp_path)


def test_held_back_videos_have_a_curve_a_figure_and_the_log_s_warning(run: Path) -> None:
    losses = [(1.0, 1.0), (0.8, 0.9), (0.9, 0.7), (0.96, 0.6), (0.85, 0.5)]
    rows = [
        {"step": 10 * number, "epoch": 2.0 * number, "val_loss": val, "seen_loss": seen}
        for number, (val, seen) in enumerate(losses)
    ]
    (run / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run).read_text()
    text = text_of(page)
    assert page.count("<svg") == 7
    assert "as many trained ones" in text
    assert "Best loss of held-back videos 0.8000 step 10; the last 0.8500, and 0.5000 on trained videos" in text
    assert "The videos are learned by heart: at step 30 val_loss is 0.96, 20.0% above its best, 0.8 at step 10" in text
    assert text.count("learned by heart") == 1
