"""Named, complete configurations: the published ones of each stage, and small ones for a desk."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from vmae2_ds.config.stages import STAGES, RecipeFn
from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    from vmae2_ds.config.run import RunConfig


def get_recipe(stage: str, name: str) -> RunConfig:
    """The recipe called `name` of a stage of STAGES; raises ConfigError with the known names."""
    recipes = STAGES[stage].recipe_functions()
    if name not in recipes:
        raise ConfigError(f"unknown recipe {name!r}; choose one of {', '.join(recipes)}")
    return recipes[name]()


def describe_recipe(recipe: RecipeFn) -> str:
    """The recipe's docstring: command, hardware, time, score, source."""
    return inspect.getdoc(recipe) or ""
