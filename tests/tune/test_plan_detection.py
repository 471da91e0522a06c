"""Plans of temporal detection: memory, work and cost of a window, by hand and against published memory; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cost.parameter_counts import adapter_parameters, pyramid_parameters
from vmae2_ds.cli.main import main
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.cost.pyramid import pyramid_macs
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.arguments import PlanArguments
from vmae2_ds.tune.forecast import Forecast, check_fits, describe_forecast, forecast_json, make_forecast
from vmae2_ds.tune.setting_cost import GIB

GIANT = "thumos14_adatad_g"


def config_of(recipe: str, **sections: dict[str, object]) -> TadConfig:
    config = get_recipe("tad", recipe).changed(**sections)
    assert isinstance(config, TadConfig)
    return config


def plan_of(recipe: str | TadConfig = GIANT, **options: object) -> Forecast:
    config = config_of(recipe) if isinstance(recipe, str) else recipe
    return make_forecast(config, PlanArguments.model_validate({"gpus": 2, "gpu": "h100", **options}))


def test_a_window_of_vit_g_by_hand() -> None:
    """48 clips of 968 tokens; 40 frozen blocks, of which 39 have a backward pass of one product for each of their own."""
    found = forecast_json(plan_of())
    assert found["tokens"] == {"positions": 768, "frames": 768, "clips": 48, "encoder": 48 * 968}
    head = pyramid_parameters(config_of(GIANT).model.head, 1408, 20)
    assert found["params_learning"] == 40 * 1_118_657 + head
    assert found["params"] - found["params_learning"] == 1_011_610_752 - 2 * 1408  # no final norm
    width, mlp, tokens = 1408, 6144, 48 * 968
    linear, attention = tokens * (4 * width**2 + 2 * width * mlp), 2 * tokens * 968 * width
    adapter = tokens * (2 * width * 352 + 352**2 + 3 * 352)
    embed, of_head = tokens * 3 * 2 * 14**2 * width, pyramid_macs(config_of(GIANT).model.head, 1408, 20, 768)
    forward = embed + 40 * (linear + attention + adapter) + of_head
    backward = 39 * (linear + 2 * attention) + 2 * 40 * adapter - tokens * width * 352 + 2 * of_head
    assert found["flops_per_clip"]["model"] == 2 * (forward + backward)
    assert found["batch"]["steps"] == 60 * 200 // 2
    assert found["hours"]["expected"] == pytest.approx(6000 * found["step_s"]["expected"]["total_s"] / 3600)


def test_frozen_weights_are_two_bytes_and_what_learns_is_sixteen_over_the_ranks() -> None:
    """And a float32 mean: of 2 GPUs at stage 1."""
    plan = plan_of()
    parts, asks = plan.memory["expected"].parts, plan.asks
    learns = asks.num_learning
    assert parts["weights"] == pytest.approx(2 * asks.num_parameters, rel=1e-4)
    assert parts["master weights"] == pytest.approx(4 * learns / 2, rel=1e-4)
    assert parts["moments"] == pytest.approx(8 * learns / 2, rel=1e-4)
    assert parts["mean of weights"] == pytest.approx(4 * learns / 2, rel=1e-4)
    divided = plan_of(config_of(GIANT, train={"ds_config": "zero3"})).memory["expected"].parts
    assert divided["weights"] == pytest.approx(parts["weights"] / 2, rel=1e-3)


# docs/PAPER.md#temporal-adapters: the published system's memory of a GPU, in GB, and the block inputs that both keep.
@pytest.mark.parametrize(("recipe", "published_gb"), [(GIANT, 30.7), ("thumos14_adatad_b", 4.99)])
def test_less_memory_than_the_published_system(recipe: str, published_gb: float) -> None:
    found = plan_of(recipe).memory["worst"].total / 1e9
    print(f"{recipe}: at worst {found:.1f} GB for {published_gb}")
    assert found < published_gb


def test_adapters_in_the_last_half_take_less_memory_and_time() -> None:
    whole = plan_of()
    adapters = config_of(GIANT).model.adapters.model_copy(update={"blocks": "last_half"})
    half = plan_of(config_of(GIANT, model={"adapters": adapters}))
    saved = whole.memory["expected"].parts["activations"] - half.memory["expected"].parts["activations"]
    assert saved == 20 * 48 * 968 * 2 * (1408 + 352)  # block inputs, and the adapters' own
    assert half.time["expected"].compute_s < whole.time["expected"].compute_s
    assert whole.asks.num_learning - half.asks.num_learning == 20 * adapter_parameters(1408, 352)


def test_all_windows_of_a_step_are_on_the_gpu_together() -> None:
    """They are counted before the first is learnt from; four on two GPUs wait beside the one that is computed."""
    one, five = (
        plan_of(config_of(GIANT, train={"global_batch": size})).memory["expected"].parts["activations"]
        for size in (2, 10)
    )
    assert five - one == 4 * 768 * 154 * 154 * 3


def test_decoding_binds_small_encoders_and_the_plan_says_what_would_feed_them() -> None:
    small, giant = plan_of("thumos14_adatad_s"), plan_of()
    assert small.time["expected"].binds == "data"
    assert giant.time["expected"].binds == "compute"
    text = describe_forecast(small)
    assert "cores a GPU are needed" in text
    assert "--data.views" not in text
    frames_s = 768 / small.time["expected"].total_s  # a window a step for each GPU
    assert f"{frames_s:,.0f}" in next(line for line in text.splitlines() if "frames a second" in line)


@pytest.mark.parametrize("recipe", ["thumos14_v2g", "thumos14_adatad_s", "thumos14_adatad_g_1536"])
def test_every_kind_of_recipe_is_planned(recipe: str) -> None:
    config = config_of(recipe)
    gpus = config.train.global_batch // config.train.micro_batch
    found = plan_of(recipe, gpus=gpus)
    assert found.fits
    assert found.time["best"].total_s < found.time["expected"].total_s < found.time["worst"].total_s
    memory = forecast_json(found)["memory_gib"]
    parts = sum(value for part, value in memory.items() if part not in ("total", "margin", "host"))
    assert parts == pytest.approx(memory["total"]["expected"])
    assert (found.asks.num_learning == found.asks.num_parameters) == (recipe == "thumos14_v2g")


def test_features_from_files_cost_a_pyramid_alone() -> None:
    found = plan_of("thumos14_v2g", gpus=1)
    assert found.asks.num_parameters == pyramid_parameters(config_of("thumos14_v2g").model.head, 1408, 20)
    assert found.memory["expected"].total < 3 * GIB
    assert "features of width 1408 from files" in describe_forecast(found)


def test_what_does_not_fit_says_what_takes_less() -> None:
    plan = plan_of(memory=8)
    with pytest.raises(
        ConfigError, match=r"does not fit: .* the activations of 1 window take .* --model.adapters.blocks"
    ):
        check_fits(plan)


ANNOTATIONS = {
    "database": {
        name: {
            "subset": subset, "duration": 10.0, "fps": 30.0,
            "annotations": [{"label": "run", "label_id": 0, "segment": [1.0, 2.0]}],
        }
        for name, subset in (("a", "validation"), ("b", "validation"), ("c", "test"))
    }
}  # fmt: skip


def test_videos_are_counted_in_the_annotations(tmp_path: Path) -> None:
    file = tmp_path / "gt.json"
    file.write_text(json.dumps(ANNOTATIONS))
    config = config_of(GIANT, data={"annotations": file, "subset": ("validation",)})
    assert plan_of(config).run.num_videos == 2
    assert plan_of(config, videos=9).run.num_videos == 9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{GIANT} --gpus 3 --gpu h100", "--train.global-batch 2 is not a multiple of micro_batch=1 x 3 ranks"),
        (f"{GIANT} --gpus 2 --gpu h100 --data.length 700", "= 700 frames is no whole number of clips"),
        (
            f"{GIANT} --gpus 2 --gpu h100 --model.adapters.blocks 40",
            "names block 40, and the encoder has blocks 0 to 39",
        ),
        ("tad_desk --gpus 1 --gpu h100", "recipe tad_desk names none: give --videos N or --data.annotations FILE"),
        (
            "vit_b_distil_k710 --gpus 1 --gpu h100",
            "takes pre-training, fine-tuning, temporal detection and spatial detection recipes",
        ),
    ],
)
def test_impossible_questions_are_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *line.split()])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


def test_tune_takes_no_detection_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", GIANT, "--gpus", "2", "--gpu", "h100"])
    assert ended.value.code == 2
    assert "is a temporal detection recipe, and vmae2 tune takes pre-training recipes" in capsys.readouterr().err
