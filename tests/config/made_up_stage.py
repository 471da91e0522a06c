"""A stage that the package does not have, in one file and one entry.

`python -m tests.config.made_up_stage WORDS` is `vmae2 WORDS` with it in the table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import tyro

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig, PretrainDataConfig
from vmae2_ds.config.run import OptimConfig, RunConfig, TrainConfig
from vmae2_ds.config.stages import STAGES, StageEntry
from vmae2_ds.config.strict import StrictModel
from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    from vmae2_ds.train.stage import Training


class WeighSettings(StrictModel):
    """What this stage has of its own."""

    weight: float = 1000.0
    """The loss is multiplied by it."""


class WeighConfig(RunConfig):
    """Everything that decides such a run."""

    stage: tyro.conf.Suppress[Literal["weigh"]] = "weigh"
    model: ModelConfig
    mask: MaskConfig = MaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: PretrainDataConfig = PretrainDataConfig()
    weigh: WeighSettings = WeighSettings()


def vit_ti_weigh_desk() -> WeighConfig:
    """A run of a second or two."""
    return WeighConfig(
        recipe="vit_ti_weigh_desk",
        model=ModelConfig.of_size("tiny", patch=8, attention="math").model_copy(update={"drop_path": 0.0}),
        data=PretrainDataConfig(num_frames=4, size=32, views=1, workers=0, min_frames=4, sampling="spread"),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(
            global_batch=2,
            micro_batch=2,
            max_steps=1,
            ds_config="cpu",
            precision="fp32",
            log_every=1,
            tensorboard=False,
        ),
    )


RECIPES = {"vit_ti_weigh_desk": vit_ti_weigh_desk}


def check(config: WeighConfig) -> None:
    """As a stage refuses what cannot be."""
    if not config.weigh.weight:
        raise ConfigError("--weigh.weight 0 learns nothing")


def __getattr__(name: str) -> Training[Any]:
    """TRAINING, which needs torch, made when it is asked for: a stage of the package has a module of its own for it."""
    if name != "TRAINING":
        raise AttributeError(name)
    from vmae2_ds.contracts import LossOutput
    from vmae2_ds.data.feed.pretrain import PretrainDataset
    from vmae2_ds.model.mae import MaskedAutoencoder
    from vmae2_ds.objectives import Reconstruct
    from vmae2_ds.train.optim import parameter_groups
    from vmae2_ds.train.stage import LossWords, Stage, Training

    class Weigh(Reconstruct):
        weight: float

        def forward(self, batch: Any) -> LossOutput:
            out = super().forward(batch)
            return out._replace(loss=self.weight * out.loss)

    def objective(config: WeighConfig) -> Weigh:
        made = Weigh(MaskedAutoencoder(config.model, config.geometry, seed=None), config.objective, config.geometry)
        made.weight = config.weigh.weight
        return made

    def stage(config: WeighConfig) -> Stage:
        return Stage(
            dataset=lambda mixture: PretrainDataset(config, mixture),
            attention_shapes=lambda plan: ((1, 1, 1, 64), (1, 1, 1, 32)),
            forward_macs=1,
            about_clip="made up",
            has_draws=False,
        )

    return Training(
        stage,
        objective,
        lambda made, config: parameter_groups(made, config.optim.weight_decay),
        lambda config: LossWords("weighed squares", "flat cubes", "a stone"),
    )


ENTRY = StageEntry(
    "tests.config.made_up_stage:WeighConfig",
    "weighing",
    "Weigh videos.",
    ("RECIPE",),
    recipes="tests.config.made_up_stage:RECIPES",
    training="tests.config.made_up_stage:TRAINING",
    check="tests.config.made_up_stage:check",
)


if __name__ == "__main__":
    STAGES["weigh"] = ENTRY
    from vmae2_ds.cli.main import main

    main(sys.argv[1:])
