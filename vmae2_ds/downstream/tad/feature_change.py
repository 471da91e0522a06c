"""How much the features of a long video change from one window to the next: the strip under a timeline's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vmae2_ds.downstream.features.sidecar import read_feature_info, read_features
from vmae2_ds.draw.timeline import ChangeStrip
from vmae2_ds.errors import DataError


def read_change(folder: Path, name: str, duration_s: float) -> ChangeStrip:
    """One less the cosine of neighbouring features, as a share of the largest in the video, at the time between both windows.

    Where nobody says the video's frame rate, features are taken as spread evenly over `duration_s`.

    Raises DataError as `read_features`, and where the features are no vectors along time.
    """
    info = read_feature_info(folder)
    if info.pooling != "window":
        raise DataError(f"{folder} has features by {info.pooling}, not a vector a window; extract with --what windows")
    feature_TD, about = read_features(folder, name, info)
    if len(feature_TD) < 2:
        raise DataError(f"{folder / name}.npy has {len(feature_TD)} features, of which none follows another")
    feature_TD = np.asarray(feature_TD, np.float32)
    length_T = np.linalg.norm(feature_TD, axis=1)
    cosine_S = (feature_TD[1:] * feature_TD[:-1]).sum(axis=1) / np.maximum(length_T[1:] * length_T[:-1], 1e-12)
    time_S: np.ndarray
    between_S = np.arange(len(cosine_S)) + 0.5
    if about.fps is None:
        time_S = (between_S + 0.5) / len(feature_TD) * duration_s
    else:
        time_S = (about.start + between_S * info.stride + info.offset_frames) / about.fps
    change_S = np.maximum(0.0, 1.0 - cosine_S)
    return ChangeStrip(time_S, change_S / max(float(change_S.max()), 1e-12))
