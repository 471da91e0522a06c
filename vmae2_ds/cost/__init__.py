"""Closed forms for FLOPs and the peaks of known hardware."""
