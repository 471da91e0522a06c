"""`vmae2 plan`: what a run will be before it starts, from its recipe and the machines, with bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vmae2_ds.config.ds_config import fill_policy, read_policy
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.console.progress import counted
from vmae2_ds.console.tables import table
from vmae2_ds.cost.assumptions import Assumptions, End, Range
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.data.feed.shared_memory import loader_bytes
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.arguments import PlanArguments, assumptions_of, cluster_of, count_videos
from vmae2_ds.tune.search_space import micro_batches
from vmae2_ds.tune.setting_cost import (
    GIB,
    GpuMemory,
    Setting,
    StepTime,
    attention_kind,
    notes_on,
    predict_memory,
    predict_time,
    reading_cores,
    traffic_of,
)
from vmae2_ds.tune.tables import duration, hours, scaled
from vmae2_ds.tune.workload import Planned, Workload

ENDS: tuple[End, ...] = ("best", "expected", "worst")


@dataclass(frozen=True)
class Forecast:
    """A setting on a cluster, predicted at the best, expected and worst end of every assumption."""

    setting: Setting
    cluster: Cluster
    run: RunPlan
    videos_from: str
    assumptions: Assumptions
    memory: dict[End, GpuMemory]
    time: dict[End, StepTime]
    gpu_hour_price: float | None = None
    """In any currency."""

    @property
    def asks(self) -> Workload:
        """What the run asks of a GPU."""
        return self.setting.workload(self.cluster.on_cpu)

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
        frozen, time = self.run.own_frozen_steps, self.time[end].total_s
        return ((self.run.own_steps - frozen) * time + frozen * self.frozen_step_s(end)) / 3600

    def gpu_hours(self, end: End) -> float:
        """Hours of all GPUs together."""
        return self.hours(end) * self.cluster.num_gpus

    def frozen_step_s(self, end: End) -> float:
        """Seconds of a step with a frozen encoder.

        Its backward pass counts as large a part of the compute time as it is of the FLOPs; communication and update count as
        in other steps, which is more than they are.
        """
        asks, time = self.asks, self.time[end]
        return replace(time, compute_s=time.compute_s * (1 - asks.encoder_backward[1] / asks.flops[1])).total_s

    @property
    def model_flops(self) -> float:
        """FLOPs of the whole recipe, without recomputation."""
        saved = self.run.own_frozen_steps * self.asks.encoder_backward[0]
        return self.run.global_batch * (self.run.own_steps * self.asks.flops[0] - saved)

    def utilisation(self, end: End) -> tuple[float, float]:
        """MFU and HFU: FLOPs without and with recomputation over what the GPUs could do in the step's time."""
        peak = self.cluster.gpu.peak_flops(self.setting.config.train.product_format)
        assert peak is not None, "predict_time refuses a precision without a peak"
        clips = self.run.global_batch / self.cluster.num_gpus
        seconds = self.time[end].total_s
        without, with_recompute = self.asks.flops
        return clips * without / seconds / peak, clips * with_recompute / seconds / peak

    def cores_needed(self, end: End) -> float:
        """CPU cores for each GPU that keep it fed at the speed of its own work."""
        videos_s = self.run.videos_per_step / self.cluster.num_gpus / self.time[end].device_s
        return videos_s * self.asks.core_s(self.assumptions.at(end))


def make_forecast(config: Planned, arguments: PlanArguments) -> Forecast:
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
    return forecast_setting(Setting(config, zero), cluster, assumptions, videos, arguments.gpu_hour_price)


def forecast_setting(
    setting: Setting,
    cluster: Cluster,
    assumptions: Assumptions,
    videos: tuple[int, str],
    gpu_hour_price: float | None,
) -> Forecast:
    """Predict a setting at all ends of the assumptions; `videos` are how many, and where the number comes from."""
    at = {end: assumptions.at(end) for end in ENDS}
    return Forecast(
        setting=setting,
        cluster=cluster,
        run=plan_run(setting.config, videos[0], cluster.num_gpus),
        videos_from=videos[1],
        assumptions=assumptions,
        memory={end: predict_memory(setting, cluster, at[end]) for end in ENDS},
        time={end: predict_time(setting, cluster, at[end]) for end in ENDS},
        gpu_hour_price=gpu_hour_price,
    )


def cost_line(forecast: Forecast) -> str:
    """Hours of all GPUs, and what they cost where a price was given, with the plan's bounds."""
    best, expected, worst = (forecast.gpu_hours(end) for end in ENDS)
    line = f"about {hours(expected)} {forecast.cluster.one} hours ({hours(best)} to {hours(worst)})"
    price = forecast.gpu_hour_price
    if price is None:
        return line
    return f"{line}: {hours(price * expected)} at {price:g} an hour ({hours(price * best)} to {hours(price * worst)})"


def largest_micro_batch(forecast: Forecast) -> int | None:
    """The largest micro batch (videos) that makes the global batch and is expected to fit as the rest stands."""
    config, policy = forecast.setting
    expected = forecast.assumptions.at("expected")
    for videos in reversed(micro_batches(config, forecast.cluster.num_gpus)):
        setting = Setting(config.changed(train={"micro_batch": videos}), policy)
        if predict_memory(setting, forecast.cluster, expected).total_gib <= forecast.cluster.memory_gib:
            return videos
    return None


def without_recomputing(forecast: Forecast) -> tuple[float, float] | None:
    """What a recipe that recomputes would be without: (GiB on each GPU, share of a step's compute time saved), expected.

    None where it recomputes nothing, or would not fit otherwise.
    """
    config, policy = forecast.setting
    if getattr(config.model, "checkpointing", "none") == "none":
        return None
    expected = forecast.assumptions.at("expected")
    setting = Setting(config.changed(model={"checkpointing": "none"}), policy)
    memory = predict_memory(setting, forecast.cluster, expected)
    if memory.total_gib > forecast.cluster.memory_gib:
        return None
    time = predict_time(setting, forecast.cluster, expected)
    return memory.total_gib, 1 - time.compute_s / forecast.time["expected"].compute_s


def check_fits(forecast: Forecast) -> None:
    """Raises ConfigError where the forecast needs more memory than each GPU has, with the way out."""
    asks = forecast.asks
    if forecast.margin_gib < 0:
        raise ConfigError(
            f"does not fit: {forecast.memory['expected'].total_gib:.1f} GiB expected on each {forecast.cluster.one}, "
            f"{forecast.cluster.memory_gib:.1f} GiB usable; the activations of {counted(forecast.setting.clips, asks.unit)} "
            f"take {forecast.memory['expected'].parts['activations'] / GIB:.1f} of them; {asks.way_out}"
        )
    if forecast.host_margin_gib < 0:
        raise ConfigError(
            f"does not fit: {forecast.memory['expected'].host_gib:.0f} GiB of host memory for each {forecast.cluster.one}, "
            f"{forecast.assumptions.host_memory_gib.value:g} expected to be there; say --host-memory where there is more, or "
            f"{asks.way_out}"
        )


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Everything as plain values."""
    config, asks, price = forecast.setting.config, forecast.asks, forecast.gpu_hour_price
    without, with_recompute = asks.flops
    comm = traffic_of(forecast.setting, forecast.cluster)
    return {
        "recipe": config.recipe,
        "cluster": {
            "gpu": forecast.cluster.gpu.model_dump(),
            "gpus": forecast.cluster.num_gpus,
            "nodes": forecast.cluster.num_nodes,
            "usable_gib": forecast.cluster.memory_gib,
        },
        "batch": {
            "global_batch": forecast.run.global_batch,
            "micro_batch": forecast.run.micro_batch,
            "views": forecast.run.views,
            "accumulation": forecast.run.accumulation,
            "clips_per_micro_step": forecast.run.clips_per_micro_step,
            "steps": forecast.run.num_steps,
            "warmup_steps": forecast.run.warmup_steps,
            "decay_steps": forecast.run.decay_steps,
            "first_step": forecast.run.first_step,
            "frozen_steps": forecast.run.own_frozen_steps,
            "videos": forecast.run.num_videos,
            "peak_lr": forecast.run.peak_lr,
        },
        "tokens": asks.counts,
        "params": asks.num_parameters,
        "params_learning": asks.num_learning,
        "flops_per_clip": {"model": without, "hardware": with_recompute},
        "flops_per_step": {
            "model": without * forecast.run.global_batch,
            "hardware": with_recompute * forecast.run.global_batch,
        },
        "memory_gib": {
            **{part: value / GIB for part, value in forecast.memory["expected"].parts.items()},
            "total": {end: forecast.memory[end].total_gib for end in ENDS},
            "margin": forecast.margin_gib,
            "host": forecast.memory["expected"].host_gib,
        },
        "fits": forecast.fits,
        "comm_bytes_per_step": {
            "intra_node": comm.intra_node,
            "inter_node": comm.inter_node,
            "collectives": [vars(collective) for collective in comm.collectives],
        },
        "step_s": {end: vars(forecast.time[end]) | {"total_s": forecast.time[end].total_s} for end in ENDS},
        "binds": forecast.time["expected"].binds,
        "largest_micro_batch": largest_micro_batch(forecast),
        "notes": [*notes_on(forecast.setting, forecast.cluster), *forecast.run.warnings()],
        "shm_bytes_of_loader": loader_bytes(config),
        "cores_per_gpu_needed": {end: forecast.cores_needed(end) for end in ENDS},
        "utilisation": {end: dict(zip(("mfu", "hfu"), forecast.utilisation(end), strict=True)) for end in ENDS},
        "hours": {end: forecast.hours(end) for end in ENDS},
        "frozen_step_s": {end: forecast.frozen_step_s(end) for end in ENDS} if forecast.run.own_frozen_steps else None,
        "gpu_hours": {end: forecast.gpu_hours(end) for end in ENDS},
        "gpu_hour_price": price,
        "cost": None if price is None else {end: price * forecast.gpu_hours(end) for end in ENDS},
        "assumptions": forecast.assumptions.model_dump(mode="json"),
    }


def describe_forecast(forecast: Forecast) -> str:
    """The forecast as text."""
    run, verdict = "\n".join(_run_lines(forecast)), "\n".join(_verdict(forecast))
    tables = _memory_table(forecast), _comm_table(forecast), _time_table(forecast)
    return "\n\n".join([run, *tables, verdict, assumptions_table(forecast.assumptions)])


def _run_lines(forecast: Forecast) -> list[str]:
    config, run = forecast.setting.config, forecast.run
    asks = forecast.asks
    without, with_recompute = asks.flops
    named = config.model.attention
    kernel = attention_kind(config, forecast.cluster.on_cpu) if named == "auto" else named
    checkpointing = config.model.checkpointing
    of_clip = f"{without / 1e9:.1f} GFLOP" if without < 1e13 else scaled(without, "FLOP")
    learning = "" if asks.num_learning == asks.num_parameters else f" ({scaled(asks.num_learning)} learn)"
    return [
        f"{config.recipe} on {forecast.cluster}",
        f"{scaled(asks.num_parameters)} parameters{learning}, {config.train.product_format}, {kernel} attention, "
        f"checkpointing {checkpointing}, ZeRO policy {config.train.ds_config}",
        asks.about,
        *run.lines(),
        f"videos from {forecast.videos_from}",
        f"work: {of_clip} a {asks.unit}, {scaled(without * run.global_batch, 'FLOP')} a step, "
        f"{scaled(forecast.model_flops, 'FLOP')} in all"
        + (
            f"; recomputation makes it {with_recompute / without:.2f} times as much" if with_recompute > without else ""
        ),
    ]


def _memory_table(forecast: Forecast) -> str:
    rows = [
        [part, *(f"{forecast.memory[end].parts[part] / GIB:.2f}" for end in ENDS)]
        for part in forecast.memory["expected"].parts
    ]
    rows.append(["total", *(f"{forecast.memory[end].total_gib:.2f}" for end in ENDS)])
    rows.append(["usable", *[f"{forecast.cluster.memory_gib:.2f}"] * 3])
    rows.append(["host memory", *(f"{forecast.memory[end].host_gib:.2f}" for end in ENDS)])
    rows.append(["/dev/shm of its loader", *[f"{loader_bytes(forecast.setting.config) / GIB:.2f}"] * 3])
    title = f"Memory of one {forecast.cluster.one}, GiB ({counted(forecast.setting.clips, forecast.asks.unit)} a micro step)"
    return table(title, ["part", *ENDS], rows)


def _comm_table(forecast: Forecast) -> str:
    comm = traffic_of(forecast.setting, forecast.cluster)
    rows = [[f"{c.kind} of {c.what} ({c.span})", scaled(c.payload, "B")] for c in comm.collectives]
    rows.append([f"one {forecast.cluster.one} sends inside its node", scaled(comm.intra_node, "B")])
    rows.append([f"one {forecast.cluster.one}'s share of the network", scaled(comm.inter_node, "B")])
    return table("Communication of one optimizer step", ["collective", "bytes"], rows)


def _time_table(forecast: Forecast) -> str:
    def row(name: str, of: str) -> list[str]:
        return [name, *(duration(getattr(forecast.time[end], of)) for end in ENDS)]

    asks = forecast.asks
    rows = [
        row("forward and backward", "compute_s"),
        row("communication, not hidden", "network_s"),
        row("communication, hidden", "hidden_s"),
        row("optimizer", "optimizer_s"),
        row("data supply (in parallel)", "data_s"),
        row("step", "total_s"),
        *[["step, the encoder frozen", *(duration(forecast.frozen_step_s(end)) for end in ENDS)]]
        * (forecast.run.own_frozen_steps > 0),
        ["whole recipe", *(duration(3600 * forecast.hours(end)) for end in ENDS)],
        [f"{forecast.cluster.one} hours", *(hours(forecast.gpu_hours(end)) for end in ENDS)],
        [f"{asks.unit}s a second", *(hours(forecast.run.global_batch / forecast.time[end].total_s) for end in ENDS)],
        ["MFU / HFU", *("{:.1%} / {:.1%}".format(*forecast.utilisation(end)) for end in ENDS)],
        [f"CPU cores to feed a {forecast.cluster.one}", *(f"{forecast.cores_needed(end):.1f}" for end in ENDS)],
    ]
    if frames := asks.counts.get("frames"):
        videos_s = (
            forecast.run.videos_per_step / forecast.cluster.num_gpus / forecast.time[end].total_s for end in ENDS
        )
        rows.append([f"frames a second for a {forecast.cluster.one}", *(f"{frames * each:,.0f}" for each in videos_s)])
    return table("Time of one optimizer step", ["part", *ENDS], rows)


def _verdict(forecast: Forecast) -> list[str]:
    time, gpu, spare_gib = forecast.time["expected"], forecast.cluster.one, forecast.margin_gib
    others = {end: forecast.time[end].binds for end in ("best", "worst")}
    unsure = (
        "" if set(others.values()) == {time.binds} else f" (best case {others['best']}, worst case {others['worst']})"
    )
    memory = f"{spare_gib:.1f} GiB to spare" if spare_gib >= 0 else f"{-spare_gib:.1f} GiB TOO MUCH"
    lines = [cost_line(forecast)] if forecast.gpu_hour_price is not None else []
    lines.append(f"binds: {time.binds}{unsure}; memory: {memory}")
    most = largest_micro_batch(forecast)
    if most != forecast.run.micro_batch:
        found = "no micro batch" if most is None else f"--train.micro-batch {most} is the largest that"
        lines.append(f"  as the rest stands, {found} fits")
    if (without := without_recomputing(forecast)) is not None:
        lines.append(
            f"  nothing needs to be recomputed: --model.checkpointing none takes {without[0]:.1f} GiB in all, and "
            f"{without[1]:.0%} off forward and backward"
        )
    lines += [f"  {note}" for note in notes_on(forecast.setting, forecast.cluster)]
    if forecast.host_margin_gib < 0:
        lines.append(f"  host memory: {-forecast.host_margin_gib:.1f} GiB a {gpu} TOO MUCH")
    if forecast.fits and forecast.memory["worst"].total_gib > forecast.cluster.memory_gib:
        lines.append("  but in the worst case it does not fit: see the memory table")
    if time.binds == "data":
        needed = forecast.cores_needed("expected")
        reading = reading_cores(forecast.setting.config, forecast.assumptions)
        lines.append(
            f"  the {gpu}s wait for videos: {needed:.1f} cores a {gpu} are needed, {reading:g} read; --data.workers, "
            + ("--data.views, " if forecast.run.views > 1 else "")
            + "short GOPs or more cores help (docs/DATA.md)"
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
