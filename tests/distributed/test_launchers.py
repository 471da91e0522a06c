"""The same line under `deepspeed`, `torchrun` and plain python: it trains, and what is wrong keeps its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.ranks import REPOSITORY, tiny_pretraining
from tests.distributed.zygote import Zygote
from vmae2_ds.errors import EXIT_HUNG
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def launchers() -> dict[str, list[str]]:
    port = str(free_port())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    deepspeed = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", port, "--module", "vmae2_ds"]
    return {
        "deepspeed": deepspeed,
        "torchrun": [*torchrun, "-m", "vmae2_ds"],
        "plain": [sys.executable, "-m", "vmae2_ds"],
    }


def environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    env |= {"CXX": "/nonexistent", "TORCH_EXTENSIONS_DIR": "/nonexistent"}  # nothing may need a compiler
    env.pop("CUDA_VISIBLE_DEVICES", None)  # the deepspeed launcher would read it as a list of hosts' devices
    return env


def launch(name: str, arguments: list[str], module: str = "vmae2_ds") -> subprocess.CompletedProcess[str]:
    command = [*launchers()[name][:-1], module, *arguments]
    return subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> dict[str, list[float]]:
    """Plain python's process is a fork, whose report is not drawn: its own imports are those of a user's error below."""
    losses = {}
    for name in launchers():
        run = tmp_path_factory.mktemp("launched") / name
        words = [*tiny_pretraining(manifest, run, 3), "--model.drop-path", "0"]
        if name == "plain":
            log = run.with_suffix(".log")
            assert zygote.start(words, environment(), log).wait() == 0, log.read_text()[-3000:]
        else:
            done = launch(name, words)
            assert done.returncode == 0, done.stderr[-3000:]
            assert (run / "report.html").is_file()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert json.loads((run / "env.json").read_text())["ranks"] == (1 if name == "plain" else 2)
        assert (run / "finished.json").is_file()
        losses[name] = [row["loss"] for row in rows]
    return losses


def test_two_ranks_compute_the_same_bits_under_either_launcher(finished: dict[str, list[float]]) -> None:
    assert finished["deepspeed"] == finished["torchrun"]


def test_one_rank_sees_the_same_global_batches(finished: dict[str, list[float]]) -> None:
    """Masks and clips are the same for any split; bf16 sums them in another order."""
    assert finished["plain"] == pytest.approx(finished["deepspeed"], abs=1e-3)


@pytest.mark.parametrize("name", ["deepspeed", "plain"])
def test_a_user_s_error_is_one_line_with_its_exit_code(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nnowhere.mp4\n")
    failed = launch(name, tiny_pretraining(tmp_path / "list.csv", tmp_path / "run", 3))
    assert failed.returncode == 2
    told = [line for line in failed.stderr.splitlines() if line.startswith("vmae2: ")]
    assert len(told) == 1
    assert "nowhere.mp4" in told[0]
    assert "Traceback" not in failed.stderr


def test_the_code_of_a_hang_comes_out_of_the_launcher(tmp_path: Path) -> None:
    """A rank is stuck with the interpreter's lock held, the other one waits: both say so and end by themselves."""
    hung = launch("deepspeed", [str(tmp_path)], "tests.distributed.hung")
    assert hung.returncode == EXIT_HUNG, hung.stderr[-3000:]
    assert hung.stderr.count("no step was finished within 3 s after step 1; what every rank was doing is in") == 2
