"""Temporal action detection: what happens in a long video, from when until when."""
