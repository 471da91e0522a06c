"""A checkout that is only on PYTHONPATH, as on a machine to which a tree was copied, has all that an installed one has."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import vmae2_ds
from benchmarks.record import current, read_rows
from tests.bare import BareMachine, make_bare_machine
from tests.benchmarks.test_run import wait_for
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


@pytest.mark.slow
def test_a_visit_keeps_its_minutes_without_decord_transformers_or_a_compiler_and_goes_on_after_a_kill(
    tmp_path: Path,
) -> None:
    minutes, out = 0.8, tmp_path / "out"
    machine = make_bare_machine(tmp_path / "machine", hidden=("decord", "transformers", "flash_attn"))
    machine.environment["PATH"] = str(machine.python.parent)
    words = (
        "-m",
        "benchmarks",
        "visit",
        "--minutes",
        str(minutes),
        "--device",
        "cpu",
        "--sizes",
        "tiny",
        "--rounds",
        "1",
    )
    words = (*words, "--out", str(out))
    killed = machine.start(*words)
    wait_for(lambda: (out / "ceilings.jsonl").exists())
    killed.kill()
    killed.wait()
    ceilings = (out / "ceilings.jsonl").read_text()

    start = time.monotonic()
    told = machine.run(*words)
    assert time.monotonic() - start <= 60 * minutes
    assert told.returncode == 0, told.stderr
    assert (out / "ceilings.jsonl").read_text().startswith(ceilings)
    became = {(row["group"], row["variant"]): row["state"] for row in current(read_rows(out)) if row["case"] == "visit"}
    assert {what for part, what in became if part == "missing"} >= {"decord", "transformers", "C++ compiler"}
    assert became["ceilings", "products bf16"] == "measured before"
    assert ("attention tiny", "tiny bf16 decoder dual, 944 tokens") in became, "measured or named"
    assert became["doctor", "vmae2 doctor --json"] == "measured"
    assert "transformers" in (out / "report.md").read_text()


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
