"""Probes that are trained: heads of several rates and decays at once; a held-out part of the training set chooses one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.dist import default_device
from vmae2_ds.downstream.probe.folds import Features
from vmae2_ds.downstream.probe.heads import HEADS, WEIGHT_DECAYS, HeadKind, draw_weights
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)

# V videos, M heads, B videos of a batch, C classes.


class FeatureScale(NamedTuple):
    """What features are standardised by, channel by channel: a vector that all tokens share would hide what differs."""

    mean_F: np.ndarray
    deviation_F: np.ndarray


HELD_SHARE = 0.2
"""Part of the training set that chooses the rate and the decay."""


@dataclass(frozen=True)
class TrainedProbe:
    """AdamW with a cosine to zero on features that are already there: `probe(train, test features, classes)`."""

    kind: str
    """linear, on one vector a video; attentive, on its tokens."""
    epochs: int = 50
    batch: int = 16
    """Videos in a step."""
    seed: int = 0
    """Seed of first weights, order and held-out part."""

    def __call__(self, train: Features, test_VF: np.ndarray, num_classes: int) -> np.ndarray:
        """Predicted labels of the test videos (V,): the setting is chosen without them, then learns on all of `train`.

        Raises ConfigError for vectors where tokens are needed, or the other way round.
        """
        about = HEADS[self.kind]
        is_tokens = self.kind == "attentive"
        if (train.feature_VF.ndim == 3) != is_tokens:
            raise ConfigError(
                f"the {self.kind} probe needs {'tokens (V, N, D)' if is_tokens else 'one vector a video (V, F)'}, "
                f"not features of shape {train.feature_VF.shape}"
            )
        scale = _scale_of(train.feature_VF)
        settings = [(lr, decay) for lr in about.lrs for decay in WEIGHT_DECAYS]
        is_held_V = hold_out(train, self.seed)
        rows, held = np.flatnonzero(~is_held_V), np.flatnonzero(is_held_V)
        heads = self._fit(train, rows, num_classes, settings, scale)
        logits_MVC = _predict(about, heads, train.feature_VF, held, scale)
        label_V = torch.from_numpy(train.label_V[held])
        losses = [float(F.cross_entropy(logits_VC, label_V)) for logits_VC in logits_MVC]
        right = [float((logits_VC.argmax(dim=1) == label_V).double().mean()) for logits_VC in logits_MVC]
        best = min(range(len(settings)), key=lambda number: (-right[number], losses[number]))
        lr, decay = settings[best]
        log.info(
            "%s probe: of %d settings lr %g with weight decay %g names %.1f %% of %d held-out training videos",
            self.kind, len(settings), lr, decay, 100 * right[best], len(held),
        )  # fmt: skip
        chosen = self._fit(train, np.arange(len(train.label_V)), num_classes, [settings[best]], scale)
        (logits_VC,) = _predict(about, chosen, test_VF, np.arange(len(test_VF)), scale)
        return logits_VC.argmax(dim=1).numpy()

    def _fit(
        self,
        train: Features,
        rows: np.ndarray,
        num_classes: int,
        settings: Sequence[tuple[float, float]],
        scale: FeatureScale,
    ) -> list[nn.Module]:
        """A head a setting, all drawn alike and shown the same videos in the same order."""
        about, device = HEADS[self.kind], default_device()
        width = train.feature_VF.shape[-1]
        drawn = [
            draw_weights(about.make(width, num_classes), torch.Generator().manual_seed(self.seed)) for _ in settings
        ]
        heads = [head.to(device) for head in drawn]
        groups = [
            {"params": list(head.parameters()), "lr": lr, "weight_decay": decay}
            for head, (lr, decay) in zip(heads, settings, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * -(-len(rows) // self.batch))
        rng = np.random.default_rng(self.seed)
        ticker = Ticker(
            log, f"epochs of the {self.kind} probe, {counted(len(settings), 'setting')} side by side", self.epochs
        )
        with heard(ticker):
            for epoch in range(self.epochs):
                ticker.tell(epoch)
                order = rng.permutation(rows)
                for x, batch in _batches(train.feature_VF, order, self.batch, scale):
                    label_B = torch.from_numpy(train.label_V[batch]).to(device)
                    logits_MBC = about.logits(heads, x)
                    # a sum over heads: each one's gradient is that of its own mean loss
                    loss = torch.stack([F.cross_entropy(logits_BC, label_B) for logits_BC in logits_MBC]).sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return heads


def _scale_of(feature_VF: np.ndarray) -> FeatureScale:
    """Mean and deviation of each channel over all videos and tokens; read video by video, as they may lie on disk."""
    count = feature_VF.size // feature_VF.shape[-1]
    total_F, squares_F = np.zeros(feature_VF.shape[-1]), np.zeros(feature_VF.shape[-1])
    for x in feature_VF:
        x_NF = x.reshape(-1, x.shape[-1]).astype(np.float64)
        total_F += x_NF.sum(axis=0)
        squares_F += (x_NF**2).sum(axis=0)
    mean_F = total_F / count
    deviation_F = np.sqrt(np.maximum(0, squares_F / count - mean_F**2))
    return FeatureScale(mean_F.astype(np.float32), np.where(deviation_F > 0, deviation_F, 1.0).astype(np.float32))


def hold_out(train: Features, seed: int) -> np.ndarray:
    """Which training videos choose (V,): whole sources where those left have every class, else a part of every class."""
    rng = np.random.default_rng((seed, 1))
    wanted = HELD_SHARE * len(train.label_V)
    is_held_V = np.zeros(len(train.label_V), bool)
    for source in rng.permutation(np.unique(train.source_V)):
        if is_held_V.sum() < wanted:
            is_held_V |= train.source_V == source
    if is_held_V.all() or set(train.label_V[~is_held_V]) != set(train.label_V):
        is_held_V[:] = False
        for label in np.unique(train.label_V):
            rows = rng.permutation(np.flatnonzero(train.label_V == label))
            is_held_V[rows[: max(1, round(HELD_SHARE * len(rows)))] if len(rows) > 1 else []] = True
    if not is_held_V.any():
        videos = len(train.label_V)
        raise ConfigError(f"{videos} training videos, one of each class, leave none to choose by; list more")
    return is_held_V


@torch.inference_mode()
def _predict(
    about: HeadKind,
    heads: Sequence[nn.Module],
    feature_VF: np.ndarray,
    rows: np.ndarray,
    scale: FeatureScale,
) -> Tensor:
    """(M, V, C) on the host."""
    return torch.cat([about.logits(heads, x).cpu() for x, _ in _batches(feature_VF, rows, 64, scale)], dim=1)


def _batches(
    feature_VF: np.ndarray, rows: np.ndarray, batch: int, scale: FeatureScale
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Standardised float32 features on the device, and their rows."""
    for first in range(0, len(rows), batch):
        these = rows[first : first + batch]
        x = (feature_VF[these].astype(np.float32) - scale.mean_F) / scale.deviation_F
        yield torch.from_numpy(x).to(default_device()), these
