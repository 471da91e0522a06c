"""Clips cut on a GPU: within one grey level of those cut on the CPU, whatever the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vmae2_ds.data.clips.crops import crop_resize, draw_crop
from vmae2_ds.data.clips.device_crops import UncutBatch

pytestmark = pytest.mark.gpu


def test_cutting_on_the_device_is_cutting_on_the_cpu() -> None:
    rng = np.random.default_rng(0)
    videos = [
        torch.from_numpy(rng.integers(0, 256, (16, h, w, 3), dtype=np.uint8)) for h, w in ((240, 320), (256, 170))
    ]
    scales = (1.0, 0.875, 0.75, 0.66)
    boxes = [draw_crop(*video.shape[1:3], 224, scales, rng, flip=0.5) for video in videos for _ in range(4)]
    masks = (torch.arange(3).repeat(8, 1), torch.arange(5).repeat(8, 1), torch.ones(8, 5, dtype=torch.bool))
    batch = UncutBatch(videos, boxes, 224, *masks)
    on_cpu, on_gpu = batch.to("cpu"), batch.to("cuda")
    assert on_gpu.clip_BTHWC.dtype == torch.uint8
    assert on_gpu.clip_BTHWC.shape == (8, 16, 224, 224, 3)
    assert (on_gpu.clip_BTHWC.cpu().int() - on_cpu.clip_BTHWC.int()).abs().max() <= 1
    assert torch.equal(on_gpu.decode_BM.cpu(), on_cpu.decode_BM)


def test_shading_on_the_device_is_shading_on_the_cpu() -> None:
    """A level from the resize is 1.3 after the brightness and 2.6 after the contrast, each rounded: three levels at most."""
    rng = np.random.default_rng(0)
    video = torch.from_numpy(rng.integers(0, 256, (16, 240, 320, 3), dtype=np.uint8))
    for _ in range(8):
        box = draw_crop(240, 320, 224, (1.0, 0.75), rng, jitter=0.3)
        on_cpu, on_gpu = crop_resize(video, box, 224), crop_resize(video.cuda(), box, 224)
        assert (on_gpu.cpu().int() - on_cpu.int()).abs().max() <= 3
