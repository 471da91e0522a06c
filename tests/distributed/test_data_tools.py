"""Data tools under the launchers that runs are started by: real ones, whose ranks know each other by the folder alone."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.data.tools.test_parts import content
from tests.distributed.zygote import Zygote
from vmae2_ds.data.tools.check import CheckArguments, check_manifest
from vmae2_ds.dist import LAUNCHERS, LOCAL_SIZES, NODES
from vmae2_ds.host import free_port

pytestmark = pytest.mark.slow
RANKS = 2


def launcher(name: str) -> tuple[str, list[str]]:
    """(module, words): what `torchrun` and, on each host, `deepspeed` start; deepspeed's own module only finds the hosts."""
    port = str(free_port())
    if name == "torchrun":
        return "torch.distributed.run", ["--nproc_per_node", str(RANKS), "--master_port", port, "-m"]
    hosts = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(RANKS))}).encode()).decode()
    words = [f"--world_info={hosts}", "--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={port}", "--module"]
    return "deepspeed.launcher.launch", words


@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_ranks_of_a_launcher_share_the_work(name: str, manifest: Path, tmp_path: Path, zygote: Zygote) -> None:
    """Eight files looked at: what one process writes, said once, and each rank had some."""
    asked = CheckArguments(manifest=manifest, out=tmp_path / "one", decode="none", pictures=0)
    check_manifest(asked)
    out, log = tmp_path / "out", tmp_path / "log"
    module, words = launcher(name)
    known = {name for names in LAUNCHERS.values() for name in names} | {*LOCAL_SIZES.values(), *NODES}
    env = {name: value for name, value in os.environ.items() if name not in known} | {"OMP_NUM_THREADS": "1"}
    tool = ["data", "check", str(manifest), "--out", str(out), "--decode", "none", "--pictures", "0"]
    assert zygote.start([*words, "vmae2_ds", *tool], env, log, module).wait() == 0, log.read_text()
    said = log.read_text()
    assert said.count("8 rows, 8 files: 8 rows good, 0 bad") == 1, said
    assert ", 4 of 8 files for rank 0" in said
    assert content(out) == content(asked.out)
