"""Whether a resumed run is still the same run: what it shares besides its settings, and which settings may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.stages import read_as_written
from vmae2_ds.config.tad_head import DetectConfig
from vmae2_ds.config.trackers import TrackConfig
from vmae2_ds.errors import ConfigError

MAY_CHANGE = {
    "train": {"runs", "run", "resume", "stop_after_steps", "save_every", "keep", "log_every", "tensorboard"}
    | {"keep_every_hours", "keep_best", "max_failed_saves", "copy_to", "save_behind", "validate_every"}
    | {"max_nonfinite_steps", "peak_flops", "collective_timeout_s", "time_limit"}
    # in which order kernels add, and how much time that may take
    | {"deterministic"}
    # how the same global batch and the same states are split: elastic.py goes on from there
    | {"micro_batch", "ds_config", "ds_zero_init"},
    "data": {"workers", "prefetch", "max_bad_share", "read_timeout_s", "labels", "val_subset", "val_tious", "overlap"}
    | {"cache", "cache_folder"}
    # what a validation sees
    | {
        "val_truth",
        "val_excluded",
        "val_boxes",
        "val_videos",
        "val_every_s",
        "val_every",
        "val_protocol",
        "test_short_side",
        "person_score",
    },
    "detect": set(DetectConfig.model_fields),
    "distil": {"teacher", "teacher_sharded", "cache", "cache_dtype"},
    "guard": set(GuardConfig.model_fields),
    "track": set(TrackConfig.model_fields),
}
"""Settings that do not change what is learnt: a run may be resumed with others. Who the teacher is, and what the classes
are called, is in its identity."""
MAY_CHANGE_INSIDE = {"adapters": {"clips_at_once"}}
"""The same, of settings that are sections themselves."""


def differing_settings(
    config: RunConfig, identity: dict[str, Any], path: Path, besides: Mapping[str, set[str]] | None = None
) -> list[str]:
    """What changes the result and differs from the run in folder `path`, as "a.b: was x, now y".

    `besides`: by section, settings that may differ beside MAY_CHANGE.
    """
    try:
        before = read_as_written(path).model_dump(mode="json")
        identity_before = json.loads((path / "identity.json").read_text())
    except (OSError, ValueError, ConfigError) as error:
        return [f"{path} cannot be read ({str(error).splitlines()[0]})"]
    now = config.model_dump(mode="json")
    different = [
        f"{section}.{key}: was {before[section][key]}, now {value}"
        for section, values in now.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if key not in MAY_CHANGE.get(section, set()) | (besides or {}).get(section, set())
        and _settled(key, before[section][key]) != _settled(key, value)
    ]
    said = {
        "manifest": f"--data.manifest: the content of {config.data.manifest}",
        "labels": f"--data.labels: the names in {getattr(config.data, 'labels', None)}",
        "ds_config": f"--train.ds-config: in the content of {config.train.ds_config} more than how states are split",
        "teacher": "--teacher: the model that answers",
        "actions": "--data.label-map: the actions that it names",
        "answers": "--distil.cache: where the teacher's answers come from",
    }
    identity_now = {**identity, "ds_config": _beyond_splitting(identity["ds_config"])}
    identity_before["ds_config"] = _beyond_splitting(identity_before["ds_config"])
    named = getattr(config.data, "annotations", None)
    if truth := getattr(config.data, "truth", None):
        said["manifest"] = (
            f"--data.truth: what {truth[0]}, or another file of it, boxes or exclusions, says of the key frames"
        )
    if named is not None:
        said["manifest"] = f"--data.annotations: what {named} says of the subset"
    changed = [
        name for name in {**identity_before, **identity_now} if identity_now.get(name) != identity_before.get(name)
    ]
    for name in changed:
        if name == "features":
            different += _fields(identity_before.get(name, {}), identity_now.get(name, {}))
        else:
            different.append(f"{said.get(name, f'--data.mixture: {name}')} has changed")
    return different


def _settled(key: str, value: Any) -> Any:
    """A setting without what may change in it."""
    loose = MAY_CHANGE_INSIDE.get(key)
    return value if loose is None else {name: inner for name, inner in value.items() if name not in loose}


def _fields(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which fields of what features are have changed."""
    return [
        f"--data.features: {key} was {before.get(key)}, now {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _beyond_splitting(policy: dict[str, Any]) -> dict[str, Any]:
    """What of a ZeRO policy changes the numbers: not the stage, buckets or offload, but dtypes and quantised traffic."""
    zero = {
        key: value for key, value in policy.get("zero_optimization", {}).items() if key.startswith("zero_quantized")
    }
    return {**policy, "zero_optimization": {key: value for key, value in zero.items() if value}}
