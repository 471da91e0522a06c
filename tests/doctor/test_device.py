"""GPUs that are not here: nvidia-smi as a script, torch as an object that says what a test has it say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vmae2_ds.doctor import compilers, deepspeed_ops, driver, torch_stack
from vmae2_ds.doctor.needs import Needs

H200 = "0, NVIDIA H200, 570.86.15, 143771, {used}, 34"


def script(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("text", "light", "part"),
    [
        (f"echo '{H200.format(used=4)}'", "green", "570.86.15; GPU 0 NVIDIA H200, 0.0 of 140.4 GiB used, 34 C"),
        (f"echo '{H200.format(used=90000)}'", "yellow", "something runs on GPU 0"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "red", "version mismatch"),
        ("exec sleep 100", "red", "did not answer"),
    ],
)
def test_the_driver_s_tool_answers_or_does_not(
    text: str, light: str, part: str, needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "nvidia-smi", text, monkeypatch)
    monkeypatch.setattr(driver, "LIMIT_S", 1.0 if "sleep" in text else 30.0)
    (found,) = driver.look_at_driver(needs, tmp_path)
    assert (found.light, part in found.value) == (light, True), found


def test_gpus_are_counted_from_the_kernel_and_what_is_visible(tmp_path: Path) -> None:
    assert driver.count_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 0
    for number in range(8):
        (tmp_path / "gpus" / f"0000:{number}").mkdir(parents=True)
    assert driver.count_gpus({}, tmp_path) == 8
    assert driver.count_gpus({"CUDA_VISIBLE_DEVICES": "2,5"}, tmp_path) == 2
    assert driver.count_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


def gpu(name: str = "NVIDIA H200", chip: tuple[int, int] = (9, 0), free: float = 1.0) -> dict[str, Any]:
    return {"name": name, "capability": list(chip), "free_bytes": int(free * 2**37), "total_bytes": 2**37}


@pytest.mark.parametrize(
    ("gpus", "ranks", "light", "part"),
    [
        ([gpu()], 1, "green", "1 x NVIDIA H200, compute capability 9.0, at least 128.0 GiB of 128.0 GiB free"),
        ([gpu(), gpu(free=0.5)], 2, "yellow", "at least 64.0 GiB of 128.0 GiB free: something else"),
        ([gpu(), gpu("NVIDIA A100-SXM4-80GB", (8, 0))], 2, "yellow", "the slowest sets the pace"),
        ([gpu("Tesla V100-SXM2-32GB", (7, 0))], 1, "yellow", "no bfloat16"),
        ([gpu("NVIDIA X900", (12, 0))], 1, "yellow", "MFU"),
        ([gpu()], 8, "red", "8 ranks are to run here"),
    ],
)
def test_gpus_are_judged(gpus: list[dict[str, Any]], ranks: int, light: str, part: str, needs: Needs) -> None:
    found = torch_stack.judge_gpus(gpus, ["sm_90"], replace(needs, ranks=ranks))
    assert (found.light, part in found.value) == (light, True), found


def fake_torch(*, built_for: str | None, says: str = "") -> Any:
    def init() -> None:
        raise RuntimeError(says)

    cuda = SimpleNamespace(is_available=lambda: False, init=init)
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=built_for, hip=None))


def test_a_gpu_that_torch_does_not_see_is_red_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    old = "The NVIDIA driver on your system is too old (found version 11040)"
    found = torch_stack._no_gpu(fake_torch(built_for="13.0", says=old), True, [])
    assert (found.light, old in found.value) == ("red", True)
    assert torch_stack._no_gpu(fake_torch(built_for=None), True, []).light == "red"
    assert torch_stack._no_gpu(fake_torch(built_for="13.0"), False, []).light == "yellow"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert torch_stack._no_gpu(fake_torch(built_for="13.0", says=old), True, []).remedy == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(("number", "version"), [(91900, "9.19.0"), (8902, "8.9.2"), (92400, "9.24.0"), (None, None)])
def test_cudnn_s_number_is_a_version(number: int | None, version: str | None, needs: Needs) -> None:
    cudnn = SimpleNamespace(is_available=lambda: number is not None, version=lambda: number)
    fake: Any = SimpleNamespace(backends=SimpleNamespace(cudnn=cudnn))
    found = torch_stack._cudnn(fake, needs, torch.device("cuda"))
    assert (found.figures["version"], found.light) == (version, "green" if version else "yellow")


def test_memory_that_is_cut_into_pieces_wants_segments_that_grow(needs: Needs) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    three, recomputes = replace(needs, zero_stage=3), replace(needs, checkpointing="all")
    cases = [(three, cuda, "yellow"), (recomputes, cuda, "yellow"), (three, cpu, "green"), (needs, cuda, "green")]
    for asked, device, light in cases:
        assert torch_stack.judge_allocator(asked, device, {}).light == light
    for name in torch_stack.ALLOCATOR:
        said = {name: "max_split_size_mb:512,expandable_segments:True"}
        assert torch_stack.judge_allocator(three, cuda, said).light == "green"


def test_a_kernel_that_the_recipe_names_is_missed(needs: Needs) -> None:
    assert torch_stack.kernel_missing("flash", "flash_attn is not installed", needs).light == "green"
    named = torch_stack.kernel_missing("flash", "flash_attn is not installed", replace(needs, attention="flash"))
    assert (named.light, named.remedy) == ("red", "--model.attention auto")


def test_sdpa_is_asked_under_the_flags_of_the_run(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    def says_the_flag(*about: object) -> str:
        return f"deterministic: {torch.are_deterministic_algorithms_enabled()}"

    monkeypatch.setattr("vmae2_ds.model.kernel_support.sdpa_kernel", says_the_flag)
    for flag in (True, False):
        (found,) = (one for one in torch_stack.look_at_torch(replace(needs, deterministic=flag)) if one.name == "sdpa")
        assert set(found.figures["kernels"].values()) == {f"deterministic: {flag}"}


def test_a_library_of_another_version_costs_its_line_alone(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("cuDNN version incompatibility: PyTorch was compiled against (9, 1, 0)")

    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    found = {one.name: one for one in torch_stack.look_at_torch(needs)}
    assert (found["cudnn"].light, "incompatibility" in found["cudnn"].value) == ("yellow", True)
    assert found["sdpa"].light == "green"


# --- compilers and ops ---


def test_without_a_compiler_inductor_is_red(needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"PATH": str(tmp_path)}
    assert compilers.look_at_compiler(needs, nothing)[0].light == "yellow"
    (found,) = compilers.look_at_compiler(replace(needs, compile="inductor"), nothing)
    assert (found.light, found.remedy) == ("red", "apt-get install g++ python3-dev")
    script(tmp_path, "c++", "exit 1", monkeypatch)
    assert "does not run" in compilers.look_at_compiler(needs, nothing)[0].value


@pytest.mark.parametrize(("release", "light"), [("{cuda}", "green"), ("9.1", "yellow"), (None, "green")])
def test_nvcc_has_to_be_of_torch_s_cuda(
    release: str | None, light: str, needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "torch_cuda", lambda: "13.0")
    (tmp_path / "bin").mkdir()
    if release is not None:
        said = f"Cuda compilation tools, release {release.format(cuda='13.2')}, V1"
        script(tmp_path / "bin", "nvcc", f"echo '{said}'", monkeypatch)
    env = {"CUDA_HOME": str(tmp_path), "PATH": ""}
    (found,) = compilers.look_at_nvcc(needs, env)
    assert found.light == light, found


def test_torch_s_cuda_is_read_without_torch() -> None:
    assert compilers.torch_cuda() == torch.version.cuda


def test_an_op_that_the_policy_needs_and_nothing_can_build_is_red(
    needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed_ops, "_is_compatible", lambda builder: False)
    _, found = deepspeed_ops.look_at_deepspeed(replace(needs, ops=("quantizer",)))
    assert found.light == "red"
    assert "zero3" in str(found.remedy)
    assert [found.light for found in deepspeed_ops.look_at_deepspeed(needs)] == ["green", "green"]
