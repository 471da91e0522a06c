"""The table of docs/SCALING.md: what `tune` takes for every published size on 8 to 1024 GPUs of four kinds.

python -m vmae2_ds.tune.scaling docs/SCALING.md     (rewrites what stands between the two markers, in about a minute)
"""

from __future__ import annotations

import sys
from pathlib import Path

from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.candidates import Candidate, search
from vmae2_ds.tune.predict import GIB
from vmae2_ds.tune.tables import duration, markdown

RECIPES = {
    "S": "vit_s_pretrain_hybrid",
    "B": "vit_b_pretrain_hybrid",
    "L": "vit_l_pretrain_hybrid",
    "H": "vit_h_pretrain_hybrid",
    "g": "vit_g_pretrain_hybrid",
    "6b": "vit_6b_pretrain_plan",
}
GPUS = ("rtx-4090", "a100-40g", "a100-80g", "h200")
COUNTS = (8, 64, 256, 1024)
START, END = "<!-- made by python -m vmae2_ds.tune.scaling -->", "<!-- end -->"


def scaling_tables() -> str:
    """One Markdown table for each kind of GPU: rows are sizes, columns numbers of GPUs."""
    return "\n\n".join(_table(gpu) for gpu in GPUS)


def _table(key: str) -> str:
    gpu = get_accelerator(key)
    rows = [[f"**{size}**", *(cell(recipe, key, count) for count in COUNTS)] for size, recipe in RECIPES.items()]
    header = ["size", *(f"{count} GPUs" for count in COUNTS)]
    return f"### {gpu.name}, {gpu.memory_gb:g} GB\n\n{markdown(header, rows)}"


def cell(recipe: str, gpu: str, num_gpus: int) -> str:
    """What `tune` takes: layout, recomputation, micro batch x accumulation, step time and memory."""
    assumptions = Assumptions()
    cluster = make_cluster(get_accelerator(gpu), num_gpus, None, None, assumptions.usable_memory.value)
    try:
        chosen = search(get_recipe(recipe), cluster, assumptions).chosen
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
    size = f"{duration(chosen.time.total_s)}, {chosen.memory.total / GIB:.0f} GiB"
    micro_steps = train.global_batch // (train.micro_batch * chosen.setting.config.data.views * chosen.cluster.num_gpus)
    return f"{name}, recompute {again}, {train.micro_batch} x {micro_steps}: {size}{binds}"


def main(path: Path) -> None:
    """Put the tables between the markers of `path`."""
    text = path.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    assert after, f"{path} has no {START} ... {END}"
    path.write_text(f"{before}{START}\n\n{scaling_tables()}\n\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
