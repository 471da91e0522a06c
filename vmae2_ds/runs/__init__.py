"""A run's folder, which weights a SOURCE means, and what leaves a run: exports and ready models."""
