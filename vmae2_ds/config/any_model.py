"""Every kind of model that a file of weights can hold."""

from __future__ import annotations

from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.model import ClassifierConfig, ModelConfig
from vmae2_ds.config.tad import TadModelConfig

Detector = TadModelConfig | AvaModelConfig
"""A head that says more than what a whole clip shows."""
AnyModel = ModelConfig | ClassifierConfig | Detector
"""What a file of weights can hold."""
