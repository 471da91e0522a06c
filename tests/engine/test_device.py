"""What is asked of a GPU, on made-up ones: TF32, growing segments, and NCCL on its own device."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch

from vmae2_ds.config.run import TrainConfig
from vmae2_ds.cost.compute_time import rates_of
from vmae2_ds.cost.hardware import find_accelerator
from vmae2_ds.dist import Ranks
from vmae2_ds.engine import ranks as engine_ranks
from vmae2_ds.engine.device import allocator_advice, allow_tf32
from vmae2_ds.engine.device_peak import device_peak
from vmae2_ds.engine.ranks import Meeting, start_ranks
from vmae2_ds.errors import ConfigError

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    yield monkeypatch
    torch.set_float32_matmul_precision(before)


def test_tf32_is_allowed_by_name_and_counts_for_the_peak(a100: pytest.MonkeyPatch) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32, "torch's default"
    plain = device_peak(CUDA, "fp32")
    allow_tf32(CUDA)
    peak = device_peak(CUDA, "fp32")
    assert torch.backends.cuda.matmul.allow_tf32
    assert plain is not None
    assert peak is not None
    assert (plain.flops, peak.flops) == (19.5e12, 156e12)  # A100's datasheet


def test_tf32_is_refused_where_there_is_none(a100: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="this run is on the CPU"):
        allow_tf32(CPU)
    a100.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ConfigError, match="has no TF32 units"):
        allow_tf32(CUDA)
    with pytest.raises(ValueError, match="tf32 is for float32"):
        TrainConfig(tf32=True)


def test_a_plan_with_tf32_counts_its_rate() -> None:
    gpu = find_accelerator("NVIDIA A100-SXM4-80GB")
    assert gpu is not None
    efficiency = {"matmul_efficiency": 0.5, "memory_efficiency": 1.0}
    assert rates_of(gpu, "fp32", **efficiency).linear_flops == 0.5 * 19.5e12
    assert rates_of(gpu, "fp32", tf32=True, **efficiency).linear_flops == 0.5 * 156e12
    assert TrainConfig(precision="fp32", tf32=True).product_format == "tf32"


@pytest.mark.parametrize(
    ("device", "stage", "checkpointing", "env", "advised"),
    [
        (CUDA, 3, "none", {}, "ZeRO stage 3 cut"),
        (CUDA, 1, "all", {}, "--model.checkpointing all cut"),
        (CUDA, 3, "every_k", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}, "ZeRO stage 3 and --model.checkpointing"),
        (CUDA, 1, "none", {}, None),
        (CPU, 3, "all", {}, None),
        (CUDA, 3, "all", {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, None),
        (CUDA, 3, "all", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, None),  # as the user has it
    ],
)
def test_growing_segments_are_advised_where_memory_is_cut(
    device: torch.device, stage: int, checkpointing: str, env: dict[str, str], advised: str | None
) -> None:
    said = allocator_advice(device, stage=stage, checkpointing=checkpointing, env=env)
    assert said is None if advised is None else (said or "").startswith(advised)


@pytest.mark.parametrize("device", [CUDA, CPU])
def test_nccl_is_told_its_device_and_gloo_none(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def joined(backend: str, **options: Any) -> None:
        raise Asked(backend, options)

    monkeypatch.setattr(engine_ranks, "default_device", lambda: device)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined)
    with pytest.raises(Asked) as asked:
        start_ranks(Meeting(Ranks(), None, 60.0))
    backend, options = asked.value.args
    assert options["timeout"] == timedelta(seconds=60)
    assert (backend, options.get("device_id")) == (("nccl", CUDA) if device is CUDA else ("gloo", None))
