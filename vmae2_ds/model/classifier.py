"""The classifier of every stage after pre-training: the encoder on all cubes, mean pooling, one linear head."""

from __future__ import annotations

from torch import Tensor, nn

from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.block import NORM_EPS
from vmae2_ds.model.embed import Linear
from vmae2_ds.model.whole_clip import WholeClipModel

# B clips, N cubes, P values in a cube, D width, C classes.


class Classifier(WholeClipModel):
    """VideoMAE V2 for classification.

    No norm behind the blocks; the mean over all tokens is normed instead (published `use_mean_pooling`).
    """

    def __init__(self, config: ClassifierConfig, geometry: ClipGeometry, seed: int | None = 0) -> None:
        super().__init__(config, geometry, final_norm=False, head_init_scale=config.head_init_scale)
        self.config = config
        self.fc_norm = nn.LayerNorm(config.encoder.width, eps=NORM_EPS)
        self.head_drop = nn.Dropout(config.head_dropout)
        self.head = Linear(config.encoder.width, config.num_classes) if config.num_classes else nn.Identity()
        if seed is not None:
            self.init_weights(seed)

    def forward(self, cubes_BNP: Tensor) -> Tensor:
        """Normalised cubes of whole clips, in order (B, N, P) -> logits (B, C)."""
        return self.classify(self.features(cubes_BNP))

    def features(self, cubes_BNP: Tensor) -> Tensor:
        """What the head sees: the normed mean token (B, D)."""
        return self.fc_norm(self.encoder(cubes_BNP).mean(dim=1))

    def classify(self, feature_BD: Tensor) -> Tensor:
        """`features` to logits (B, C); without a head the features themselves."""
        return self.head(self.head_drop(feature_BD))
