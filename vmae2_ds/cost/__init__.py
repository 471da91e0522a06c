"""Closed forms: FLOPs, memory, traffic and time of a configuration, and the peaks of known hardware."""
