"""What is wrong with a run and can be seen without torch: nobody waits for its import to learn of a slip."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from vmae2_ds import host
from vmae2_ds.config.distil import INDEX, DistilConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.stages import STAGES
from vmae2_ds.config.trackers import check_installed
from vmae2_ds.console.progress import counted
from vmae2_ds.data.sources.inputs import Inputs, read_inputs
from vmae2_ds.data.sources.labels import check_labels
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.data.sources.mixture import Mixture, check_videos_are_named
from vmae2_ds.disk import check_out_folder
from vmae2_ds.dist import LOCAL_SIZES, NODES, Ranks, map_rank_variables
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)

WORKERS_A_CORE = 4


def first_look(config: RunConfig, *, learns: bool = True) -> Inputs | None:
    """What the run reads of its files, for it to go on with; None where ranks have to meet first.

    Raises ConfigError or DataError for what the run would refuse once torch is there; warns of too many workers.

    What only the command line decides is looked at everywhere. Files are looked at where all ranks are on this host, so
    that all of them end alike; on several hosts the start-up check reads them, and names the host where one is amiss.

    Without `learns` its videos are looked at by a teacher alone, and need no labels.
    """
    check_shapes(config)
    entry = STAGES[config.stage]
    if entry.videos is None:
        check_videos_are_named(config.data)
    entry.check_settings(config)
    ranks = map_rank_variables({**os.environ})
    if ranks.local_rank == 0:
        _warn_of_workers(config, _ranks_here(ranks, os.environ))
    return _look_at_files(config, ranks, learns=learns) if _on_one_host(ranks, os.environ) else None


def check_shapes(config: RunConfig) -> None:
    """Raises ConfigError for shapes that cannot be, on whatever host the files are."""
    _ = config.geometry
    try:
        _ = config.model.positions_geometry
    except ConfigError as error:
        said = str(error).replace("--data.num-frames", "its frames,").replace("--data.size", "its size,")
        raise ConfigError(f"--model.positions-from: {said}") from None


def check_classes_of(config: RunConfig, mixture: Mixture | None, validation: Manifest | None) -> None:
    """Raises ConfigError where a video's label is none of the model's classes, or missing where the run learns from labels."""
    if validation is not None and config.classes is not None:
        check_labels(validation, config.classes)
    if mixture is not None and config.learnt_classes is not None:
        for source in mixture.sources:
            check_labels(source.manifest, config.learnt_classes)


def cache_of(config: DistilConfig) -> Path:
    """The folder that distil-cache fills. Raises ConfigError where none is named."""
    if config.distil.cache is None:
        raise ConfigError("no folder named for the answers: give --distil.cache FOLDER")
    return config.distil.cache


def check_cache(folder: Path) -> None:
    """Raises ConfigError unless answers can be written into it: a new or empty folder, or one of answers."""
    check_out_folder(folder, "--distil.cache", is_ours=lambda path: (path / INDEX).is_file())


def _on_one_host(ranks: Ranks, env: Mapping[str, str]) -> bool:
    return ranks.size == _ranks_here(ranks, env) or any(env.get(name) == "1" for name in NODES)


def _ranks_here(ranks: Ranks, env: Mapping[str, str]) -> int:
    """Ranks on this host; 1 where nothing says."""
    said = env.get(LOCAL_SIZES.get(ranks.launcher, ""), "") or env.get("LOCAL_SIZE", "")  # `deepspeed` has its own
    return int(said) if said.isdigit() else 1


def _warn_of_workers(config: RunConfig, ranks: int) -> None:
    cores = host.cores().usable
    if config.data.workers * ranks > WORKERS_A_CORE * cores:
        log.warning(
            "--data.workers %d: %s here start %d loader processes on %d cores; more than %d for each core only wait",
            config.data.workers, counted(ranks, "rank"), config.data.workers * ranks, cores, WORKERS_A_CORE,
        )  # fmt: skip


def _look_at_files(config: RunConfig, ranks: Ranks, *, learns: bool) -> Inputs:
    for option, path in config.read_at_the_start.items():
        if path is not None and not path.exists():
            raise ConfigError(f"{option} {path}: there is no such file or folder")
    check_installed(config.track)
    inputs = read_inputs(config)
    plan_run(config, inputs.mixture.num_videos, ranks.size)
    check_classes_of(config, inputs.mixture if learns else None, inputs.validation)
    return inputs
