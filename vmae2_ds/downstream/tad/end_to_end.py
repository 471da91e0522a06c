"""Detection end to end: frames through a frozen encoder with adapters, its features over time into the pyramid (AdaTAD)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.config.tad import TadConfig, TadModelConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.adapters import adapted_macs
from vmae2_ds.cost.detection import detector_shape
from vmae2_ds.downstream.tad.pyramid import ActionPyramid, PyramidOutput
from vmae2_ds.downstream.tad.video_data import FramesDataset
from vmae2_ds.model.adapters import AdaptedEncoder
from vmae2_ds.model.kernel_support import AttentionShape
from vmae2_ds.train.stage import Extras, Stage

# B windows, F frames, T positions, D width.


class EndToEndDetector(AdaptedEncoder):
    """A pyramid on the features of an encoder with adapters. Adapters and pyramid learn; the rest has no gradient."""

    def __init__(
        self, config: TadModelConfig, geometry: ClipGeometry, length: int = 1, seed: int | None = None
    ) -> None:
        """`length` is that of training, in positions; no weight depends on it."""
        super().__init__(config, geometry, config.adapters, seed=None)
        self.config = config
        self.pyramid = ActionPyramid(config.encoder.width, config.num_classes, config.head, length)
        if seed is not None:
            self.init_weights(seed)

    def forward(self, window_BFHWC: Tensor, is_real_BT: Tensor) -> PyramidOutput:  # type: ignore[override]
        """Windows of frames, uint8 or in [0, 1], and which positions are real -> what every point says."""
        return self.pyramid(super().forward(window_BFHWC, is_real_BT.shape[1]), is_real_BT)

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw first weights as the pyramid and the adapters say."""
        if name.startswith("pyramid."):
            self.pyramid.draw(name.removeprefix("pyramid."), values, rng)
        else:
            super().draw(name, values, rng)


def end_to_end(stage: Stage, config: TadConfig) -> Stage:
    """The stage of a head on features, with frames in their place."""
    data, model, shape = config.data, config.model, detector_shape(config)
    assert shape.encoder is not None, "frames need one"
    encoder, clips, macs = model.encoder, shape.clips, adapted_macs(shape.encoder)
    adapted = f"adapters behind {len(shape.encoder.numbers)} of {encoder.depth} frozen blocks"

    def attention_shapes(plan: RunPlan) -> tuple[AttentionShape, ...]:
        at_once = min(clips * plan.micro_batch, model.adapters.clips_at_once)
        return ((at_once, config.geometry.num_cubes, encoder.heads, encoder.width // encoder.heads),)

    about = (
        f"windows of {data.window_frames} frames, {data.stride} apart, of {data.videos}: {counted(clips, 'clip')} through "
        f"the encoder, {clips * macs.forward / 1e9:.2f} forward GMACs"
    )
    return replace(
        stage,
        dataset=lambda mixture: FramesDataset(config, mixture),
        attention_shapes=attention_shapes,
        about_clip=(f"{adapted}; the pyramid on {data.length} positions, {model.num_classes} classes"),
        has_draws=stage.has_draws or model.drop_path > 0,
        needs_init=True,
        # not three forward passes: frozen weights have no gradient, and blocks up to the first adapter no backward pass
        extras=lambda mixture, ranks: Extras(frozen_macs=clips * (macs.forward + macs.backward), about=(about,)),
    )
