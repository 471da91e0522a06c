"""Spatial action detection: what each person at a moment of a video does."""
