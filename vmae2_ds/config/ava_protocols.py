"""Names of the ways to count frame mAP, which a config and the scorer share; without anything to load."""

from __future__ import annotations

from typing import Literal

FrameProtocolName = Literal["activitynet", "legacy", "legacy_pyslowfast", "mmaction2", "act"]
"""How frame mAP is counted: published scorers by their names in downstream/ava/protocols.py."""
