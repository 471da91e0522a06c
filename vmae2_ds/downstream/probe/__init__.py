"""Probes on frozen features: what each fits, how it is tested, and features that are kept."""
