"""An encoder that is frozen for a pre-training's first steps, while a decoder that was drawn anew learns to read it."""

from __future__ import annotations

import re
from typing import Any

from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.engine.held import HELD
from vmae2_ds.engine.step import Engine
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.train.optim import learning_rate


def with_encoder_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of `parameter_groups` as two, the encoder's part of it, which may be held, and the rest."""
    found = []
    for group in groups:
        is_encoder = [re.search(r"\bencoder\.", name) is not None for name in group["param_names"]]
        for wanted in (True, False):
            chosen = [i for i, is_its in enumerate(is_encoder) if is_its == wanted]
            if chosen:
                part = {key: [group[key][i] for i in chosen] for key in ("params", "param_names")}
                found.append({**group, **part, **({HELD: False} if wanted else {})})
    return found


def hold_encoder(engine: Engine, step: int, plan: RunPlan) -> None:
    """Before the step number `step`: freeze the encoder, or let it learn, at a rate that rises as the schedule's did at first.

    Adam's first updates are as large as its rate, whatever the gradient: at the peak they would undo what was loaded.
    """
    model, is_frozen = engine.objective.model, step < plan.frozen_steps
    assert isinstance(model, MaskedAutoencoder), "only pre-training has steps with a frozen encoder"
    model.is_encoder_frozen = is_frozen
    engine.hold(is_frozen)
    if is_frozen:
        return
    own_rate = learning_rate(step - plan.frozen_steps, plan)
    for group in engine.parameter_groups:
        if HELD in group:
            group["lr"] = min(group["lr"], own_rate * group["lr_scale"])
