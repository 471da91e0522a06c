"""Probes on frozen features: heads, fits, and features that are kept."""
