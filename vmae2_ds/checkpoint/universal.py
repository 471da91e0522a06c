"""A checkpoint as whole tensors by parameter name, in DeepSpeed's universal layout: any ranks at any stage can start from it.

    ckpt/universal/stepN/   zero/NAME/{fp32,exp_avg,exp_avg_sq,step,ema}.pt zero/optimizer_state.pt *_model_states.pt whole.json

The tensors are those of DeepSpeed's own ds_to_universal (a test compares them), but nothing pickled is run, all ranks share
the work, the folder appears whole or not at all, and the running mean of the weights comes along.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.safe_load import read_state
from vmae2_ds.checkpoint.zero_shards import MASTER, ZeroShards
from vmae2_ds.dist import Ranks

FOLDER = "universal"
"""Name of the folder for the universal form, next to a run's checkpoints."""


def convert(source: Path, target: Path, world_size: int, stage: int, ranks: Ranks) -> HashedFiles:
    """Write the universal form of `source` into the folder `target`, each rank its share of the parameters.

    Returns this rank's files, whose `error` holds what the disk refused. Raises CheckpointError, perhaps on some ranks alone,
    where the source is not as DeepSpeed writes it.
    """
    states = ZeroShards(source, world_size, stage)
    groups = states.hyperparameters()  # on every rank: none is left waiting where there are none
    files = HashedFiles(target)
    names = [*states.shapes, *states.frozen_shapes]
    for name in names[ranks.rank :: ranks.size]:
        tensors = states.tensors(name) if name in states.shapes else {MASTER: states.whole(name)}
        for state, tensor in tensors.items():
            # cat_dim: as ds_to_universal writes it for stages 1 and 2, which DeepSpeed's loaders of every stage understand
            files.save(
                tensor if state == "step" else {"param": tensor, "cat_dim": 0}, target / "zero" / name / f"{state}.pt"
            )
    if ranks.rank == 0:
        step = next((states.step(name) for name in states.shapes), None)
        files.save(
            {
                "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": groups},
                "param_groups": groups,
                "ds_version": states.model["ds_version"],
            },
            target / "zero" / "optimizer_state.pt",
        )
        # what is not a tensor of the model, under the name that stages below 3 look for and the one of stage 3
        model = {**states.model, "module": {}, "optimizer": None, "frozen_param_fragments": None}
        for prefix in ("", "zero_pp_rank_0_"):
            files.save(model, target / f"{prefix}mp_rank_00_model_states.pt")
    return files


class WholeStates:
    """Reads a universal checkpoint; tensors stay on disk until they are touched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def client_state(self) -> dict[str, Any]:
        """What was saved beside the model: counters, and the caller's own state."""
        return read_state(self._folder / "mp_rank_00_model_states.pt")

    def read(self, name: str, state: str) -> torch.Tensor | None:
        """The flattened tensor of one state of a parameter; None where it was not saved."""
        path = self._folder / "zero" / name / f"{state}.pt"
        if not path.is_file():
            return None
        found = read_state(path, mmap=True)
        return found if state == "step" else found["param"].flatten()


def remove(folder: Path) -> None:
    """Remove a universal checkpoint, or what is left of one, so that it does not count from the first moment on."""
    if folder.exists():
        for manifest in folder.glob("*.json"):
            manifest.unlink()
        shutil.rmtree(folder)
