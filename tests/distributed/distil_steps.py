"""Six distillation steps on made-up clips, with a teacher of another shape, under an engine and in plain PyTorch.

As a module it is one rank that runs a list of ZeRO policies, one after another, in one process.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch

from tests.distributed import finetune_steps
from tests.distributed.ranks import answer
from vmae2_ds.config.distil import DistilConfig, DistilSettings
from vmae2_ds.config.finetune import FinetuneConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import LabelledBatch
from vmae2_ds.dist import Ranks
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.objectives import Classify, Distil
from vmae2_ds.train.distil.stage import distil_objective
from vmae2_ds.train.distil.teacher import Teacher, TeacherCard, digest_of

TEACHER_WIDTH = 64


def make_config(policy: str = "zero1") -> DistilConfig:
    """The student of finetune_steps, with all that it has on, learning from labels, answers and features.

    `policy` is a ZeRO policy, and words after it: `init` builds the student partitioned, `sharded` its teacher.
    """
    ds_config, *words = policy.split()
    supervised = finetune_steps.make_config(ds_config).changed(train={"ds_zero_init": "init" in words})
    student = supervised.model_dump(exclude={"stage"})
    settings = DistilSettings(
        alpha=0.6, temperature=2.0, feature_weight=0.3, teacher_precision="fp32", teacher_sharded="sharded" in words
    )
    return DistilConfig.model_validate({**student, "distil": settings})


def make_teacher(ranks: Ranks, *, sharded: bool = False) -> Teacher:
    """Wider, with smaller cubes, on half the frames of a smaller picture; rank 0 alone has its weights."""
    tower = TowerConfig(width=TEACHER_WIDTH, depth=2, heads=4, mlp=128)
    config = FinetuneConfig(
        model=ClassifierConfig(encoder=tower, patch=6, num_classes=finetune_steps.NUM_CLASSES, head_init_scale=20.0),
        data=LabelledDataConfig(num_frames=2, size=12),
        train=FinetuneTrainConfig(precision="fp32"),
    )
    weights = Classifier(config.model, config.geometry, seed=7).state_dict()
    card = TeacherCard(Path("made up"), config, 0, digest_of(weights))
    return Teacher(card, weights if ranks.rank == 0 else None, ranks, features=True, sharded=sharded)


def make_objective(config: Any) -> Distil:
    """As a distillation run makes it."""
    objective = distil_objective(config, TEACHER_WIDTH)
    assert isinstance(objective, Distil)
    return objective


def plain_steps(config: DistilConfig) -> Any:
    """The reference on one process."""
    objective: Classify = make_objective(config)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            objective.model.init_parameter(name.removeprefix("model."), parameter, config.train.seed)
    return finetune_steps.plain_steps(config, objective, make_teacher(Ranks()))


class Watched:
    """A teacher that counts what it is asked."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.asked = teacher, 0

    def __call__(self, batch: LabelledBatch) -> Any:
        self.asked += 1
        return self.teacher(batch)

    def digest(self) -> str:
        """Of its weights as they are now; all ranks ask together."""
        import deepspeed

        model = self.teacher.objective.model
        with deepspeed.zero.GatheredParameters([p for p in model.parameters() if hasattr(p, "ds_id")]):
            return digest_of(model.state_dict())

    def held(self) -> float:
        """Part of the teacher's weights that this rank holds between steps."""
        here = whole = 0
        for parameter in self.teacher.objective.parameters():
            here += (
                parameter.ds_tensor.numel() + parameter.numel() if hasattr(parameter, "ds_id") else parameter.numel()
            )
            whole += getattr(parameter, "ds_numel", parameter.numel())
        return here / whole


def run_policies(policies: list[str], ranks: Ranks) -> dict[str, Any]:
    """Losses, and what became of the teacher, by policy; rank 0 writes weights to POLICY.pt beside them."""
    results: dict[str, Any] = {}
    for policy in policies:
        config = make_config(policy)
        teacher = Watched(make_teacher(ranks, sharded=config.distil.teacher_sharded))
        losses, last, mean = finetune_steps.engine_steps(config, ranks.rank, make_objective, teacher)
        same = torch.tensor(float(teacher.digest() == teacher.teacher.card.digest))
        torch.distributed.all_reduce(same, torch.distributed.ReduceOp.MIN)
        results[policy] = {
            "losses": losses, "teacher_unchanged": bool(same), "asked": teacher.asked, "held": teacher.held(),
        }  # fmt: skip
        if teacher.teacher.shards is not None:
            teacher.teacher.shards.close()
        del teacher
        gc.collect()  # on all ranks at the same point
        if ranks.rank == 0:
            torch.save({"last": last, "mean": mean}, Path(sys.argv[2]).with_name(f"{policy}.pt"))
    return results


if __name__ == "__main__":
    answer(run_policies)
