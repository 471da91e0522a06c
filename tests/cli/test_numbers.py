"""Numbers that nobody can mean: infinite, no number, below nought, beyond all measure. In every field and every option."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.cli.lines import MODELS, kinds_in, line_of, numbers_of, refusal
from vmae2_ds.cli.options import model_at, name_behind, options_of
from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.refusals import refused
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.stages import STAGES
from vmae2_ds.config.strict import StrictModel
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.data.sources.mixture import MixtureConfig

RECIPES = {name: build for entry in STAGES.values() for name, build in entry.recipe_functions().items()}
ODD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30)


def back_from_run_json(config: RunConfig) -> RunConfig:
    return type(config).model_validate(json.loads(config.model_dump_json()))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_after_run_json(name: str) -> None:
    config = RECIPES[name]()
    assert back_from_run_json(config) == config


def numeric_fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from numeric_fields(kind, (*path, name))
        elif numbers := {int, float} & set(kinds_in(kind)):
            yield (*path, name), float if float in numbers else int


def put(dump: dict[str, Any], path: tuple[str, ...], value: float | int) -> None:
    """Write the number at a path of names, into every place where a field holds several."""
    for name in path[:-1]:
        dump = dump[name]
    held = dump[path[-1]]
    if isinstance(held, list):
        dump[path[-1]] = [value] * len(held)
    else:
        dump[path[-1]] = {"a": value} if isinstance(held, dict) else value


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_of_a_config_is_refused_by_its_option_or_comes_back_from_run_json(stage: str) -> None:
    config = next(iter(STAGES[stage].recipe_functions().values()))()
    options, fields = options_of(type(config)), list(numeric_fields(type(config)))
    assert len(fields) > 50
    for path, kind in fields:
        for odd in ODD:
            value = int(odd) if kind is int and math.isfinite(odd) else odd
            dump = config.model_dump(mode="json")
            put(dump, path, value)
            try:
                accepted = type(config).model_validate(dump)
            except ValidationError as error:
                said = refused(error, lambda path: name_behind(options, path), type(config))
                whole = model_at(type(config), path[:-1])  # heads and width refuse each other by their section
                assert said.startswith((name_behind(options, path), ".".join(path[:-1]))), said
                assert whole is not None
                continue
            assert math.isfinite(odd), f"{'.'.join(path)} takes {odd}"
            assert odd < 1e30 or path == ("optim", "clip_grad") or path == ("train", "peak_flops"), path
            assert back_from_run_json(accepted) == accepted, path


def all_models(root: type[BaseModel] = StrictModel) -> Iterator[type[BaseModel]]:
    for model in root.__subclasses__():
        yield model
        yield from all_models(model)


def test_no_model_of_anything_takes_infinity_or_nan() -> None:
    models = set(all_models())
    assert {FinetuneConfig, DistilConfig, MixtureConfig, Accelerator} <= models
    for model in models:
        for name, field in model.model_fields.items():
            if float in set(kinds_in(field.annotation)):
                for odd in (math.nan, math.inf, -math.inf):
                    with pytest.raises(ValidationError) as refusing:
                        model.model_validate({name: odd})
                    assert any(each["loc"][0] == name for each in refusing.value.errors()), (model, name, odd)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--guard.deviations inf", "--guard.on-spike off switches it off"),
        ("--guard.hang-minutes inf", "0 switches it off"),
        ("--data.read-timeout-s inf", "0 switches it off"),
        ("--optim.base-lr inf", "a finite number"),
        ("--optim.betas 0.9 1.5", "--optim.betas 1.5: less than 1"),
        ("--optim.betas 1.0 0.95", "--optim.betas 1.0: less than 1"),
        ("--data.workers 100000", "--data.workers 100000: at most 1,024"),
        ("--train.time-limit 99999999h", "longer than 1157 days"),
    ],
)
def test_what_was_seen(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["pretrain", "vit_ti_pretrain_desk", *words.split()], capsys)
    assert words.split()[0] in line
    assert said in line


MAY_BE_NEGATIVE = {"--video-starts-s"}


@pytest.mark.parametrize("verb", MODELS)
def test_numbers_beyond_all_measure_are_refused_by_the_option_s_name(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read, drawn or written: the lists and files of these lines are of no use."""
    for option, kind in numbers_of(MODELS[verb]):
        for value in ("nan", "inf", "-1", "1e30") if kind is float else ("nan", "-1", str(10**30)):
            if value == "-1" and option in MAY_BE_NEGATIVE:
                continue
            line = refusal([*line_of(verb, tmp_path), option, value], capsys)
            assert line.startswith(f"vmae2: {option}"), f"{option} {value}: {line}"
    assert not (tmp_path / "new").exists()
