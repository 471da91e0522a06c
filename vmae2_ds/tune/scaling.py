"""The table of docs/SCALING.md: what `tune` takes for every published size on 8 to 1024 GPUs of four kinds.

python -m vmae2_ds.tune.scaling docs/SCALING.md     (rewrites what stands between the two markers, in about a minute)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from vmae2_ds.config.model import SizeName
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.cost.paper_hours import compare_with_paper
from vmae2_ds.disk import write_whole
from vmae2_ds.errors import ConfigError
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


TABLES: dict[str, Callable[[], str]] = {
    "memory": activations_table,
    "hours": hours_table,
    "adapters": adapters_table,
    "tune": scaling_tables,
}


def main(path: Path) -> None:
    """Put the tables between their markers in `path`."""
    text = path.read_text()
    for name, make in TABLES.items():
        start, end = markers(name)
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        assert after, f"{path} has no {start} ... {end}"
        text = f"{before}{start}\n\n{make()}\n\n{end}{after}"
    write_whole(path, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
