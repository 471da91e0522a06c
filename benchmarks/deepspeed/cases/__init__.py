"""The cases, which register themselves when they are imported."""

from benchmarks.deepspeed.cases import gradients, options, saved, weights

__all__ = ["gradients", "options", "saved", "weights"]
