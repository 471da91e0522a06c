"""An encoder and a head that says of each person's box what the person does."""

from __future__ import annotations

from torch import Tensor

from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.downstream.ava.roi_head import RoiHead
from vmae2_ds.model.embed import every_cube, normalise_pixels, table_of_picture
from vmae2_ds.model.whole_clip import WholeClipModel

# B clips, T frames, H x W pixels, G boxes of a clip (with padding), D width, C classes; T' x H' x W' cubes.


class PersonActionModel(WholeClipModel):
    """The encoder with its final norm, on clips of any height and width, and a head on boxes.

    Positions are those of the training clip, or of --model.positions-from, resized to the clip at hand (`table_of_picture`).
    """

    def __init__(self, config: AvaModelConfig, geometry: ClipGeometry, seed: int | None = None) -> None:
        """`geometry` is that of a training clip."""
        super().__init__(config, geometry, final_norm=True, head_init_scale=config.head.init_scale)
        self.config = config
        self.head = RoiHead(config.encoder.width, config.num_classes, config.head, config.patch)
        if seed is not None:
            self.init_weights(seed)

    def forward(self, clip_BTHWC: Tensor, box_BG4: Tensor, picture_B2: Tensor | None = None) -> Tensor:
        """Clips of one height and width, uint8 or in [0, 1], and boxes in their pixels -> logits (B, G, C), float32.

        What comes of boxes that are padding means nothing. `picture_B2` is as of `RoiHead`: in a test, extended boxes do not
        leave the picture for what was filled up. Raises ConfigError for clips that are no multiple of a cube.
        """
        return self.head(self.features(clip_BTHWC), box_BG4, picture_B2)

    def features(self, clip_BTHWC: Tensor) -> Tensor:
        """Every token behind the norm: (B, T', H', W', D)."""
        _, frames, height, width, _ = clip_BTHWC.shape
        geometry = ClipGeometry(frames, height, width, self.geometry.tubelet, self.geometry.patch)
        cubes_BNP = normalise_pixels(every_cube(clip_BTHWC, geometry))
        built_for = self.config.positions_geometry or self.geometry
        positions_ND = table_of_picture(built_for, geometry, self.config.encoder.width, like=clip_BTHWC)
        return self.encoder(cubes_BNP, positions_ND=positions_ND).unflatten(1, geometry.grid)
