"""Plans of spatial detection: work, states and memory of a clip with its boxes, by hand; the host's side; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.cli.main import main
from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.cost.flops import tower_parameters
from vmae2_ds.data.feed.shared_memory import loader_bytes
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.arguments import PlanArguments
from vmae2_ds.tune.forecast import Forecast, describe_forecast, forecast_json, make_forecast
from vmae2_ds.tune.setting_cost import GIB

GIANT, RECIPES = "ava_g", ("ava_s", "ava_b", "ava_l", "ava_h", "ava_g")


def config_of(recipe: str = GIANT, **sections: dict[str, object]) -> AvaConfig:
    config = get_recipe("ava", recipe).changed(**sections)
    assert isinstance(config, AvaConfig)
    return config


def plan_of(config: AvaConfig, **options: object) -> Forecast:
    return make_forecast(
        config, PlanArguments.model_validate({"gpus": 32, "gpu": "a100-80g", "videos": 128_000, **options})
    )


def test_a_clip_of_vit_g_by_hand() -> None:
    """2048 tokens through 40 blocks that all learn, and 80 classes of each of its boxes."""
    config = config_of(model={"num_classes": 80})
    found = forecast_json(plan_of(config))
    assert found["tokens"] == {"frames": 16, "encoder": 2048, "boxes": config.data.most_boxes}
    width, mlp, tokens = 1408, 6144, 2048
    block = tokens * (4 * width**2 + 2 * width * mlp) + 2 * tokens**2 * width
    embed, head = tokens * 3 * 2 * 14**2 * width, config.data.most_boxes * width * 80
    assert found["flops_per_clip"]["model"] == 2 * (3 * 40 * block + 2 * embed + 3 * head)
    assert (
        found["params"] == found["params_learning"] == 1177 * 1408 + tower_parameters(config.model.encoder) + 1409 * 80
    )
    assert found["batch"]["steps"] == config.train.epochs * 128_000 // config.train.global_batch


def test_states_are_divided_by_zero_and_a_frozen_encoder_has_none() -> None:
    config = config_of(train={"ds_config": "zero1"})
    parts, asks = plan_of(config).memory["expected"].parts, plan_of(config).asks
    assert parts["weights"] == pytest.approx(2 * asks.num_parameters, rel=1e-4)
    assert parts["moments"] == pytest.approx(8 * asks.num_parameters / 32, rel=1e-3)
    divided = plan_of(config_of(train={"ds_config": "zero3"})).memory["expected"].parts
    assert divided["weights"] == pytest.approx(parts["weights"] / 32, rel=1e-2)
    frozen = plan_of(config_of(optim={"train_only": "head"}, train={"ds_config": "zero1"}))
    assert frozen.asks.num_learning == 2 * 1408 + 1409 * config.model.num_classes
    assert frozen.memory["expected"].parts["moments"] < 1e-3 * GIB
    assert frozen.memory["expected"].parts["activations"] < 0.3 * parts["activations"]
    assert "only the head learns" in describe_forecast(frozen)


def test_recomputation_takes_less_memory_and_more_time() -> None:
    kept, again = (plan_of(config_of(model={"checkpointing": each})) for each in ("none", "all"))
    assert again.memory["expected"].parts["activations"] < kept.memory["expected"].parts["activations"] / 5
    assert again.time["expected"].compute_s > 1.2 * kept.time["expected"].compute_s


def test_clips_of_a_step_wait_where_its_boxes_are_counted_first() -> None:
    """Four micro steps, of which three wait beside the one that is computed, a uint8 clip each."""
    waits, goes = (
        plan_of(
            config_of(loss={"mean_over": each}, train={"global_batch": 128, "micro_batch": 1})
        ).memory["expected"].parts["activations"]
        for each in ("boxes", "clips")
    )  # fmt: skip
    assert waits - goes == 3 * 16 * 224 * 224 * 3


def test_the_host_side_is_told() -> None:
    """Decoded frames of a key frame, and the room that each rank's loader takes."""
    config = config_of()
    found = plan_of(config)
    assert f"for which {16 * config.data.stride} are decoded" in describe_forecast(found)
    batch = config.train.micro_batch * (
        16 * 224 * 224 * 3 + config.data.most_boxes * (4 * 4 + 1 + 4 * config.model.num_classes)
    )
    made = config.data.workers * config.data.prefetch + 1
    assert forecast_json(found)["shm_bytes_of_loader"] == loader_bytes(config)
    assert loader_bytes(config) == pytest.approx(made * batch, rel=0.01)
    assert f"{loader_bytes(config) / GIB:.2f}" in next(
        line for line in describe_forecast(found).splitlines() if "/dev/shm" in line
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_size_is_planned_and_fits_its_published_gpus(recipe: str) -> None:
    config = config_of(recipe)
    found = plan_of(config, gpus=config.train.global_batch // config.train.micro_batch)
    assert found.fits
    assert found.time["best"].total_s < found.time["expected"].total_s < found.time["worst"].total_s


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ava_b --gpus 3 --gpu h100 --videos 1000", "is not a multiple of micro_batch"),
        (
            "ava_b --gpus 8 --gpu h100",
            "how many key frames? recipe ava_b names none: give --videos N or --data.truth FILE --data.label-map",
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


def test_key_frames_are_counted_in_the_truth(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("run\njump\n")
    rows = [f"a,{902 + second},0.1,0.1,0.5,0.9,1,0" for second in range(5)] + ["a,902,0.1,0.1,0.5,0.9,2,0"]
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    data = {"truth": (tmp_path / "truth.csv",), "label_map": tmp_path / "map.txt"}
    config = config_of(model={"num_classes": 2}, data=data, train={"global_batch": 1, "micro_batch": 1})
    asked = PlanArguments(gpus=1, gpu="a100-80g")
    assert make_forecast(config, asked).run.num_videos == 5
