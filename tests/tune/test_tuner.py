"""The tuner's choices: what it takes, what it writes, and what it says where nothing fits."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tune.test_search_space import cluster_of
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.engine.ranks import start_ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.build import build_engine
from vmae2_ds.tune.arguments import TuneArguments
from vmae2_ds.tune.candidates import Candidate, Search, search
from vmae2_ds.tune.setting_cost import GIB
from vmae2_ds.tune.tuner import Tuning, describe_tuning, tune, tuning_json

QUESTIONS = {
    "g on 64 x 80 GB": ("vit_g_pretrain_hybrid", 64, "a100-80g"),
    "g on 8 x 24 GB": ("vit_g_pretrain_hybrid", 8, "rtx-4090"),
    "6b on 64 x 80 GB": ("vit_6b_pretrain_plan", 64, "a100-80g"),
    "b on 1 x 24 GB": ("vit_b_pretrain_hybrid", 1, "rtx-3090"),
}


def ask(tmp_path: Path, recipe: str, gpus: int, gpu: str, **options: object) -> Tuning:
    arguments = TuneArguments.model_validate({"gpus": gpus, "gpu": gpu, "out": tmp_path / "ds.json", **options})
    return tune(get_recipe("pretrain", recipe), arguments, [])


@pytest.fixture(scope="module")
def found() -> Search:
    return search(get_recipe("pretrain", "vit_g_pretrain_hybrid"), cluster_of(8, gpu="rtx-4090"), Assumptions())


def test_the_front_is_a_front(found: Search) -> None:
    """Held against the definition, by brute force."""
    fits = [c for c in found.candidates if c.fits]
    for member in found.front:
        for other in fits:
            assert not (other.time.total_s < member.time.total_s and other.memory.total < 0.99 * member.memory.total), (
                f"{other.describe()} beats {member.describe()}"
            )
    times = [member.time.total_s for member in found.front]
    assert times == sorted(times)
    assert min(c.time.total_s for c in fits) == times[0]


def test_what_is_taken_is_safe_fast_and_simple(found: Search) -> None:
    chosen = found.chosen
    assert chosen is not None
    assert chosen.is_safe
    safe = [c for c in found.candidates if c.is_safe]
    fastest_s = min(c.time.total_s for c in safe)
    assert chosen.time.total_s <= 1.02 * fastest_s
    assert all(chosen.complexity <= c.complexity for c in safe if c.time.total_s <= 1.02 * fastest_s)


def test_memory_adds_up_and_margins_agree(found: Search) -> None:
    for candidate in found.candidates[::97]:
        assert candidate.memory.total == pytest.approx(sum(candidate.memory.parts.values()))
        assert candidate.margin_gib == pytest.approx(found.cluster.memory_gib - candidate.memory.total / GIB)
        assert candidate.worst_memory.total > candidate.memory.total


@pytest.mark.parametrize("question", QUESTIONS)
def test_written_configs_go_through_deepspeed_and_through_pretrain(tmp_path: Path, question: str) -> None:
    """DeepSpeed's own parser at the real world size; pretrain's resolution; and a real engine at the size there is here."""
    recipe, gpus, gpu = QUESTIONS[question]
    os.environ["DS_ACCELERATOR"] = "cpu"
    start_ranks()
    tuning = ask(tmp_path, recipe, gpus, gpu)
    chosen = tuning.chosen.setting.config
    written = json.loads((tmp_path / "ds.json").read_text())

    from deepspeed.runtime.config import DeepSpeedConfig

    ranks = SimpleNamespace(get_data_parallel_world_size=lambda: gpus)
    parsed = DeepSpeedConfig(json.loads(json.dumps(written)), mpu=ranks)
    assert parsed.train_batch_size == get_recipe("pretrain", recipe).train.global_batch
    assert parsed.zero_optimization_stage == tuning.chosen.setting.policy.stage
    assert parsed.bfloat16_config.enabled

    train = chosen.train.model_copy(update={"ds_config": str(tmp_path / "ds.json")})
    as_typed = chosen.model_copy(update={"train": train})
    plan = plan_run(as_typed, 1_348_000, gpus)
    assert resolve_ds_config(as_typed, plan, on_cpu=False) == written
    assert ZeroPolicy.of_ds_config(written) == tuning.chosen.setting.policy
    _initialize(written, chosen)


def _initialize(written: dict, config: PretrainConfig) -> None:
    """deepspeed.initialize on one CPU rank, with the batch that one rank makes and a model that fits in a test."""
    written["train_batch_size"] = written["train_micro_batch_size_per_gpu"] * written["gradient_accumulation_steps"]
    for part in ("offload_optimizer", "offload_param"):
        if part in written["zero_optimization"]:
            written["zero_optimization"][part]["pin_memory"] = False  # needs CUDA
    small = TowerConfig(width=32, depth=2, heads=2, mlp=64)
    model = config.model.model_copy(update={"encoder": small, "decoder": small})
    data = config.data.model_copy(update={"num_frames": 4, "size": 4 * config.model.patch})
    engine = build_engine(config.model_copy(update={"model": model, "data": data}), written)
    assert engine.deepspeed.zero_optimization_stage() == written["zero_optimization"]["stage"]


def test_nothing_fits_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        ask(tmp_path, "vit_6b_pretrain_plan", 2, "rtx-4090", offload=False)
    message = str(refused.value)
    assert "\n" not in message
    assert "nothing fits" in message
    assert "offload: leave out --no-offload" in message
    assert "more GPUs: --gpus" in message
    assert not (tmp_path / "ds.json").exists()


def test_nothing_can_fit_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing fits .* or a GPU with more than"):
        ask(tmp_path, "vit_6b_pretrain_plan", 1, "rtx-4090", memory=1.5)


def test_more_gpus_that_are_named_do_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"more GPUs: --gpus (\d+)") as refused:
        ask(tmp_path, "vit_6b_pretrain_plan", 1, "a100-40g", offload=False)
    named = re.search(r"--gpus (\d+)", str(refused.value))
    assert named is not None
    assert ask(tmp_path, "vit_6b_pretrain_plan", int(named[1]), "a100-40g", offload=False).chosen.fits


def test_report_says_what_binds_and_why_not_the_others(tmp_path: Path) -> None:
    text = describe_tuning(ask(tmp_path, "vit_g_pretrain_hybrid", 8, "rtx-4090"))
    for words in (
        "Pareto front of",
        "GiB to spare",
        "compute 9",
        "why it was not taken",
        "taken",
        "slower",
        "start with:",
    ):
        assert words in text
    assert "--train.ds-config" in text


def test_json_is_whole(tmp_path: Path) -> None:
    found = json.loads(json.dumps(tuning_json(ask(tmp_path, "vit_b_pretrain_hybrid", 8, "a100-40g"))))
    assert found["chosen"]["fits_in_the_worst_case"]
    assert found["searched"] >= found["fitting"] > 0
    assert {"setting", "memory_gib", "step_s", "binds", "margin_gib"} <= set(found["front"][0])


def test_quantised_traffic_is_only_used_on_request(tmp_path: Path) -> None:
    slow = {"network_gbit": 1.0}
    plain = ask(tmp_path, "vit_6b_pretrain_plan", 64, "a100-40g", **slow)
    quantised = ask(tmp_path, "vit_6b_pretrain_plan", 64, "a100-40g", quantized=True, **slow)
    assert not plain.chosen.setting.policy.quantized_gradients
    fastest: Candidate = quantised.found.fitting[0]
    assert fastest.time.total_s <= plain.found.fitting[0].time.total_s


def test_a_smaller_memory_never_makes_it_faster() -> None:
    recipe, cluster = get_recipe("pretrain", "vit_g_pretrain_hybrid"), cluster_of(8)
    times = []
    for memory_gib in (78, 40, 24, 12):
        chosen = search(
            recipe, replace(cluster, memory_gib=memory_gib, worst_memory_gib=memory_gib), Assumptions()
        ).fitting[0]
        times.append(chosen.time.total_s)
    assert times == sorted(times)
