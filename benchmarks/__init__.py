"""Benchmarks: small cases, one harness, rows that can be checked. See docs/BENCHMARKS.md."""
