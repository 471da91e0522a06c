"""The small model of the model tests, for files of its weights."""

from tests.model.conftest import batch, batch_for, geometry, tiny

__all__ = ["batch", "batch_for", "geometry", "tiny"]
