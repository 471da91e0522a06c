"""Checkpoints: whole or not at all, resumed on any ranks and ZeRO stage, kept, mirrored, read without running code."""
