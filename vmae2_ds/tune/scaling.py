"""The table of docs/SCALING.md: what `tune` takes for every published size on 8 to 1024 GPUs of four kinds.

python -m vmae2_ds.tune.scaling docs/SCALING.md     (rewrites what stands between the two markers, in about a minute)
python -m vmae2_ds.tune.scaling docs/FINETUNING.md  (the same of fine-tuning a part of a model)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vmae2_ds.config.lora import LoraConfig
from vmae2_ds.config.model import SizeName
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.cost.paper_hours import compare_with_paper
from vmae2_ds.cost.states import MASTER_BYTES
from vmae2_ds.disk import write_whole
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES
from vmae2_ds.recipes.tad_adapters import PUBLISHED
from vmae2_ds.tune.arguments import PlanArguments
from vmae2_ds.tune.candidates import Candidate, search
from vmae2_ds.tune.forecast import make_forecast
from vmae2_ds.tune.memory_table import MemoryArguments, memory
from vmae2_ds.tune.setting_cost import GIB, accumulation
from vmae2_ds.tune.tables import duration, hours, markdown, scaled

RECIPE_OF_SIZE = {
    "S": "vit_s_pretrain_hybrid",
    "B": "vit_b_pretrain_hybrid",
    "L": "vit_l_pretrain_hybrid",
    "H": "vit_h_pretrain_hybrid",
    "g": "vit_g_pretrain_hybrid",
    "6b": "vit_6b_pretrain_plan",
}
GPUS = ("rtx-4090", "a100-40g", "a100-80g", "h200")
COUNTS = (8, 64, 256, 1024)
LONG_FRAMES, LONG_SIZES = 64, (266, 392)
"""Frames and pixels of the longest and largest clips that a cooldown takes."""
FINETUNED = {"B": "vit_b_finetune_k400", "g": "vit_g_finetune_k400_direct"}
PARTS: tuple[tuple[str, dict[str, dict[str, object]]], ...] = (
    ("everything", {}),
    ("last 4 blocks", {"optim": {"last_blocks": 4}}),
    ("adapters of rank 16", {"model": {"lora": LoraConfig(rank=16)}}),
    ("head alone", {"optim": {"train_only": "head"}}),
)
"""What learns, and the settings that differ from the recipe's."""
KINETICS_400 = 240_436
"""Videos to train on in the published list (docs/PAPER.md#data)."""
PAPER_MIB: dict[SizeName, tuple[int, int]] = {"base": (631, 328), "giant": (1753, 1050)}
"""Memory of feature maps, encoder-only and dual, in the paper's Table 2 (docs/PAPER.md#dual-masking)."""


def markers(name: str) -> tuple[str, str]:
    """The two comments that a table stands between."""
    return f"<!-- {name}: made by python -m vmae2_ds.tune.scaling -->", f"<!-- end of {name} -->"


def scaling_tables() -> str:
    """One Markdown table for each kind of GPU: rows are sizes, columns numbers of GPUs."""
    return "\n\n".join(_table(gpu) for gpu in GPUS)


def _table(key: str) -> str:
    gpu = get_accelerator(key)
    rows = [[f"**{size}**", *(cell(recipe, key, count) for count in COUNTS)] for size, recipe in RECIPE_OF_SIZE.items()]
    header = ["size", *(f"{count} GPUs" for count in COUNTS)]
    return f"### {gpu.name}, {gpu.memory_gb:g} GB\n\n{markdown(header, rows)}"


def cell(recipe: str, gpu: str, num_gpus: int) -> str:
    """What `tune` takes: layout, recomputation, micro batch x accumulation, step time and memory."""
    assumptions = Assumptions()
    cluster = make_cluster(get_accelerator(gpu), num_gpus, None, None, assumptions.usable_memory)
    try:
        chosen = search(RECIPES[recipe](), cluster, assumptions).chosen
    except ConfigError:
        return "batch does not divide"
    return "nothing fits" if chosen is None else _short(chosen)


def _short(chosen: Candidate) -> str:
    policy, model, train = chosen.setting.policy, chosen.setting.config.model, chosen.setting.config.train
    name = f"zero{policy.stage}"
    if policy.hpz > 1:
        name += " hpZ"
    if policy.offload_optimizer:
        name += " offload" if policy.offload_param else " offload states"
    again = f"1 in {model.checkpoint_every}" if model.checkpointing == "every_k" else model.checkpointing
    binds = "" if chosen.time.binds == "compute" else f", {chosen.time.binds}-bound"
    size = f"{duration(chosen.time.total_s)}, {chosen.memory.total_gib:.0f} GiB"
    micro_steps = accumulation(chosen.setting.config, chosen.cluster)
    return f"{name}, recompute {again}, {train.micro_batch} x {micro_steps}: {size}{binds}"


def activations_table() -> str:
    """Activations of one clip, encoder-only against dual: the paper's figures, the published loop, and ours."""
    rows = []
    for size, published in PAPER_MIB.items():
        found = memory(MemoryArguments(model=size))
        loop, of = found["published_loop_peak_mib"], found["activation_mib_per_sample_of"]
        rows += [
            _saving(f"{size}, paper (Table 2)", *published),
            _saving(f"{size}, published loop, closed form, peak", loop["encoder_only"], loop["dual"]),
        ]
        for attention, precision in (("math", "autocast"), ("flash", "autocast"), ("flash", "bf16")):
            for mode in ("none", "all") if precision == "bf16" else ("none",):
                peak = of[f"{attention}, {precision}, {mode}"]["peak"]
                again = "" if mode == "none" else ", everything recomputed"
                name = f"{size}, ours, {attention} attention, {precision}{again}, peak"
                rows.append(_saving(name, peak["encoder_only"], peak["dual"]))
    return markdown(["MiB a clip", "encoder-only", "dual", "times less"], rows)


def _saving(name: str, encoder_only: float, dual: float) -> list[str]:
    return [name, f"{encoder_only:.0f}", f"{dual:.0f}", f"{encoder_only / dual:.2f}"]


def hours_table() -> str:
    """The paper's hours and speed-ups against the compute-only floor."""
    rows = [
        [each.name, f"{each.published:.3g} {each.unit}"]
        + [f"{value:.3g}" for value in (each.predicted.low, each.predicted.value, each.predicted.high)]
        + [f"{each.residual:+.0%}"]
        for each in compare_with_paper(Assumptions())
    ]
    return markdown(["paper", "published", "low", "expected", "high", "residual of expected"], rows)


def adapters_table() -> str:
    """Detection end to end on two H100: each published recipe as it is, and with adapters behind the other blocks."""
    rows = [_adapted(run.build(), blocks) for run in PUBLISHED for blocks in ("all", "last_half")]
    header = [
        "recipe",
        "adapters behind",
        "learns",
        "activations, GiB",
        "a GPU, GiB",
        "step",
        "GPU hours",
        "cores a GPU",
    ]
    return markdown(header, rows)


def _adapted(config: TadConfig, blocks: str) -> list[str]:
    as_published = config.model.adapters.blocks == blocks
    adapters = config.model.adapters.model_copy(update={"blocks": blocks})
    plan = make_forecast(config.changed(model={"adapters": adapters}), PlanArguments(gpus=2, gpu="h100"))
    memory = plan.memory["expected"]
    return [
        f"**{config.recipe}**" if as_published else config.recipe,
        blocks.replace("_", " "),
        scaled(plan.asks.num_learning),
        f"{memory.parts['activations'] / GIB:.2f}",
        f"{memory.total_gib:.1f}",
        duration(plan.time["expected"].total_s),
        hours(2 * plan.hours("expected")),
        f"{plan.cores_needed('expected'):.1f}",
    ]


def long_clips_table() -> str:
    """ViT-g on long and large clips, a clip a GPU on 64 GPUs: memory of a GPU, and the most videos of one clip that fit it."""
    rows = [
        _long_clip(size, gpu, stage, checkpointing)
        for size in LONG_SIZES
        for gpu in ("a100-80g", "h200")
        for stage, checkpointing in ((1, "all"), (2, "all"), (3, "all"), (1, "none"))
    ]
    sizes = ("a GPU, GiB", "in the worst case", "largest micro batch", "step")
    header = ["clip", "seen, decoded", "GPU", "stage", "recompute", *sizes]
    return markdown(header, rows)


def _long_clip(size: int, gpu: str, stage: int, checkpointing: str) -> list[str]:
    """At 266 pixels the grid is odd: cubes to decode are drawn there, as many as running cells keep."""
    grid = size // 14
    config = RECIPES["vit_g_pretrain_hybrid"]().changed(
        data={"num_frames": LONG_FRAMES, "size": size, "views": 1},
        mask={"decoder": "random" if grid % 2 else "running_cell"},
        model={"checkpointing": checkpointing},
        train={"micro_batch": 1, "global_batch": 64, "ds_config": f"zero{stage}"},
    )
    plan = make_forecast(config, PlanArguments(gpus=64, gpu=gpu))
    counts, memory = count_masks(config.mask, config.geometry), plan.memory
    fits = [micro for micro in (2**power for power in range(9)) if _fits(config, plan.cluster.memory_gib, gpu, micro)]
    return [
        f"{LONG_FRAMES}x{size}x{size}",
        f"{counts.visible:,}, {counts.decode:,}",
        f"{get_accelerator(gpu).memory_gb:g} GB",
        f"{stage}",
        checkpointing,
        f"{memory['expected'].total_gib:.1f}",
        f"{memory['worst'].total_gib:.1f}",
        f"{max(fits, default=0)}",
        duration(plan.time["expected"].total_s),
    ]


def _fits(config: PretrainConfig, memory_gib: float, gpu: str, micro_batch: int) -> bool:
    larger = config.changed(train={"micro_batch": micro_batch, "global_batch": 64 * micro_batch})
    return make_forecast(larger, PlanArguments(gpus=64, gpu=gpu)).memory["worst"].total_gib <= memory_gib


def parts_table() -> str:
    """Fine-tuning of B and g on eight A100 of 80 GB: all of it, the last blocks, adapters, or the head alone."""
    rows = [_part(size, recipe, *part) for size, recipe in FINETUNED.items() for part in PARTS]
    header = ["model", "learns", "parameters that learn", "optimizer, bytes", "activations, GiB", "a GPU, GiB", "step"]
    return markdown(header, rows)


def _part(size: str, recipe: str, learns: str, changes: Mapping[str, Mapping[str, object]]) -> list[str]:
    config = FINETUNE_RECIPES[recipe]().changed(**changes)
    plan = make_forecast(config, PlanArguments(gpus=8, gpu="a100-80g", videos=KINETICS_400))
    memory = plan.memory["expected"]
    return [
        size,
        learns,
        scaled(plan.asks.num_learning),
        scaled(3 * MASTER_BYTES * plan.asks.num_learning, "B"),
        f"{memory.parts['activations'] / GIB:.2f}",
        f"{memory.total_gib:.1f}",
        duration(plan.time["expected"].total_s),
    ]


TABLES: dict[str, Callable[[], str]] = {
    "memory": activations_table,
    "hours": hours_table,
    "adapters": adapters_table,
    "clips": long_clips_table,
    "tune": scaling_tables,
}


PAGES = {"SCALING.md": TABLES, "FINETUNING.md": {"parts": parts_table}}
"""Tables by the page that they stand in."""


def main(path: Path) -> None:
    """Put the tables of a page between their markers in `path`."""
    text = path.read_text()
    for name, make in PAGES[path.name].items():
        start, end = markers(name)
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        assert after, f"{path} has no {start} ... {end}"
        text = f"{before}{start}\n\n{make()}\n\n{end}{after}"
    write_whole(path, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
