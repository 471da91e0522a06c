"""Configuration of the head for spatial action detection: from a picture of features and boxes to scores of every class."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vmae2_ds.config.strict import Part, PartBelow1, Size, StrictModel

Cells = Annotated[int, Field(ge=1, le=64)]
Samples = Annotated[int, Field(ge=0, le=64)]
ClassColumn = Annotated[int, Field(ge=0, lt=2**24)]


class RoiHeadConfig(StrictModel):
    """Features inside of a box, averaged into a few cells (RoIAlign), their maximum, and one linear layer.

    Defaults are those of VideoMAE-AD (docs/PAPER.md#spatial-detection).
    """

    size: Cells = 7
    """Cells along each side that the features inside of a box are averaged into, before their maximum is taken."""
    aligned: bool = False
    """Where the features lie: no (VideoMAE-AD) takes a feature's place for that of its upper left corner, half
    a patch off; yes (PySlowFast, mmaction2) for that of its middle."""
    sampling_ratio: Samples = 0
    """Samples along each side of a cell that are averaged; 0 takes as many as there are features in the cell, rounded up."""
    box_extension: tuple[Part, Part] = (0.1, 0.05)
    """In a test, part of its width and of its height that each box is made larger by, and cut off at the picture's borders;
    0 0 leaves boxes as they are."""
    dropout: PartBelow1 = 0.0
    """Dropout rate in front of the linear layer."""
    dropout_on: Literal["maximum", "cells"] = "maximum"
    """What dropout is applied to: the maximum over the cells (PySlowFast), or each cell in front of it (mmaction2)."""
    init_scale: Size = 1e-3
    """Factor that the linear layer's random initial weights, of deviation 0.02, are multiplied by."""
    exclusive: Literal["none", "all"] | tuple[ClassColumn, ...] = "none"
    """Classes of which a box has one at most: they share one softmax, every other class has a sigmoid of its own. none; all,
    for sets with a single label; or their places in the label map, counted from 0 (AVA's poses: 0 to 12, each named)."""

    def exclusive_columns(self, num_classes: int) -> tuple[int, ...]:
        """Places of the classes that share a softmax, in order, of `num_classes`.

        Raises ValueError for a place that there is not, one that is named twice, and for a single one.
        """
        if self.exclusive == "none":
            return ()
        columns = tuple(range(num_classes)) if self.exclusive == "all" else tuple(sorted(self.exclusive))
        if len(set(columns)) < len(columns):
            raise ValueError(f"head.exclusive names a class twice: {' '.join(map(str, columns))}")
        if columns and columns[-1] >= num_classes:
            raise ValueError(f"head.exclusive names class {columns[-1]}, and there are classes 0 to {num_classes - 1}")
        if len(columns) == 1:
            raise ValueError("head.exclusive: one class by itself excludes none; name two or more, or set it to none")
        return columns


class BoxLossConfig(StrictModel):
    """What the head learns from boxes with classes: cross entropy, the mean over classes for every box."""

    mean_over: Literal["clips", "boxes"] = "clips"
    """What the losses of a step's boxes are divided by. clips: their sum by the number of clips, so that a clip counts by its
    boxes (VideoMAE-AD multiplies the mean over boxes by their number); boxes: by the number of all boxes of
    the step, on all ranks (PySlowFast and mmaction2 have each rank's own number)."""
    boxes_without_action: Literal["learn", "leave_out"] = "learn"
    """Boxes whose truth names no class, such as found persons far from every truth. learn: none of the classes is there
    (PySlowFast); leave_out: nothing is learnt from them (mmaction2)."""
