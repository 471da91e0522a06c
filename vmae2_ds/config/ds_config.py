"""DeepSpeed configuration: a policy file with "auto" where the run config decides, resolved and checked.

A policy says how ZeRO works (stage, buckets, offload); batch, accumulation, clipping, precision and the optimizer belong
to the run config. A policy that sets one of those to another value is refused, not overruled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.errors import ConfigError

AUTO = "auto"


def policy_names() -> list[str]:
    """Names of the policies that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def _folder() -> Path:
    """Where setup.py installs ds_configs/; in a checkout, installed or only on PYTHONPATH, the folder beside the package."""
    package = Path(__file__).parents[1]
    installed = package / "ds_configs"
    return installed if installed.is_dir() else package.parent / "ds_configs"


def read_policy(name: str) -> dict[str, Any]:
    """The policy called `name` in ds_configs/, or the JSON file at that path. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise ConfigError(f"--train.ds-config: no file {path}; or name one of {', '.join(policy_names())}")
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigError(f"--train.ds-config {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--train.ds-config {path}: not a text file; a ds_config is JSON") from None
    elif name in policy_names():
        text = (_folder() / f"{name}.json").read_text()
    else:
        raise ConfigError(f"--train.ds-config {name!r} is neither a .json file nor one of {', '.join(policy_names())}")
    try:
        policy = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(policy, dict):
        raise ConfigError(f"{path}: a ds_config is a JSON object, not {type(policy).__name__}")
    _check_zero(policy.get("zero_optimization", {}), path)
    return policy


def _check_zero(zero: Any, path: Path) -> None:
    """What DeepSpeed would refuse with a traceback on every rank, and the calculators would read wrong."""
    if not isinstance(zero, dict):
        raise ConfigError(f'{path}: zero_optimization={zero!r} is not a JSON object; write {{"stage": 1}}')
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage={stage!r}: 0, 1, 2 or 3")
    for part in ("offload_optimizer", "offload_param"):
        device = zero[part].get("device") if isinstance(zero.get(part), dict) else None
        if part in zero and device not in ("none", "cpu", "nvme"):
            raise ConfigError(
                f'{path}: zero_optimization.{part}={zero[part]!r}; write {{"device": "cpu"}}, or leave it out'
            )
    for key, value in zero.items():
        if key.endswith("_size") and not (value == AUTO or (isinstance(value, (int, float)) and value > 0)):
            raise ConfigError(f"{path}: zero_optimization.{key}={value!r}: a number above 0")


def zero_stage(ds_config: dict[str, Any]) -> int:
    """ZeRO stage of a policy or of a resolved config."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def resolve_ds_config(config: RunConfig, plan: RunPlan, *, on_cpu: bool) -> dict[str, Any]:
    """The run's policy, read and filled in. Raises ConfigError as `read_policy` and `fill_policy`."""
    return fill_policy(read_policy(config.train.ds_config), config, plan, on_cpu=on_cpu)


def fill_policy(policy: dict[str, Any], config: RunConfig, plan: RunPlan, *, on_cpu: bool) -> dict[str, Any]:
    """Fill in what the run config owns. Raises ConfigError where the policy contradicts it or cannot train right."""
    ds_config = json.loads(json.dumps(policy))
    bf16 = config.train.precision == "bf16"
    _own(ds_config, "train_batch_size", plan.global_batch)
    _own(ds_config, "train_micro_batch_size_per_gpu", plan.clips_per_micro_step)
    _own(ds_config, "gradient_accumulation_steps", plan.accumulation)
    _own(ds_config, "gradient_clipping", config.optim.clip_grad)
    _own(ds_config.setdefault("bf16", {}), "enabled", bf16, "bf16.")
    if bf16:  # DeepSpeed drops a gradient that is not finite only with this; by itself it says so since 0.19.3
        _own(ds_config["bf16"], "check_grad_overflow", True, "bf16.")
    ds_config.setdefault("steps_per_print", 10**9)  # our own metrics speak
    # by itself it times each micro step, waiting for the device before and after (0.19.8: deepspeed/utils/timer.py:231-258)
    ds_config.setdefault("timers", {"throughput": {"enabled": False}})
    for key in ("optimizer", "scheduler", "fp16", "amp", "train_micro_batch_size"):
        if key in ds_config:
            raise ConfigError(f"ds_config sets {key!r}, which belongs to the run config (--optim.*, --train.precision)")
    stage = zero_stage(ds_config)
    if bf16 and stage == 0:
        raise ConfigError(
            "bf16 with ZeRO stage 0 takes a wrong first step in DeepSpeed (Adam's counter starts at 1: 0.735 of the "
            "update); use --train.ds-config zero1, which costs no more, or --train.precision fp32"
        )
    if config.train.ds_zero_init and stage != 3:
        raise ConfigError(f"--train.ds-zero-init needs ZeRO stage 3, {config.train.ds_config} has stage {stage}")
    zero = ds_config.get("zero_optimization", {})
    if config.frozen_steps and zero.get("offload_optimizer", {}).get("device") == "nvme":
        raise ConfigError(
            f"--optim.freeze-encoder-steps {config.frozen_steps} leaves an encoder's states alone for that long, which is not "
            f"covered where they are on nvme ({config.train.ds_config}); offload to cpu, or leave it at 0"
        )
    if bf16 and ds_config.get("data_types", {}).get("grad_accum_dtype") in ("fp32", "float32"):
        _check_float32_sums(stage, zero)
    for part in ("offload_optimizer", "offload_param"):
        if part in zero:
            if zero[part].get("pin_memory", AUTO) == AUTO:
                zero[part]["pin_memory"] = not on_cpu
            ds_config.setdefault("zero_force_ds_cpu_optimizer", False)  # torch's fused AdamW needs no C++ build
    if config.optim.optimizer == "muon":
        _check_muon(stage, ds_config.get("zero_optimization", {}))
        ds_config.setdefault("zero_allow_untested_optimizer", True)
    _refuse_left_auto(ds_config)
    return ds_config


def _check_float32_sums(stage: int, zero: dict[str, Any]) -> None:
    """bf16 gradients may add up in float32 where DeepSpeed still drops one that is not finite (docs/DEEPSPEED.md)."""
    found = {
        "takes an optimizer at stage 1 that does not check gradients": stage == 1,
        "keeps an infinite gradient in its sums under offload, and applies no step after it": stage == 2
        and "offload_optimizer" in zero,
    }
    for what, is_so in found.items():
        if is_so:
            raise ConfigError(
                f"ds_config sets data_types.grad_accum_dtype to fp32, with which DeepSpeed {what}; "
                "use --train.ds-config zero2 or zero3 with it, or leave it out"
            )


def _check_muon(stage: int, zero: dict[str, Any]) -> None:
    """Raises ConfigError where shards are no plain cut of whole matrices end to end, or lie on the host."""
    parts = ("offload_optimizer", "offload_param")
    found = [part for part in parts if zero.get(part, {}).get("device", "none") != "none"]
    found += [key for key in ("round_robin_gradients", "parameter_alignment") if zero.get(key)]
    if stage == 3 or found:
        why = "ZeRO stage 3" if stage == 3 else f"zero_optimization.{found[0]}"
        raise ConfigError(
            f"--optim.optimizer muon puts whole matrices together on the device, and {why} lays them out in another way; use "
            "--train.ds-config zero1 or zero2, or --optim.optimizer adamw"
        )


def _own(section: dict[str, Any], key: str, value: Any, prefix: str = "") -> None:
    if section.get(key, AUTO) not in (AUTO, value):
        raise ConfigError(f'ds_config sets {prefix}{key}={section[key]} but the run needs {value}; write "auto" there')
    section[key] = value


def _refuse_left_auto(section: dict[str, Any], prefix: str = "") -> None:
    for key, value in section.items():
        if isinstance(value, dict):
            _refuse_left_auto(value, f"{prefix}{key}.")
        elif value == AUTO:
            raise ConfigError(
                f'ds_config: {prefix}{key} is "auto", but the run config does not decide it; write a value'
            )
