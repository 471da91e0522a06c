"""How each verb is called, in groups: what `vmae2 --help` lists, `vmae2 VERB --help` ends with, and docs/CLI.md shows."""

from __future__ import annotations

from vmae2_ds.config.stages import STAGES
from vmae2_ds.errors import (
    EXIT_BAD_DATA,
    EXIT_DIVERGED,
    EXIT_HUNG,
    EXIT_NOT_SAVED,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
)

EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it: 128 + SIGINT."""
EXIT_DEFECT = 1
"""What the interpreter ends with after an error that nothing expected."""

EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_USER_ERROR: "something to fix",
    EXIT_NOT_SAVED: "checkpoints could not be written",
    EXIT_PREEMPTED: "stopped by a signal or its time limit and saved",
    EXIT_DIVERGED: "the loss diverged",
    EXIT_BAD_DATA: "the data could not be read on",
    EXIT_HUNG: "hung or a rank lost",
    EXIT_INTERRUPTED: "interrupted before there was anything to save",
    EXIT_DEFECT: "a defect of the program",
}
"""What each exit code means."""

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Train": {
        **{stage: entry.usage for stage, entry in STAGES.items()},
        "distil-cache": (
            "RECIPE --teacher RUN_OR_FILE --distil.cache FOLDER --augment.mixup 0 --augment.cutmix 0 [--section.key VALUE ...]",
        ),
    },
    "Use a trained model": {
        "evaluate": ("RUN_OR_FILE --manifest LIST",),
        "predict": ("RUN_OR_FILE VIDEO_FOLDER_OR_LIST ... [--json] [--out FOLDER]",),
        "probe": ("RUN_OR_FILE --manifest LIST [--val-manifest LIST] [--kind attentive]",),
        "extract": ("RUN_OR_FILE --manifest LIST --out FOLDER [--grid opentad]",),
        "visualize": ("RUN_OR_FILE [--manifest LIST]",),
    },
    "Actions in long videos": {
        "tad detect": ("RUN --out FILE.json",),
        "tad score": ("--gt FILE --pred FILE [--protocol NAME] [--mistakes]",),
        "tad show": ("[VIDEO] --gt FILE --pred FILE --out FILE",),
    },
    "People's actions": {
        "ava check": ("--truth FILE --label-map FILE [--videos FOLDER] [--pictures FOLDER]",),
        "ava boxes": (
            "--convert IN OUT",
            "--from-coco FILE --truth FILE --out FILE",
            "--videos FOLDER --truth FILE --weights FILE --out FILE",
        ),
        "ava detect": ("RUN --out FILE.csv [--truth FILE] [--boxes FILE] [--best]",),
        "ava score": ("--gt FILE --det FILE --labelmap FILE [--exclude FILE] [--protocol NAME]",),
        "ava show": ("[VIDEO] --gt FILE --det FILE --labelmap FILE --videos FOLDER --out FILE",),
        "ava convert": ("FILE.pkl --out FOLDER --fps N",),
        "ava score-tubes": ("--gt FILE --det FILE [--protocol NAME]",),
    },
    "Videos and lists": {
        "data synth": ("FOLDER",),
        "data list": ("FOLDER --out FILE.csv [--part-s 10]",),
        "data check": ("LIST --out FOLDER [--decode all]",),
        "data prepare": ("LIST --out FOLDER [--short-side 256]",),
        "data pack": ("LIST --out FOLDER [--shard-mib 1024]",),
        "data index": ("LIST --out FOLDER",),
        "data index-shards": ("'SHARDS-{000..127}.tar' --out FILE.csv",),
        "data merge-kinetics": ("FOLDER --k400 TRAIN VAL NAMES --k600 TRAIN VAL NAMES --k700 TRAIN VAL NAMES",),
    },
    "Weights": {
        "import": ("FILE --out FILE.safetensors [--config FILE.json]",),
        "export": ("RUN_OR_FILE --out FILE_OR_FOLDER [--layout NAME] [--labels NAMES]",),
    },
    "Before a run": {
        "plan": ("RECIPE --gpus N --gpu NAME [--section.key VALUE ...]",),
        "tune": ("RECIPE --gpus N --gpu NAME [--out FILE.json] [--section.key VALUE ...]",),
        "flops": ("--model SIZE",),
        "memory": ("--model SIZE [--gpus N]",),
        "doctor": ("[--recipe RECIPE]",),
    },
    "On many hosts": {
        "launch slurm": ("RECIPE --nodes N [--section.key VALUE ...]", "data TOOL ... --parts N --script FILE"),
        "launch hosts": ("RECIPE --hostfile FILE [--run] [--section.key VALUE ...]",),
        "launch doctor": ("--hostfile FILE [--recipe RECIPE]",),
    },
}
"""Heading -> verb -> the words behind `vmae2 VERB`, a line for each way to call it; square brackets: may be left out."""


def usage_of(verb: str) -> tuple[str, ...]:
    """The lines that call a verb, `vmae2 evaluate RUN_OR_FILE --manifest LIST`."""
    lines = next((verbs[verb] for verbs in GROUPS.values() if verb in verbs), ())
    return tuple(f"vmae2 {verb} {line}".rstrip() for line in lines)
