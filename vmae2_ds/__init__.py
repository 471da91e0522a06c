"""VideoMAE V2 pre-training on DeepSpeed, and what is needed around it to scale it."""

__version__ = "0.1.0"
