"""The planner: figures that can be worked out by hand, bounds in order, and one clear line for what cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.cost.assumptions import Assumptions, End, Range
from vmae2_ds.cost.states import state_bytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import make_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.arguments import PlanArguments, cluster_of
from vmae2_ds.tune.forecast import Forecast, check_fits, describe_forecast, forecast_json, make_forecast
from vmae2_ds.tune.setting_cost import Setting, add_up, predict_memory, predict_time
from vmae2_ds.tune.workload import workload_of

RECIPE = "vit_g_pretrain_hybrid"


def plan_of(recipe: str | PretrainConfig = RECIPE, **options: object) -> Forecast:
    config = get_recipe("pretrain", recipe) if isinstance(recipe, str) else recipe
    return make_forecast(config, PlanArguments.model_validate({"gpus": 64, "gpu": "a100-80g", **options}))


def changed(recipe: str, section: str, **values: object) -> PretrainConfig:
    return get_recipe("pretrain", recipe).changed(**{section: values})


def test_the_papers_largest_run() -> None:
    """ViT-g on 64 A100-80G: FLOPs, steps and batch by hand; the paper's 241 hours is slower than we expect (see SCALING.md)."""
    found = forecast_json(plan_of())
    assert found["batch"]["global_batch"] == 8192 == 32 * 4 * 64
    assert found["batch"]["steps"] == 300 * (1_348_000 // 2048) == 197_400
    assert found["params"] == 1_026_306_560
    assert found["flops_per_clip"]["model"] == pytest.approx(6 * 238.5669e9, rel=1e-5)  # docs/PAPER.md#macs
    assert found["flops_per_step"]["model"] == 8192 * found["flops_per_clip"]["model"]
    step_s = found["step_s"]["expected"]["total_s"]
    assert found["utilisation"]["expected"]["mfu"] == pytest.approx(
        found["flops_per_step"]["model"] / 64 / step_s / 312e12
    )
    assert found["hours"]["expected"] == pytest.approx(found["batch"]["steps"] * step_s / 3600)
    assert found["gpu_hours"]["expected"] == pytest.approx(64 * found["hours"]["expected"])
    memory = found["memory_gib"]
    assert sum(value for part, value in memory.items() if part not in ("total", "margin", "host")) == pytest.approx(
        memory["total"]["expected"]
    )


def test_a_price_tells_what_the_hours_cost() -> None:
    found, plan = forecast_json(plan_of(gpu_hour_price=2.5)), plan_of(gpu_hour_price=2.5)
    for end in ("best", "expected", "worst"):
        assert found["cost"][end] == pytest.approx(2.5 * 64 * found["hours"][end])
    best, expected, worst = (f"{found['cost'][end]:,.0f}" for end in ("best", "expected", "worst"))
    assert f": {expected} at 2.5 an hour ({best} to {worst})" in describe_forecast(plan)
    assert " an hour" not in describe_forecast(plan_of())
    assert forecast_json(plan_of())["cost"] is None


def test_steps_with_a_frozen_encoder_cost_what_torch_counts_and_take_less_time() -> None:
    """Their model FLOPs by torch's counter, with all blocks recomputed, and their hours among the others'."""
    config = PretrainConfig(
        model=ModelConfig(
            encoder=TowerConfig(width=24, depth=3, heads=3, mlp=48),
            decoder=TowerConfig(width=12, depth=2, heads=2, mlp=24),
            patch=8,
            attention="math",
            checkpointing="all",
        ),
        data=PretrainDataConfig(num_frames=8, size=32, views=1),
    )
    model = MaskedAutoencoder(config.model, config.geometry)
    masks = make_masks(config.mask, config.geometry, np.random.default_rng(0))
    batch = PretrainBatch.of_clips(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8), [masks])
    counted = {}
    for model.is_encoder_frozen in (False, True):
        with FlopCounterMode(display=False) as counter:
            Reconstruct(model, config.objective, config.geometry)(batch).loss.backward()
        counted[model.is_encoder_frozen] = counter.get_total_flops()
    asks = workload_of(config, "math")
    visible = batch.visible_BV.shape[1]
    # pixels need no gradient, so the embedding has one product less than is said; tokens of a frozen encoder need none either
    embed, bridge = (2 * visible * values * width for values, width in ((2 * 8 * 8 * 3, 24), (24, 12)))
    assert counted[False] - counted[True] == asks.encoder_backward[1] - embed + bridge
    recipe = changed("vit_g_continue", "train", max_steps=100)
    whole = plan_of(recipe, gpus=8, videos=5000)
    part = plan_of(recipe.changed(optim={"freeze_encoder_steps": 25}), gpus=8, videos=5000)
    frozen_s, step_s = part.frozen_step_s("expected"), part.time["expected"].total_s
    assert part.hours("expected") == pytest.approx((75 * step_s + 25 * frozen_s) / 3600)
    assert 0.3 < frozen_s / step_s < 0.9
    assert part.time == whole.time
    assert part.memory == whole.memory
    assert ("step, the encoder frozen" in describe_forecast(part), "frozen" in describe_forecast(whole)) == (
        True,
        False,
    )


def test_bounds_enclose_the_expected_case() -> None:
    plan = plan_of()
    assert plan.time["best"].total_s < plan.time["expected"].total_s < plan.time["worst"].total_s
    assert plan.memory["best"].total < plan.memory["expected"].total < plan.memory["worst"].total
    assert plan.hours("best") < plan.hours("expected") < plan.hours("worst")


@pytest.mark.parametrize("name", [name for name, constant in Assumptions() if isinstance(constant, Range)])
def test_the_best_end_of_every_assumption_is_its_better_one(name: str) -> None:
    """One constant at a time, at both ends, in runs that between them are bound by everything: arithmetic, starts, offload."""
    busy = changed(RECIPE, "train", micro_batch=16)
    offloaded = changed(RECIPE, "train", ds_config="zero3_offload", micro_batch=1)
    runs = (busy, offloaded, changed("vit_s_pretrain_hybrid", "train", micro_batch=1))

    def cost(asked: PretrainConfig, end: End) -> tuple[float, float, float]:
        ends = Assumptions().model_copy(update={name: getattr(Assumptions().at(end), name)})
        cluster = cluster_of(PlanArguments(gpus=128, gpu="h200"), ends)
        setting = Setting(asked, ZeroPolicy.of_ds_config(read_policy(asked.train.ds_config)))
        time, memory = predict_time(setting, cluster, ends), predict_memory(setting, cluster, ends)
        return time.device_s, time.data_s, memory.total - 2**30 * (cluster.memory_gib + ends.host_memory_gib.value)

    best, worst = ([figure for asked in runs for figure in cost(asked, end)] for end in ("best", "worst"))
    assert all(better <= worse for better, worse in zip(best, worst, strict=True))
    assert best != worst, f"{name} changes nothing here"


def test_a_plan_counts_host_memory() -> None:
    config = changed("vit_6b_pretrain_plan", "train", ds_config="zero3_offload", micro_batch=1)
    assert plan_of(config, gpus=8, gpu="h200").fits
    small = plan_of(config, gpus=8, gpu="h200", host_memory=8)
    assert not small.fits
    with pytest.raises(ConfigError, match=r"GiB of host memory for each GPU, 8 expected .* --host-memory"):
        check_fits(small)


def test_parts_add_up_to_the_worse_of_backward_and_update() -> None:
    """With hpZ the second copy is there in both."""
    policy = ZeroPolicy.of_ds_config(read_policy("zeropp"))
    states = state_bytes(get_recipe("pretrain", RECIPE).model, policy, 16, precision="bf16")
    for activations in (0, 10**12):
        found = add_up(states, activations, Assumptions())
        assert found.tensors == max(states.backward + activations, states.step)


def test_better_hardware_is_never_slower() -> None:
    order = ("a10", "a100-80g", "h100")
    times = [plan_of("vit_b_pretrain_hybrid", gpu=gpu, gpus=32).time["expected"].compute_s for gpu in order]
    assert times == sorted(times, reverse=True)


def test_a_slow_network_binds_and_few_cores_bind() -> None:
    slow = plan_of(changed(RECIPE, "train", ds_config="zero3", micro_batch=4), network_gbit=0.5)
    assert slow.time["expected"].binds == "network"
    starved = plan_of("vit_b_pretrain_hybrid", gpus=32, cores_per_gpu=1)
    assert starved.time["expected"].binds == "data"
    assert "cores a GPU are needed" in describe_forecast(starved)
    assert starved.cores_needed("expected") > 1


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    plan = plan_of(changed(RECIPE, "model", checkpointing="none"), memory=40)
    most = forecast_json(plan)["largest_micro_batch"]
    assert most == 16
    fits = {n: plan_of(with_micro_batch(plan.setting.config, n), memory=40).fits for n in (most, 2 * most)}
    assert fits == {most: True, 2 * most: False}
    assert f"--train.micro-batch {most} is the largest that fits" in describe_forecast(plan)


def test_recomputing_without_need_is_said_and_only_where_all_would_fit() -> None:
    said = "nothing needs to be recomputed: --model.checkpointing none takes"
    plan, without = plan_of(), plan_of(changed(RECIPE, "model", checkpointing="none"))
    saved = 1 - without.time["expected"].compute_s / plan.time["expected"].compute_s
    assert 0.1 < saved < 0.25, "a forward pass of the blocks is a quarter of all work where all are computed again"
    described = describe_forecast(plan)
    assert f"{said} {without.memory['expected'].total_gib:.1f} GiB in all, and {saved:.0%} off" in described
    assert said not in describe_forecast(without)
    assert said not in describe_forecast(plan_of(memory=40))


def with_micro_batch(config: PretrainConfig, videos: int) -> PretrainConfig:
    return config.changed(train={"micro_batch": videos})


def test_one_gpu_sends_nothing() -> None:
    plan = plan_of(changed("vit_b_pretrain_hybrid", "train", global_batch=128), gpus=1)
    assert forecast_json(plan)["comm_bytes_per_step"] == {"intra_node": 0, "inter_node": 0, "collectives": []}


def test_math_attention_needs_more_memory_and_time() -> None:
    flash, math = plan_of(), plan_of(changed(RECIPE, "model", attention="math"))
    assert math.memory["expected"].total > flash.memory["expected"].total
    assert math.time["expected"].compute_s > flash.time["expected"].compute_s


def test_float32_has_no_flash_attention() -> None:
    assert "fp32, sdpa attention" in describe_forecast(plan_of(changed(RECIPE, "train", precision="fp32")))
    assert "bf16, flash attention" in describe_forecast(plan_of())


def test_what_does_not_fit_says_so_and_what_to_do() -> None:
    plan = plan_of(changed(RECIPE, "model", checkpointing="none", attention="math"))
    assert not plan.fits
    assert "TOO MUCH" in describe_forecast(plan)
    with pytest.raises(ConfigError, match=r"does not fit: .* GiB expected .* vmae2 tune vit_g_pretrain_hybrid"):
        check_fits(plan)


def test_a_calibration_replaces_the_priors(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    values = Assumptions().model_dump(mode="json")
    values["matmul_efficiency"] = {"low": 0.1, "value": 0.1, "high": 0.1}
    path.write_text(json.dumps(values))
    assert plan_of(calibration=path).time["expected"].compute_s > 2 * plan_of().time["expected"].compute_s


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "a100"}, r"--gpu 'a100' is not in the table; .*known: t4"),
        ({"gpus": 9}, r"--gpus 9 do not divide over 2 nodes; try --gpus 8"),
        ({"gpus": 12, "nodes": 5}, r"do not divide over 5 nodes; try --gpus 10"),
        ({"memory": 96}, r"--memory 96: A100 80GB SXM has 80 GB"),
        (
            {"gpus": 48, "nodes": 6},
            r"global-batch 8192 is not a multiple of micro_batch=32 x 48 ranks x views=4 = 6144",
        ),
        ({"gpu": "v100-32g"}, r"V100 32GB SXM2 has no bf16 peak in its datasheet; it has fp16, fp32"),
        ({"calibration": Path("absent.json")}, r"--calibration absent.json: No such file"),
    ],
)
def test_impossible_questions_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        plan_of(**options)
    assert "\n" not in str(refused.value)


def test_unknown_number_of_videos_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"how many videos\?.*--videos N or --data.manifest FILE"):
        plan_of("vit_ti_pretrain_desk", gpus=1)
    assert plan_of("vit_ti_pretrain_desk", gpus=1, videos=300).run.num_videos == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"matmul": {}}', "matmul: Extra inputs.*known: source, usable_memory"),
        ("[]", "calibration.json: file: Input should be a valid dictionary"),
        ('{"matmul_efficiency": {"low": 0, "value": 0.1, "high": 1}}', "matmul_efficiency.low=0"),
        ('{"fragmentation": {"low": 0, "value": 0.5, "high": 1}}', "fragmentation.high=1: it is a share"),
        ('{"overlap": {"low": 2, "value": 1, "high": 3}}', "overlap: Value error, 0 <= low=2 <= value=1 <= high=3"),
    ],
)
def test_malformed_calibrations_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        plan_of(calibration=path)
    assert "\n" not in str(refused.value)
