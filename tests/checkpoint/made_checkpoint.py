"""A run folder with one checkpoint as DeepSpeed 0.19 writes it, made by hand: no engine, and any number of ranks."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.checkpoint.whole import WHOLE, tag_of
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.weights.layouts import StateDict, our_shapes


def counted(config: ModelConfig) -> StateDict:
    """Weights that tell where they belong: the parameter's number, and the place in it."""
    return {
        name: (torch.arange(math.prod(shape), dtype=torch.float32) % 997 + 1000 * number).view(shape)
        for number, (name, shape) in enumerate(our_shapes(config).items())
    }


def made_checkpoint(
    run: Path, config: PretrainConfig, weights: StateDict, stage: int, ranks: int, gap: int = 0
) -> Path:
    """Two groups of parameters, vectors behind the rest, cut as stage 1 and 2 or as stage 3 cuts them.

    `gap`: values between two parameters, which stages 1 and 2 leave where parameters are aligned.
    """
    target = run / "ckpt" / tag_of(1)
    target.mkdir(parents=True)
    (run / "run.json").write_text(config.model_dump_json())
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    groups = [{k: v for k, v in named.items() if (v.ndim > 1) == is_matrix} for is_matrix in (True, False)]
    flats = _cut_parameters(groups, ranks) if stage == 3 else _cut_groups(groups, ranks, gap)
    model = {
        "module": OrderedDict(),
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups],
        **{"frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {}},
    }
    for rank, flat in enumerate(flats):
        shard: dict[str, Any] = {"zero_stage": stage, "partition_count": ranks}
        shard["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"] = flat
        if gap:
            shard["param_alignment_paddings"] = [[gap] * len(group) for group in groups]
        torch.save({"optimizer_state_dict": shard}, target / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3 or rank == 0:
            torch.save(model, target / f"{f'zero_pp_rank_{rank}_' if stage == 3 else ''}mp_rank_00_model_states.pt")
    list_files(target, stage, ranks)
    return target


def list_files(target: Path, stage: int, ranks: int) -> None:
    """Declare what lies in the folder whole."""
    sizes = {path.name: path.stat().st_size for path in target.iterdir() if path.name != WHOLE}
    (target / WHOLE).write_text(json.dumps({"step": 1, "world_size": ranks, "stage": stage, "files": sizes}))


def _cut_groups(groups: list[StateDict], ranks: int, gap: int) -> list[list[torch.Tensor]]:
    """A group as one vector, padded to a multiple of 2 x ranks, in as many parts as there are ranks."""
    apart = [[torch.nn.functional.pad(tensor.flatten(), (0, gap)) for tensor in group.values()] for group in groups]
    whole = [torch.cat(flat) for flat in apart]
    padded = [torch.nn.functional.pad(flat, (0, -len(flat) % (2 * ranks))) for flat in whole]
    return [[flat.chunk(ranks)[rank].clone() for flat in padded] for rank in range(ranks)]


def _cut_parameters(groups: list[StateDict], ranks: int) -> list[list[torch.Tensor]]:
    """Every parameter padded to a multiple of the ranks; a rank's parts of a group as one vector."""
    parts = [
        [torch.nn.functional.pad(x.flatten(), (0, -x.numel() % ranks)).chunk(ranks) for x in group.values()]
        for group in groups
    ]
    return [[torch.cat([part[rank] for part in group]) for group in parts] for rank in range(ranks)]
