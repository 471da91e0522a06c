"""The doctor on a CUDA device: what it says of GPUs, cuDNN and kernels is what torch and nvidia-smi say."""

from __future__ import annotations

import shutil

import pytest
import torch

from vmae2_ds.doctor.driver import look_at_driver
from vmae2_ds.doctor.recipe_needs import needs_of
from vmae2_ds.doctor.torch_stack import look_at_torch
from vmae2_ds.recipes.pretrain import RECIPES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("recipe", ["vit_b_pretrain_hybrid", "vit_g_pretrain_hybrid"])
def test_what_it_says_is_what_torch_has(recipe: str) -> None:
    needs = needs_of(RECIPES[recipe](), ranks=1)
    found = {finding.name: finding for finding in look_at_torch(needs)}
    assert {name for name, finding in found.items() if finding.light == "red"} == set()
    gpus = found["device"].figures["gpus"]
    assert [gpu["name"] for gpu in gpus] == [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    major, minor, patch = map(int, found["cudnn"].figures["version"].split("."))
    assert major * 10_000 + minor * 100 + patch == torch.backends.cudnn.version()
    assert set(found["sdpa"].figures["kernels"].values()) <= {"cudnn", "torch_flash", "efficient"}


def test_the_driver_s_tool_and_torch_see_the_same_gpus() -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("nvidia-smi is not here")
    (found,) = look_at_driver(needs_of(RECIPES["vit_b_pretrain_hybrid"](), ranks=1))
    assert torch.cuda.get_device_name(0) in {row["name"] for row in found.figures["gpus"]}
