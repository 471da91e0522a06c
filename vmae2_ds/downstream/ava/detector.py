"""The people of a list of key frames before the model, shared by the ranks, in batches that do not depend on their number."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.ava.dataset import KeyFrameClip, KeyFrameClips, padded
from vmae2_ds.downstream.ava.objective import NameActions

log = logging.getLogger(__name__)

# B clips, G boxes of a clip (with padding in a batch), C actions.


class FoundInFrame(NamedTuple):
    """What the model says of a key frame."""

    row: int
    """Number of the key frame in its list."""
    probability_GC: NDArray[np.float32] | None
    """How likely each action is in each box; None where the frames around it could not be read."""
    reason: str | None
    """Why not."""


class _Seen(NamedTuple):
    """What the model takes."""

    clip_BTHWC: Tensor
    box_BG4: Tensor
    picture_B2: Tensor


class _Pass(NamedTuple):
    """Clips of one height and width for the model, or clips that are not there, for which it is not asked."""

    clips: list[KeyFrameClip]
    seen: _Seen | None
    """What is shown to the model. Without clips: a blank pass, beside those of other ranks."""


def chunks_of(rows: Sequence[int], at_once: int) -> list[Sequence[int]]:
    """The rows in pieces that are batched apart: what the model says of a row is a function of its piece alone, to the bit."""
    return [rows[first : first + at_once] for first in range(0, len(rows), at_once)]


@torch.no_grad()
def name_actions(
    objective: NameActions, clips: KeyFrameClips, chunks: Sequence[Sequence[int]], ranks: Ranks
) -> Iterator[FoundInFrame]:
    """What the model says of each key frame of these chunks, chunk by chunk.

    With several `ranks` all of them have to ask, and make the same number of forward passes, which ZeRO-3 gathers weights for:
    those with fewer make blank ones. One that has its weights to itself gives `Ranks()`.
    """
    device = next(objective.parameters()).device
    passes = _passes(clips, chunks, ranks)

    def move(one: _Pass) -> tuple[Tensor, ...] | None:
        return None if one.seen is None else tuple(x.to(device, non_blocking=True) for x in one.seen)

    def ask(seen: tuple[Tensor, ...]) -> list[Tensor]:
        return [objective.probabilities(*seen)]

    was_training = objective.training
    objective.eval()
    try:
        for one, answers in ask_ahead(passes, move, ask, device):
            for place, clip in enumerate(one.clips):
                # a copy: a view would keep the batch's answers, on CUDA in memory that is locked for copying
                found = answers[0][place, : len(clip.box_G4)].numpy().copy() if answers else None
                yield FoundInFrame(clip.row, found, clip.reason)
    finally:
        objective.train(was_training)


def _passes(clips: KeyFrameClips, chunks: Sequence[Sequence[int]], ranks: Ranks) -> Iterator[_Pass]:
    """The chunks as passes, as many of them with clips, or blank, as every other rank has."""
    read = clips.iterate([row for chunk in chunks for row in chunk])
    for number in range(int(ranks.max(len(chunks))[0])):
        some = list(islice(read, len(chunks[number]))) if number < len(chunks) else []
        if unread := [clip for clip in some if clip.clip_THWC is None]:
            yield _Pass(unread, None)
        seen = [clip for clip in some if clip.clip_THWC is not None]
        alike = [list(group) for _, group in groupby(seen, key=_shape)]
        longest = int(ranks.max(len(alike))[0])
        for group in alike:
            yield _Pass(group, _batch(group))
        for _ in range(longest - len(alike)):
            yield _Pass([], _blank(clips))


def _shape(clip: KeyFrameClip) -> tuple[int, ...]:
    assert clip.clip_THWC is not None, "those that were read"
    return tuple(clip.clip_THWC.shape)


def _batch(alike: list[KeyFrameClip]) -> _Seen:
    """Clips of one shape, and their boxes, zeros where one has fewer than another."""
    clips = [clip.clip_THWC for clip in alike if clip.clip_THWC is not None]
    box_BG4, _ = padded([clip.box_G4 for clip in alike])
    return _Seen(torch.stack(clips), box_BG4, torch.stack([clip.picture_2 for clip in alike]))


def _blank(clips: KeyFrameClips) -> _Seen:
    """A clip of nothing."""
    frames, size = clips.data.num_frames, clips.data.size
    clip_BTHWC = torch.zeros(1, frames, size, size, 3, dtype=torch.uint8)
    return _Seen(clip_BTHWC, torch.zeros(1, 1, 4), torch.tensor([[size, size]]))
