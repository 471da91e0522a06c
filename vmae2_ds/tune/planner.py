"""`vmae2 plan`: what a run will be before it starts, from its recipe and the machines, with bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmae2_ds.config.ds_config import fill_policy, read_policy
from vmae2_ds.config.plan import RunPlan, plan_run
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions, End, Range
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks
from vmae2_ds.tune.arguments import PlanArguments, assumptions_of, cluster_of, count_videos
from vmae2_ds.tune.prediction import (
    GIB,
    GpuMemory,
    Setting,
    StepTime,
    attention_kind,
    data_core_s,
    model_flops,
    notes_on,
    predict_memory,
    predict_time,
    reading_cores,
    traffic_of,
)
from vmae2_ds.tune.search_space import micro_batches
from vmae2_ds.tune.tables import duration, hours, scaled, table

ENDS: tuple[End, ...] = ("best", "expected", "worst")


@dataclass(frozen=True)
class Plan:
    """A setting on a cluster, predicted at the best, expected and worst end of every assumption."""

    setting: Setting
    cluster: Cluster
    run: RunPlan
    videos_from: str
    assumptions: Assumptions
    memory: dict[End, GpuMemory]
    time: dict[End, StepTime]

    @property
    def margin_gib(self) -> float:
        """Memory left on each GPU, expected; negative where it does not fit."""
        return self.cluster.memory_gib - self.memory["expected"].total_gib

    @property
    def host_margin_gib(self) -> float:
        """Host memory left for each GPU, expected."""
        return self.assumptions.host_memory_gib.value - self.memory["expected"].host_gib

    @property
    def fits(self) -> bool:
        """Does it fit, as expected, on the GPU and in host memory?"""
        return self.margin_gib >= 0 and self.host_margin_gib >= 0

    def hours(self, end: End) -> float:
        """Wall hours of the whole recipe."""
        return self.run.num_steps * self.time[end].total_s / 3600

    def utilisation(self, end: End) -> tuple[float, float]:
        """MFU and HFU: FLOPs without and with recomputation over what the GPUs could do in the step's time."""
        precision = self.setting.config.train.precision
        peak = self.cluster.gpu.peak_flops(precision)
        assert peak is not None, "predict_time refuses a precision without a peak"
        clips = self.run.global_batch / self.cluster.num_gpus
        seconds = self.time[end].total_s
        without, with_recompute = model_flops(self.setting.config)
        return clips * without / seconds / peak, clips * with_recompute / seconds / peak

    def cores_needed(self, end: End) -> float:
        """CPU cores for each GPU that keep it fed at the speed of its own work."""
        videos_s = self.run.videos_per_step / self.cluster.num_gpus / self.time[end].device_s
        return videos_s * data_core_s(self.setting.config, self.assumptions.at(end))


def make_plan(config: PretrainConfig, arguments: PlanArguments) -> Plan:
    """Predict `config` as it stands. Raises ConfigError where it could not run at all."""
    assumptions = assumptions_of(arguments)
    cluster = cluster_of(arguments, assumptions)
    videos = count_videos(arguments, config)
    policy = read_policy(config.train.ds_config)
    run = plan_run(config, videos[0], cluster.num_gpus)
    fill_policy(policy, config, run, on_cpu=cluster.on_cpu)  # refuses what could not start
    zero = ZeroPolicy.of_ds_config(policy).on(cluster.num_gpus)
    if zero.hpz > cluster.gpus_per_node:
        raise ConfigError(
            f"zero_hpz_partition_size={zero.hpz} reaches over nodes of {cluster.gpus_per_node} GPUs, which is what it is to "
            f"avoid; set it to {cluster.gpus_per_node} in a policy of your own, or say --nodes"
        )
    return plan_setting(Setting(config, zero), cluster, assumptions, videos)


def plan_setting(setting: Setting, cluster: Cluster, assumptions: Assumptions, videos: tuple[int, str]) -> Plan:
    """Predict a setting at all ends of the assumptions; `videos` are how many, and where the number comes from."""
    at = {end: assumptions.at(end) for end in ENDS}
    return Plan(
        setting=setting,
        cluster=cluster,
        run=plan_run(setting.config, videos[0], cluster.num_gpus),
        videos_from=videos[1],
        assumptions=assumptions,
        memory={end: predict_memory(setting, cluster, at[end]) for end in ENDS},
        time={end: predict_time(setting, cluster, at[end]) for end in ENDS},
    )


def largest_micro_batch(plan: Plan) -> int | None:
    """The largest micro batch (videos) that makes the global batch and is expected to fit as the rest stands."""
    config, policy = plan.setting
    expected = plan.assumptions.at("expected")
    for videos in reversed(micro_batches(config, plan.cluster.num_gpus)):
        setting = Setting(config.changed(train={"micro_batch": videos}), policy)
        if predict_memory(setting, plan.cluster, expected).total / GIB <= plan.cluster.memory_gib:
            return videos
    return None


def check_fits(plan: Plan) -> None:
    """Raises ConfigError where the plan needs more memory than each GPU has, with the way out."""
    if plan.margin_gib < 0:
        raise ConfigError(
            f"does not fit: {plan.memory['expected'].total_gib:.1f} GiB expected on each {plan.cluster.one}, "
            f"{plan.cluster.memory_gib:.1f} GiB usable; the activations of {plan.setting.clips} clips take "
            f"{plan.memory['expected'].parts['activations'] / GIB:.1f} of them; "
            f"vmae2 tune {plan.setting.config.recipe} with the same options finds what does"
        )
    if plan.host_margin_gib < 0:
        raise ConfigError(
            f"does not fit: {plan.memory['expected'].host_gib:.0f} GiB of host memory for each {plan.cluster.one}, "
            f"{plan.assumptions.host_memory_gib.value:g} expected to be there; say --host-memory where there is more, or "
            f"vmae2 tune {plan.setting.config.recipe} with the same options finds what does"
        )


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything as plain values."""
    config, counts = plan.setting.config, count_masks(plan.setting.config.mask, plan.setting.config.geometry)
    without, with_recompute = model_flops(config)
    comm = traffic_of(plan.setting, plan.cluster)
    return {
        "recipe": config.recipe,
        "cluster": {
            "gpu": plan.cluster.gpu.model_dump(),
            "gpus": plan.cluster.num_gpus,
            "nodes": plan.cluster.num_nodes,
            "usable_gib": plan.cluster.memory_gib,
        },
        "batch": {
            "global_batch": plan.run.global_batch,
            "micro_batch": plan.run.micro_batch,
            "views": plan.run.views,
            "accumulation": plan.run.accumulation,
            "clips_per_micro_step": plan.run.clips_per_micro_step,
            "steps": plan.run.num_steps,
            "warmup_steps": plan.run.warmup_steps,
            "videos": plan.run.num_videos,
            "peak_lr": plan.run.peak_lr,
        },
        "tokens": {"encoder": counts.visible, "decoder": counts.visible + counts.decode},
        "params": count_parameters(config.model).total,
        "flops_per_clip": {"model": without, "hardware": with_recompute},
        "flops_per_step": {
            "model": without * plan.run.global_batch,
            "hardware": with_recompute * plan.run.global_batch,
        },
        "memory_gib": {
            **{part: value / GIB for part, value in plan.memory["expected"].parts.items()},
            "total": {end: plan.memory[end].total_gib for end in ENDS},
            "margin": plan.margin_gib,
            "host": plan.memory["expected"].host_gib,
        },
        "fits": plan.fits,
        "comm_bytes_per_step": {
            "intra_node": comm.intra_node,
            "inter_node": comm.inter_node,
            "collectives": [vars(collective) for collective in comm.collectives],
        },
        "step_s": {end: vars(plan.time[end]) | {"total_s": plan.time[end].total_s} for end in ENDS},
        "binds": plan.time["expected"].binds,
        "largest_micro_batch": largest_micro_batch(plan),
        "notes": [*notes_on(plan.setting, plan.cluster), *plan.run.warnings()],
        "cores_per_gpu_needed": {end: plan.cores_needed(end) for end in ENDS},
        "utilisation": {end: dict(zip(("mfu", "hfu"), plan.utilisation(end), strict=True)) for end in ENDS},
        "hours": {end: plan.hours(end) for end in ENDS},
        "gpu_hours": {end: plan.hours(end) * plan.cluster.num_gpus for end in ENDS},
        "assumptions": plan.assumptions.model_dump(mode="json"),
    }


def describe_plan(plan: Plan) -> str:
    """The plan as text."""
    return "\n\n".join(
        ["\n".join(_run_lines(plan)), _memory_table(plan), _comm_table(plan), _time_table(plan), "\n".join(_verdict(plan)),
         assumptions_table(plan.assumptions)]
    )  # fmt: skip


def _run_lines(plan: Plan) -> list[str]:
    config, run = plan.setting.config, plan.run
    counts = count_masks(config.mask, config.geometry)
    without, with_recompute = model_flops(config)
    kernel = attention_kind(config, plan.cluster.on_cpu)
    checkpointing = config.model.checkpointing
    return [
        f"{config.recipe} on {plan.cluster}",
        f"{scaled(count_parameters(config.model).total)} parameters, {config.train.precision}, {kernel} attention, "
        f"checkpointing {checkpointing}, ZeRO policy {config.train.ds_config}",
        f"clip of {config.data.num_frames}x{config.data.size}x{config.data.size}: the encoder sees {counts.visible} tokens, "
        f"the decoder {counts.visible + counts.decode}; mask {config.mask.encoder} + {config.mask.decoder}, "
        f"{config.mask.decoder_tokens} tokens",
        *run.lines(),
        f"videos from {plan.videos_from}",
        f"work: {without / 1e9:.1f} GFLOP a clip, {scaled(without * run.global_batch, 'FLOP')} a step, "
        f"{scaled(without * run.global_batch * run.num_steps, 'FLOP')} in all"
        + (
            f"; recomputation makes it {with_recompute / without:.2f} times as much" if with_recompute > without else ""
        ),
    ]


def _memory_table(plan: Plan) -> str:
    rows = [
        [part, *(f"{plan.memory[end].parts[part] / GIB:.2f}" for end in ENDS)] for part in plan.memory["expected"].parts
    ]
    rows.append(["total", *(f"{plan.memory[end].total_gib:.2f}" for end in ENDS)])
    rows.append(["usable", *[f"{plan.cluster.memory_gib:.2f}"] * 3])
    rows.append(["host memory", *(f"{plan.memory[end].host_gib:.2f}" for end in ENDS)])
    title = f"Memory of one {plan.cluster.one}, GiB ({plan.setting.clips} clips a micro step)"
    return table(title, ["part", *ENDS], rows)


def _comm_table(plan: Plan) -> str:
    comm = traffic_of(plan.setting, plan.cluster)
    rows = [[f"{c.kind} of {c.what} ({c.span})", scaled(c.payload, "B")] for c in comm.collectives]
    rows.append([f"one {plan.cluster.one} sends inside its node", scaled(comm.intra_node, "B")])
    rows.append([f"one {plan.cluster.one}'s share of the network", scaled(comm.inter_node, "B")])
    return table("Communication of one optimizer step", ["collective", "bytes"], rows)


def _time_table(plan: Plan) -> str:
    def row(name: str, of: str) -> list[str]:
        return [name, *(duration(getattr(plan.time[end], of)) for end in ENDS)]

    rows = [
        row("forward and backward", "compute_s"),
        row("communication, not hidden", "network_s"),
        row("communication, hidden", "hidden_s"),
        row("optimizer", "optimizer_s"),
        row("data supply (in parallel)", "data_s"),
        row("step", "total_s"),
        ["whole recipe", *(duration(3600 * plan.hours(end)) for end in ENDS)],
        [f"{plan.cluster.one} hours", *(hours(plan.hours(end) * plan.cluster.num_gpus) for end in ENDS)],
        ["clips a second", *(f"{plan.run.global_batch / plan.time[end].total_s:,.0f}" for end in ENDS)],
        ["MFU / HFU", *("{:.1%} / {:.1%}".format(*plan.utilisation(end)) for end in ENDS)],
        [f"CPU cores to feed a {plan.cluster.one}", *(f"{plan.cores_needed(end):.1f}" for end in ENDS)],
    ]
    return table("Time of one optimizer step", ["part", *ENDS], rows)


def _verdict(plan: Plan) -> list[str]:
    time = plan.time["expected"]
    others = {end: plan.time[end].binds for end in ("best", "worst")}
    unsure = (
        "" if set(others.values()) == {time.binds} else f" (best case {others['best']}, worst case {others['worst']})"
    )
    lines = [
        f"binds: {time.binds}{unsure}; memory: "
        + (f"{plan.margin_gib:.1f} GiB to spare" if plan.margin_gib >= 0 else f"{-plan.margin_gib:.1f} GiB TOO MUCH")
    ]
    most = largest_micro_batch(plan)
    if most != plan.run.micro_batch:
        found = "no micro batch" if most is None else f"--train.micro-batch {most} is the largest that"
        lines.append(f"  as the rest stands, {found} fits")
    lines += [f"  {note}" for note in notes_on(plan.setting, plan.cluster)]
    if plan.host_margin_gib < 0:
        lines.append(f"  host memory: {-plan.host_margin_gib:.1f} GiB a {plan.cluster.one} TOO MUCH")
    if plan.fits and plan.memory["worst"].total_gib > plan.cluster.memory_gib:
        lines.append("  but in the worst case it does not fit: see the memory table")
    if time.binds == "data":
        lines.append(
            f"  the {plan.cluster.one}s wait for videos: {plan.cores_needed('expected'):.1f} cores a {plan.cluster.one} are "
            f"needed, {reading_cores(plan.setting.config, plan.assumptions):g} read; --data.workers, --data.views, short GOPs "
            "or more cores help (docs/DATA.md)"
        )
    return lines


def assumptions_table(assumptions: Assumptions) -> str:
    """Every assumption with its bounds."""
    rows = [
        [name, *(f"{value:g}" for value in (constant.low, constant.value, constant.high))]
        for name, constant in assumptions
        if isinstance(constant, Range)
    ]
    return table(f"Assumed: {assumptions.source}", ["constant", "low", "expected", "high"], rows)
