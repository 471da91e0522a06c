"""The running mean of the weights (EMA), kept as float32 shards beside the optimizer's at every ZeRO stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.safe_load import read_state
from vmae2_ds.checkpoint.universal import WholeStates
from vmae2_ds.checkpoint.zero_shards import MEAN, mean_file
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.step import Engine
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.weights.layouts import StateDict

WEIGHTS = "ema.safetensors"
"""The mean at the end of a run, in its folder, under published names."""


class WeightAverage:
    """mean = decay x mean + (1 - decay) x weights after every update that was applied; it starts at the first weights."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self.decay, self._engine = decay, engine
        self._mean = [shard.detach().clone() for shard in engine.shards.masters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        torch._foreach_lerp_(self._mean, [shard.detach() for shard in self._engine.shards.masters], 1 - self.decay)

    def save(self, files: HashedFiles, ranks: Ranks) -> None:
        """Add this rank's shards to a checkpoint."""
        files.save(self._mean, files.folder / mean_file(ranks.rank))

    def load(self, target: Path, ranks: Ranks) -> None:
        """Take this rank's shards from a checkpoint. Raises CheckpointError where they are not there or of another split."""
        if (target / "zero").is_dir():
            return self._load_universal(WholeStates(target))
        path = target / mean_file(ranks.rank)
        if not path.is_file():
            raise CheckpointError(f"{target} holds no running mean of the weights; go on without --optim.ema-decay")
        saved = read_state(path)
        if [shard.shape for shard in saved] != [shard.shape for shard in self._mean]:
            raise CheckpointError(f"{path} is of another number of ranks or another ZeRO stage")
        for shard, kept in zip(self._mean, saved, strict=True):
            shard.copy_(kept)

    def _load_universal(self, states: WholeStates) -> None:
        for piece in self._engine.shards.pieces():
            saved = states.read(piece.name, MEAN)
            if saved is None:
                raise CheckpointError(
                    f"{states} holds no running mean of {piece.name}; go on without --optim.ema-decay"
                )
            mine = self._mean[piece.shard].view(-1)[piece.offset : piece.offset + piece.numel]
            mine.copy_(saved[piece.start : piece.start + piece.numel])

    def weights(self) -> StateDict | None:
        """The model's whole mean on the host of rank 0, under our names; None elsewhere. All ranks call it together."""
        found: StateDict = {}
        with self._in_place():
            for name, tensor in self._engine.shards.whole_weights():
                if torch.distributed.get_rank() == 0 and name.startswith("model."):
                    found[name.removeprefix("model.")] = tensor.cpu().clone()
        return found if torch.distributed.get_rank() == 0 else None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The model computes with the mean, and after that with the weights as they were, bit for bit. All ranks together."""
        with self._in_place():
            self._engine.shards.refresh_working_weights()
            yield
        self._engine.shards.refresh_working_weights()

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """The mean where the master weights are, shard by shard, and back."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for shard, mean in zip(self._engine.shards.masters, self._mean, strict=True):
            kept = shard.detach().clone()
            shard.copy_(mean)
            mean.copy_(kept)


def check_ema(ds_config: dict[str, Any]) -> None:
    """Raises ConfigError where the master weights are on disk, out of the mean's reach."""
    offload = ds_config.get("zero_optimization", {}).get("offload_optimizer", {})
    if offload.get("device") == "nvme":
        raise ConfigError(
            "--optim.ema-decay needs the master weights in memory, and the ds_config offloads the optimizer to nvme; "
            "offload to cpu, or leave ema_decay out"
        )
