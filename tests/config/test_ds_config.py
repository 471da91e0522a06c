"""Policies resolve to what DeepSpeed's own parser accepts; a policy that contradicts the run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmae2_ds.config.ds_config import policy_names, read_policy, resolve_ds_config, zero_stage
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe


def with_train(**changes: Any) -> PretrainConfig:
    config = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def resolve(config: PretrainConfig) -> dict[str, Any]:
    return resolve_ds_config(config, plan_run(config, 1_000_000, 64), on_cpu=True)


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_resolves_for_fp32_and_deepspeed_reads_it(name: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = resolve(with_train(ds_config=name, precision="fp32"))
    assert "auto" not in json.dumps(resolved)
    assert (resolved["train_batch_size"], resolved["gradient_clipping"]) == (8192, 0.02)
    # one rank stands for 64 here
    parsed = DeepSpeedConfig(
        {
            **resolved,
            "train_batch_size": resolved["train_micro_batch_size_per_gpu"] * resolved["gradient_accumulation_steps"],
        }
    )
    assert parsed.zero_optimization_stage == zero_stage(resolved)


@pytest.mark.parametrize("clip", [0.0, 0.02, 3.0])
def test_the_run_config_decides_batch_accumulation_and_clipping(clip: float) -> None:
    """8192 clips on 64 ranks with 4 views: 8 videos make 32 clips, four times; 0 switches clipping off."""
    config = with_train(ds_config="zero2", micro_batch=8).changed(optim={"clip_grad": clip})
    resolved = resolve(config)
    assert resolved["gradient_clipping"] == clip
    assert resolved["train_batch_size"] == 8192
    assert resolved["train_micro_batch_size_per_gpu"] == 32
    assert resolved["gradient_accumulation_steps"] == 4


def test_bf16_is_enabled_where_asked() -> None:
    assert resolve(with_train(ds_config="zero2"))["bf16"]["enabled"] is True
    assert resolve(with_train(ds_config="zero2", precision="fp32"))["bf16"]["enabled"] is False


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bf16_run_asks_deepspeed_to_drop_what_is_not_finite(stage: int, tmp_path: Path) -> None:
    """Up to 0.19.2 DeepSpeed's own value was false: the policy must not leave it open, nor another say otherwise."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    assert resolve(with_train(ds_config=str(path)))["bf16"]["check_grad_overflow"] is True
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, "bf16": {"check_grad_overflow": False}}))
    with pytest.raises(ConfigError, match=r"bf16\.check_grad_overflow=False but the run needs True"):
        resolve(with_train(ds_config=str(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train_batch_size": 7}', "train_batch_size=7 but the run needs 8192"),
        ('{"optimizer": {"type": "Adam"}}', "'optimizer', which belongs to the run config"),
        ('{"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}}', 'reduce_bucket_size is "auto"'),
        ("{", "line 1: not JSON"),
        ("[]", "JSON object"),
        ('{"zero_optimization": 3}', "zero_optimization=3 is not a JSON object"),
        ('{"zero_optimization": {"stage": 5}}', "stage=5: 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": "three"}}', "stage='three': 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}', "offload_optimizer='cpu'; write"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": -5}}', "reduce_bucket_size=-5: a number above 0"),
        ("{}", "stage 0 takes a wrong first step"),
        ('{"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}', "use .* zero2 or zero3"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, '
            '"data_types": {"grad_accum_dtype": "fp32"}}',
            "keeps an infinite gradient",
        ),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolve(with_train(ds_config=str(path)))


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="zero3_offload"):
        read_policy("zero9")
    with pytest.raises(ConfigError, match="no file"):
        read_policy("nowhere/zero9.json")


def test_a_frozen_encoder_s_states_are_not_left_alone_on_nvme(tmp_path: Path) -> None:
    path = tmp_path / "nvme.json"
    path.write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}')
    config = with_train(ds_config=str(path))
    assert resolve(config)
    with pytest.raises(ConfigError, match=r"--optim.freeze-encoder-steps 7 .* nvme"):
        resolve(config.changed(optim={"freeze_encoder_steps": 7}))


def test_zero_init_needs_stage_3() -> None:
    with pytest.raises(ConfigError, match="needs ZeRO stage 3"):
        resolve(with_train(ds_zero_init=True, ds_config="zero2"))
