"""A checkout that is only on PYTHONPATH, as on a machine to which a tree was copied, has all that an installed one has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vmae2_ds
from tests.bare import BareMachine, make_bare_machine
from vmae2_ds.config.ds_config import policy_names
from vmae2_ds.data.sources.mixture import ready_mixtures

LOOK = """
import vmae2_ds, json
from vmae2_ds.config.ds_config import policy_names, read_policy
from vmae2_ds.data.sources.mixture import ready_mixtures
from vmae2_ds.provenance import commit, installed_versions
policies = policy_names()
stage = read_policy("zero3")["zero_optimization"]["stage"]
print(json.dumps([vmae2_ds.__file__, policies, stage, sorted(ready_mixtures()), installed_versions(["vmae2_ds"]), commit()]))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    return make_bare_machine(tmp_path_factory.mktemp("bare"))


def test_policies_mixtures_version_and_commit_are_found(bare: BareMachine) -> None:
    bare.environment["VMAE2_COMMIT"] = "0a1b2c3"
    told = bare.run("-c", LOOK)
    assert told.returncode == 0, told.stderr
    place, policies, stage, mixtures, versions, commit = json.loads(told.stdout)
    assert Path(place) == bare.tree / "vmae2_ds" / "__init__.py"
    assert policies == policy_names()
    assert stage == 3
    assert mixtures == sorted(ready_mixtures())
    assert versions == {"vmae2_ds": vmae2_ds.__version__}
    assert commit == "0a1b2c3"


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "vmae2_ds", "plan", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100"),
        ("-m", "vmae2_ds", "--help"),
        ("-m", "benchmarks", "list"),
    ],
)
def test_commands_start(bare: BareMachine, words: tuple[str, ...]) -> None:
    told = bare.run(*words)
    assert told.returncode == 0, told.stderr
