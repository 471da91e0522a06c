"""Datasets and loaders: from a list and a seed to micro batches."""
