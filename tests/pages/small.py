"""A page's command as one that runs here in a moment: the desk's recipe, a made file for each of the reader's, two steps."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tests.pages.world import CLASSES, FRAMES, SIZE
from vmae2_ds.cli.verbs import VERBS
from vmae2_ds.config.stages import STAGES

Values = Mapping[str, str]
CLIP = f"--num-frames {FRAMES} --size {SIZE} --stride 1 --workers 0"
LOOP = (
    "--train.max-steps 2 --train.global-batch 2 --train.micro-batch 2 --train.save-every 2 --train.log-every 1 "
    "--train.no-tensorboard --train.ds-config cpu --train.precision fp32 --data.workers 0 --data.read-timeout-s 0 "
    "--guard.hang-minutes 0 --model.attention math --model.encoder.depth 2"
)
OF_CLIPS = f"{LOOP} --data.num-frames {FRAMES} --data.size {SIZE} --data.views 1 --data.min-frames {FRAMES}"
CLASSIFIER = f"{OF_CLIPS} --model.num-classes {CLASSES} --augment.mixup 0 --augment.cutmix 0"
PEOPLE = {"--truth": "people/train.csv", "--label-map": "people/actions.txt", "--boxes": "person_boxes.csv"}
PEOPLE |= {"--excluded": "excluded.csv", "--val-excluded": "excluded.csv"}
PEOPLE |= {"--val-truth": "people/val.csv", "--val-boxes": "person_boxes.csv", "--video-starts-s": "0"}
IN_TRAINING = {
    "--data.manifest": "train.csv", "--data.val-manifest": "val.csv", "--data.root": ".", "--train.init": "mae.safetensors",
    "--teacher": "classifier.safetensors", "--train.head-map": "map.json", "--train.ds-config": "cpu",
}  # fmt: skip


class Small(NamedTuple):
    """How a verb's commands are made small."""

    arguments: tuple[str, ...] = ()
    """In the place of those without a name; fewer than these stay as they are."""
    values: Values = MappingProxyType({})
    """Option -> its value here; the values of all others stay as they are typed."""
    more: str = ""
    """Options behind them all."""


SMALL: dict[str, Small] = {
    "extract": Small(
        ("classifier.safetensors",), {"--manifest": "long.csv", "--out": "features"}, "--workers 0 --size 64"
    ),
    "pretrain": Small((), IN_TRAINING, f"{OF_CLIPS} --model.decoder.depth 1"),
    "finetune": Small((), IN_TRAINING | {"--train.init": "classifier.safetensors"}, CLASSIFIER),
    "distil-cache": Small((), IN_TRAINING | {"--train.init": "classifier.safetensors"}, CLASSIFIER),
    "distil": Small((), IN_TRAINING | {"--train.init": "classifier.safetensors"}, CLASSIFIER),
    "tad": Small(
        (),
        {
            **IN_TRAINING,
            "--data.annotations": "long/annotations.json",
            "--data.features": "features",
            "--data.videos": "long/videos",
            "--train.init": "classifier.safetensors",
        },
        f"{LOOP} --data.length 16 --model.num-classes 2 --detect.most 9 --data.num-frames 8 --data.size 32 --data.stride 1 "
        "--model.encoder.width 192",
    ),
    "ava": Small(
        (),
        {
            **IN_TRAINING,
            **{f"--data.{name[2:]}": value for name, value in PEOPLE.items()},
            "--data.videos": "people/videos",
            "--train.init": "classifier.safetensors",
        },
        f"{LOOP} --model.num-classes 4 --data.num-frames 8 --data.size 32 --data.stride 1 --data.short-side 32 36 "
        "--data.test-short-side 32",
    ),
    "evaluate": Small(
        ("classifier.safetensors",), {"--manifest": "val.csv", "--labels": "names.txt"}, f"{CLIP} --clips 1 --crops 1"
    ),
    "predict": Small(
        ("classifier.safetensors", "clips/val", "val.csv"), {"--labels": "names.txt"}, f"{CLIP} --clips 1 --crops 1"
    ),
    "probe": Small(
        ("mae.safetensors",),
        {"--manifest": "train.csv", "--val-manifest": "val.csv", "--cache": "probe_cache"},
        f"{CLIP} --epochs 2",
    ),
    "visualize": Small(
        ("runs/vit_ti_pretrain_desk",), {"--manifest": "val.csv"}, "--clips 1 --num-frames 8 --size 32 --stride 1"
    ),
    "tad detect": Small(("runs/tad_desk",), {"--out": "found.json"}),
    "tad score": Small((), {"--gt": "long/annotations.json", "--pred": "found.json", "--subset": "validation"}),
    "tad show": Small(
        ("long/videos/video_02.mp4",),
        {"--gt": "long/annotations.json", "--pred": "found.json", "--videos": "long/videos"},
    ),
    "ava detect": Small(("runs/ava_desk",), PEOPLE | {"--truth": "people/val.csv"}),
    "ava score": Small((), {"--gt": "people/val.csv", "--det": "found.csv", "--labelmap": "people/actions.txt"}),
    "ava show": Small(
        ("video_03",),
        {
            "--gt": "people/val.csv",
            "--det": "found.csv",
            "--labelmap": "people/actions.txt",
            "--videos": "people/videos",
            "--video-starts-s": "0",
        },
    ),
    "ava check": Small((), {**PEOPLE, "--videos": "people/videos"}),
    "ava boxes": Small(
        (),
        {
            "--convert": "person_boxes.csv",
            "--truth": "people/val.csv",
            "--videos": "people/videos",
            "--weights": "detector.json",
        },
        "--detector tests.downstream.ava.made_up_detector:bright",
    ),
    "ava convert": Small(("tubes.pkl",)),
    "ava score-tubes": Small((), {"--gt": "tubes.pkl", "--det": "tube_boxes.csv"}),
    "data synth": Small(("made",), {}, "--train-videos 2 --val-videos 1 --size 32 --frames 8"),
    "data list": Small(("clips/train",), {}, "--part-s 0.5"),
    "data check": Small(
        ("train.csv",), {"--out": "checked_list", "--root": ".", "--classes": str(CLASSES)}, "--workers 1"
    ),
    "data prepare": Small(
        ("train.csv",), {"--out": "prepared", "--root": ".", "--part": "1/1"}, "--workers 1 --short-side 16 --sample 0"
    ),
    "data pack": Small(("train.csv",), {"--out": "packed"}),
    "data index": Small(("train.csv",), {"--out": "indexed"}),
    "data index-shards": Small(("packed/000000.tar",), {"--out": "shards.csv"}),
    "data merge-kinetics": Small(("k710",), {"--class-merges": "merges.json", "--classes": "merged_names.txt"}),
    "import": Small(("mae.safetensors",), {"--out": "imported.safetensors"}),
    "export": Small(("mae.safetensors",)),
    "flops": Small(),
    "memory": Small(),
    "plan": Small((), {"--data.manifest": "train.csv"}),
    "tune": Small(),
    "launch slurm": Small((), {"--data.manifest": "train.csv"}),
    "launch hosts": Small((), {"--data.manifest": "train.csv"}),
}
"""Verbs that are run, trainings before what reads their runs; the rest is in `test_runs.py:PARSED`."""
KINETICS = ("train.txt", "val.txt", "names.txt")
LEFT_OUT = ("--submit", "--run", "--bench")
"""Switches that would start something elsewhere, or take long."""


def small(words: list[str]) -> tuple[str, ...]:
    """A command of the world for a command of a page, of one of SMALL's verbs."""
    verb = verb_of(words)
    how, rest = SMALL[verb], [word for word in words[len(verb.split()) :] if word not in LEFT_OUT]
    if verb in (*STAGES, "distil-cache"):
        rest[0] = desk_recipe(rest)
    made, option, number = [*verb.split()], "", 0
    decided = {word for word in how.more.split() if word.startswith("--")}
    for place, word in enumerate(rest):
        is_option = word.startswith("--")
        option, number = (word, 0) if is_option else (option, number + 1)
        is_recipe = verb in (*STAGES, "distil-cache") and not place
        if option not in decided:
            made.append(word if is_option or is_recipe else value_of(how, verb, option, number, word))
    return (*made, *how.more.split())


def value_of(how: Small, verb: str, option: str, number: int, word: str) -> str:
    """The value here of a word: the `number`th one behind an option, or in front of all."""
    if option.startswith("--k") and verb == "data merge-kinetics":
        return f"{option[2:]}_{KINETICS[number - 1]}"
    if option:
        return how.values.get(option, word) if number == 1 else word
    return how.arguments[number - 1] if number <= len(how.arguments) else word


def verb_of(words: list[str]) -> str:
    """The verb that a command begins with."""
    return next(name for name in (" ".join(words[:2]), words[0]) if name in VERBS)


def desk_recipe(rest: list[str]) -> str:
    """The desk's recipe of the same kind as the one named."""
    name = rest[0]
    for mark, desk in (("continue", "vit_ti_continue_desk"), ("lora", "vit_ti_lora_desk")):
        if mark in name:
            return desk
    if "--data.features" in rest:
        return "tad_desk"
    if "--data.annotations" in rest:
        return "tad_adapters_desk"
    if "--data.truth" in rest:
        return "ava_desk"
    stage = next(stage for stage, entry in STAGES.items() if name in entry.recipe_functions())
    return f"vit_ti_{stage}_desk"
