"""The table of probes: ridge and k-NN in closed form, and the two that are trained."""

from __future__ import annotations

import numpy as np

from vmae2_ds.downstream.probe.folds import Features, ProbeFn
from vmae2_ds.downstream.probe.trained import TrainedProbe

# V videos, F features, C classes.

ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-3, 6))
"""Ridge penalties that leave-one-out chooses from, on standardised features."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Number of neighbours and temperature of their votes in k-NN, as in DINO (arXiv 2104.14294)."""


def ridge(train: Features, test_VF: np.ndarray, num_classes: int) -> np.ndarray:
    """Least squares on centred one-hot labels and standardised features; the penalty that names most videos right left out.

    Leave-one-out has a closed form (Golub, Heath and Wahba 1979): error_i / (1 - hat_ii). It is asked for its accuracy, the
    squared error breaking ties: by the error alone, few videos of many features get a penalty that flattens everything.
    """
    train_VF = train.feature_VF
    mean_F, std_F = train_VF.mean(axis=0), train_VF.std(axis=0)
    std_F = np.where(std_F > 0, std_F, 1.0)
    x_VF, test_VF = (train_VF - mean_F) / std_F, (test_VF - mean_F) / std_F
    target_VC = np.eye(num_classes)[train.label_V]
    offset_C = target_VC.mean(axis=0)
    u_VR, s_R, vt_RF = np.linalg.svd(x_VF, full_matrices=False)
    projected_RC = u_VR.T @ (target_VC - offset_C)

    def left_out(alpha: float) -> tuple[int, float]:
        shrink_R = s_R**2 / (s_R**2 + alpha)
        fitted_VC = u_VR @ (shrink_R[:, None] * projected_RC)
        hat_V = (u_VR**2) @ shrink_R + 1 / len(x_VF)  # 1 / V: the offset
        error_VC = (target_VC - offset_C - fitted_VC) / np.maximum(1e-12, 1 - hat_V)[:, None]
        wrong = int(((target_VC - error_VC).argmax(axis=1) != train.label_V).sum())
        return wrong, float((error_VC**2).sum())

    best = min(ALPHAS, key=left_out)
    weight_FC = vt_RF.T @ ((s_R / (s_R**2 + best))[:, None] * projected_RC)
    return (test_VF @ weight_FC + offset_C).argmax(axis=1)


def knn(train: Features, test_VF: np.ndarray, num_classes: int) -> np.ndarray:
    """The class with most weight among the nearest by cosine of centred features, weighted by exp(cosine / temperature)."""
    mean_F = train.feature_VF.mean(axis=0)
    train_VF, test_VF = (
        centred / np.maximum(1e-12, np.linalg.norm(centred, axis=1, keepdims=True))
        for centred in (train.feature_VF - mean_F, test_VF - mean_F)
    )
    cosine = test_VF @ train_VF.T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :NEIGHBOURS]
    weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / TEMPERATURE)
    votes = np.zeros((len(test_VF), num_classes))
    np.add.at(votes, (np.arange(len(test_VF))[:, None], train.label_V[nearest]), weight)
    return votes.argmax(axis=1)


PROBES: dict[str, ProbeFn] = {
    "ridge": ridge,
    "knn": knn,
    "linear": TrainedProbe("linear"),
    "attentive": TrainedProbe("attentive"),
}
"""Probes by name; the attentive one takes tokens, the others a vector a video."""
