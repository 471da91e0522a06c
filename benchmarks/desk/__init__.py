"""The desk experiment: every stage of progressive training on a few hundred real clips and 2 CPU cores (docs/LOG.md)."""
