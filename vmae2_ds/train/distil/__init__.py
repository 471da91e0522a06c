"""Distillation: a frozen teacher, its answers on disk, and the stage that learns from them."""
