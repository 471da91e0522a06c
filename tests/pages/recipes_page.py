"""The text of docs/RECIPES.md: every recipe of every stage, its docstring, and its main numbers, computed from its config."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from tests.pages.options import escaped, shown
from tests.pages.text import code, filled, head, page_of, table
from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.stages import STAGES, RecipeFn
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.masking import count_masks
from vmae2_ds.recipes import describe_recipe
from vmae2_ds.tune.workload import planned, workload_of

ABOUT = """Every named run of `vmae2 pretrain` and the other trainings: how to start it, on what it was run or published, with
which score, and where its numbers come from. The tables have the main ones; `vmae2 pretrain RECIPE --help` shows every value,
and [CLI.md](CLI.md#settings-of-recipes) says what each setting is."""
COLUMNS = """GPUs: as many as the batch needs without accumulation; fewer GPUs accumulate to the same batch. Batch: clips of one
optimizer step, over all GPUs. Peak rate: the highest learning rate that this batch gives, as `vmae2 plan` computes it. GMACs:
one clip, forward, the cubes that the masks leave."""
COMMANDS = """In the commands L is a list of videos ([DATA.md](DATA.md)), H a hostfile ([hostfiles](../hostfiles/README.md)), W
a run or a file with weights, MAP a head map of `vmae2 data merge-kinetics`, C your number of classes. `deepspeed
--num_accelerators 8` in front of `--module vmae2_ds` is for one machine, `vmae2` alone for one GPU or CPU."""
MANY_VIDEOS = 10**6
"""Enough for every batch; the peak rate does not depend on it."""

Column = tuple[str, Callable[[Any], str]]


def encoder(config: RunConfig) -> str:
    """Width, depth and heads."""
    tower = config.model.encoder
    return f"{tower.width} x {tower.depth}, {tower.heads} heads"


def parameters(config: RunConfig) -> str:
    """All, and those that learn where these are fewer."""
    asked = workload_of(planned(config), "flash")
    learning = "" if asked.num_learning == asked.num_parameters else f", {millions(asked.num_learning)} learn"
    return f"{millions(asked.num_parameters)}{learning}"


def millions(number: int) -> str:
    """A number of parameters."""
    return f"{number / 1e6:,.1f} M"


def clip(config: RunConfig) -> str:
    """Frames, pixels, and the step between frames where there is one."""
    data = config.data
    step = f", 1 of {data.stride}" if data.sampling in ("stride", "dense") else f", {data.sampling}"
    return f"{data.num_frames} x {data.size}{step}"


def batch(config: RunConfig) -> str:
    """Clips of a step, out of videos at once on each GPU."""
    train, views = config.train, config.data.views
    return f"{train.global_batch} = {ranks(config)} x {train.micro_batch}{f' x {views}' if views > 1 else ''}"


def ranks(config: RunConfig) -> int:
    """As many as need no accumulation."""
    return config.train.global_batch // (config.train.micro_batch * config.data.views)


def epochs(config: RunConfig) -> str:
    """Passes over the videos, of them warm-up."""
    return f"{config.train.epochs:g} ({config.optim.warmup_epochs:g})"


def peak_rate(config: RunConfig) -> str:
    """By the plan."""
    return f"{plan_run(config, MANY_VIDEOS, ranks(config)).peak_lr:.3g}"


def masks(config: PretrainConfig) -> str:
    """Both masks with their shares."""
    mask = config.mask
    return f"{mask.encoder} {mask.encoder_ratio:g}, {mask.decoder} {mask.decoder_ratio:g}"


def seen(config: PretrainConfig) -> str:
    """Cubes that the encoder sees and the decoder fills, of all."""
    counts = count_masks(config.mask, config.geometry)
    return f"{counts.visible}, {counts.decode} of {config.geometry.num_cubes}"


def gmacs(config: RunConfig) -> str:
    """Forward products of a clip: a third of the FLOPs of forward and backward pass, two FLOPs each."""
    return f"{workload_of(planned(config), 'flash').flops[0] / 6e9:,.1f}"


def views(config: FinetuneConfig) -> str:
    """Clips and crops of a test."""
    return f"{config.test.clips} x {config.test.crops}"


def learns(config: TadConfig) -> str:
    """What is trained."""
    adapters = config.model.adapters.blocks
    return "a head on features" if adapters == "none" else f"a head, adapters behind {str(adapters).replace('_', ' ')}"


def detector_input(config: TadConfig) -> str:
    """Positions, and for frames how many of which size."""
    data = config.data
    frames = f", {data.window_frames} frames of {data.size}" if config.model.is_end_to_end else ""
    return f"{data.length} positions{frames}"


def decay(config: RunConfig) -> str:
    """Layer decay; 1 where all layers have one rate."""
    return f"{getattr(config.optim, 'layer_decay', 1):g}"


def regularised(config: Any) -> str:
    """Drop path and the largest gradient norm."""
    head = config.model.head.drop_path if isinstance(config, TadConfig) else config.model.drop_path
    return f"{head:g}, {f'{config.optim.clip_grad:g}' if config.optim.clip_grad else 'none'}"


ENCODER: tuple[Column, ...] = (("encoder, width x blocks", encoder), ("parameters", parameters))
LENGTH: tuple[Column, ...] = (("epochs (warm-up)", epochs), ("peak rate", peak_rate))
REST: tuple[Column, ...] = (
    ("layer decay", decay),
    ("drop path, clipping", regularised),
    ("ZeRO", lambda config: config.train.ds_config),
)
CLIP: tuple[Column, ...] = (
    ("clip", clip),
    ("cube", lambda config: f"{config.model.tubelet} x {config.model.patch} x {config.model.patch}"),
)
BATCH_OF_VIEWS: tuple[Column, ...] = (("batch = GPUs x videos x views", batch),)
BATCH: tuple[Column, ...] = (("batch = GPUs x clips", batch),)
CLASSES: tuple[Column, ...] = (("classes", lambda config: str(config.model.num_classes)),)
SUPERVISED = (*ENCODER, *CLASSES, *CLIP, *BATCH_OF_VIEWS, *LENGTH, *REST, ("test, clips x crops", views))
TABLES: dict[str, tuple[Column, ...]] = {
    "pretrain": (
        *ENCODER,
        *CLIP,
        ("masks", masks),
        ("cubes seen, decoded", seen),
        ("GMACs", gmacs),
        *BATCH_OF_VIEWS,
        *LENGTH,
        *REST,
    ),
    "finetune": SUPERVISED,
    "distil": SUPERVISED,
    "tad": (
        ("learns", learns),
        *ENCODER,
        *CLASSES,
        ("sees", detector_input),
        *BATCH,
        *LENGTH,
        ("drop path, clipping", regularised),
        ("running mean", lambda config: shown(config.optim.ema_decay)),
    ),
    "ava": (
        *ENCODER,
        *CLASSES,
        *CLIP,
        ("boxes", lambda config: cast(AvaConfig, config).data.train_on.replace("_", " ")),
        *BATCH,
        *LENGTH,
        *REST,
    ),
}
"""The columns of each stage's table."""


def recipes_page() -> str:
    """The page."""
    stages = (part for stage in STAGES for part in of_stage(stage))
    return page_of([*head("Recipes", ABOUT), filled(COLUMNS), filled(COMMANDS), *stages])


def of_stage(stage: str) -> Iterator[str]:
    """A stage: its recipes in a table, then each in words."""
    entry, columns = STAGES[stage], TABLES[stage]
    yield f"## vmae2 {stage}"
    yield filled(f"{entry.help} Settings and usage: [CLI.md](CLI.md#vmae2-{stage}).")
    rows = (
        (f"[{name}](#{name})", *(make(build()) for _, make in columns))
        for name, build in entry.recipe_functions().items()
    )
    yield table(("recipe", *(title for title, _ in columns)), rows)
    for name, build in entry.recipe_functions().items():
        yield f"### {name}"
        yield from told(build)


def told(build: RecipeFn) -> Iterator[str]:
    """A recipe's docstring: what it is, its commands as code, the rest as a list."""
    about, _, rest = describe_recipe(build).partition("\n\n")
    yield filled(escaped(about))
    labelled = re.findall(r"^([A-Z][a-z]+):\s+(.*?)(?=^[A-Z][a-z]+:\s|\Z)", rest, re.MULTILINE | re.DOTALL)
    yield code(commands(next(text for label, text in labelled if label == "Command")), "bash")
    yield "\n".join(filled(f"- {label}: {escaped(text)}", "  ") for label, text in labelled if label != "Command")


def commands(text: str) -> list[str]:
    """Each command of a docstring in one line."""
    lines: list[str] = []
    for line in map(str.strip, text.strip().splitlines()):
        if line.startswith(("vmae2 ", "deepspeed ")):
            lines.append(line)
        else:
            lines[-1] += f" {line}"
    return lines
