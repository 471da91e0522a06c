"""A run's start imports no package that the run has no use for; each would cost every rank a second and more."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from vmae2_ds.engine.lean_import import _compiled_when_called
from vmae2_ds.hidden_packages import hidden

ROOT = Path(__file__).parents[2]
START = """
import json, sys, tempfile, torch
import vmae2_ds.train.pretrain, vmae2_ds.train.session
from vmae2_ds.engine.ranks import start_ranks
from vmae2_ds.engine.step import Engine

start_ranks()
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "steps_per_print": 10**9}
Engine(lambda: torch.nn.Linear(8, 8), lambda module: torch.optim.AdamW(module.parameters()), config)
print(json.dumps(sorted({"mlflow", "timm", "torch._inductor.compile_fx", "deepspeed.runtime.zero.stage3"} & set(sys.modules))))
from vmae2_ds.data.clips.augment import check_policy

check_policy("rand-m7-n4", 32)
import vmae2_ds.model.stochastic_depth

print(json.dumps(sorted({"timm", "timm.utils.summary", "wandb"} & set(sys.modules))))
"""


def test_a_start_of_zero_3_imports_no_mlflow_no_timm_and_no_back_end_of_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    started, with_timm = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert started == ["deepspeed.runtime.zero.stage3"]
    assert with_timm == ["timm", "timm.utils.summary"], "timm imports wandb where it is installed"


def test_a_hidden_package_is_not_found_for_that_long_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a_tracker.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with hidden("a_tracker"), pytest.raises(ImportError):
        importlib.import_module("a_tracker")
    there = importlib.import_module("a_tracker")
    with hidden("a_tracker"):
        assert importlib.import_module("a_tracker") is there, "what is imported already stays"
    assert sys.modules.pop("a_tracker") is there


def test_a_function_is_compiled_once_and_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile_one(function: types.FunctionType) -> types.FunctionType:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_one)
    compiler = types.SimpleNamespace(compile=lambda dynamic=False: torch.compile)
    with _compiled_when_called(compiler):

        @compiler.compile(dynamic=True)
        def twice(x: int) -> int:
            return 2 * x

    assert compiled == []
    assert [twice(2), twice(3)] == [4, 6]
    assert compiled == ["twice"]
    assert compiler.compile() is compile_one, "what is decorated later is compiled as before"
