"""The weights that a run starts from: what `train.init` has for its model, and what is said of the rest."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.model.embed import is_resized
from vmae2_ds.runs.open import DECODER, LoadReport, about_source, load_for, read_head_map
from vmae2_ds.weights.about import AboutWeights
from vmae2_ds.weights.layouts import StateDict

log = logging.getLogger(__name__)

MANY_NAMES = 16
"""Names that a warning still lists."""


def initial_weights(config: RunConfig) -> StateDict:
    """What `train.init` has for the run's model, under our names; nothing where it is not set. Logs the report.

    Raises CheckpointError and ConfigError as `load_for`.
    """
    source = config.train.init
    if source is None:
        return {}
    head_map = None
    if config.head_map is not None and config.classes is not None:
        head_map = read_head_map(config.head_map, config.classes)
    new_decoder = isinstance(config, PretrainConfig) and config.objective.new_decoder
    weights, report = load_for(source, config.model, head_map, new_decoder=new_decoder)
    about = about_source(source)
    log.info("%s: %s", source, report)
    if report.new:
        lacks = "leaves these out" if new_decoder else "does not have these"
        log.warning("%s %s; they are newly drawn: %s", source, lacks, _by_part(report.new))
    if isinstance(config, PretrainConfig) and (warning := _about_decoder(config, report, about)):
        log.warning("%s: %s", source, warning)
    if (other := _other_clip(config, about)) is not None:
        log.info("%s: %s", source, other)
    return weights


def _by_part(names: Sequence[str]) -> str:
    """All of them; of many how many there are in each part of the model."""
    if len(names) <= MANY_NAMES:
        return ", ".join(names)
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({counted(count, 'tensor')})" for part, count in counts.items())


def _about_decoder(config: PretrainConfig, report: LoadReport, about: AboutWeights) -> str | None:
    """What a decoder that is newly drawn, or was trained on another target, does at first, and the way out."""
    if any(name.startswith(DECODER) for name in report.new):
        if config.frozen_steps:
            return None
        return (
            "a decoder that is newly drawn moves the encoder by what it does not know yet: let it learn alone for as many "
            "steps as the warm-up has, with --optim.freeze-encoder-steps N"
        )
    if about.target in (None, config.target):
        return None
    return (
        f"its decoder was trained to predict {about.target}, and this run's target is {config.target}: --objective.target "
        f"{about.target} goes on with it, --objective.new-decoder draws one for the other target"
    )


def _other_clip(config: RunConfig, about: AboutWeights) -> str | None:
    """How positions change where the weights were trained on other clips; None where they do not, or nobody knows."""
    model, before, now = config.model, about.clip or {}, config.data
    if model.positions_from is not None or is_resized(model):
        return None
    frames, size = before.get("num_frames"), before.get("size")
    if None in (frames, size) or (frames, size) == (now.num_frames, now.size):
        return None
    return (
        f"its clips had {frames} frames of {size}, these have {now.num_frames} of {now.size}: positions are "
        f"rebuilt, as published; --model.positions-from {frames} {size} interpolates them instead"
    )
