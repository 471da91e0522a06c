"""What is read out of a frozen encoder of the desk, of a random one and of the pixels."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import Row
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.config.run import RunConfig
from vmae2_ds.downstream.probe.fit import PROBES
from vmae2_ds.downstream.probe.folds import probe_accuracy
from vmae2_ds.downstream.probe.frozen import FrozenEncoder, features_of, views_of
from vmae2_ds.runs.folder import find_checkpoint

VIEWS = {"ridge": "mean", "motion": "motion", "attentive": "tokens"}
"""By how a frozen encoder is probed, what of it: ridge and motion by ridge."""


def random_frozen(run: RunConfig, seed: int) -> FrozenEncoder:
    """An encoder like that of the run, drawn anew, and not as pre-training of this seed drew the one that it started from."""
    return FrozenEncoder(run, None, 1000 + seed)


def probe_frozen(source: Path, seed: int, how: str, train: Path, val: Path | None, roles: set[str]) -> dict[str, Row]:
    """Accuracy and number of test videos of `run`, of a `random` encoder drawn from `seed`, and of `pixels`.

    Without `val` each source of `train` is left out once.
    """
    run, checkpoint = find_checkpoint(source)
    encoders = views_of(FrozenEncoder(run, read_weights(checkpoint)), random_frozen(run, seed), VIEWS[how])
    encoders = {name: encode for name, encode in encoders.items() if name in roles}
    parts = [features_of(run, encoders, listed, None, clips=1) for listed in (train, val) if listed is not None]
    results = {}
    for name in encoders:
        accuracy, videos = probe_accuracy(
            parts[0][name], parts[1][name] if val else None, PROBES["attentive" if how == "attentive" else "ridge"]
        )
        results[name] = {"accuracy": accuracy, "videos": videos}
    return results
