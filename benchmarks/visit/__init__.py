"""A visit to a machine: in a fixed number of minutes measure what is worth most, and write a report of it.

`parts` says what and in which order, `predict` how long each group takes, `budget` what still fits, `hired` and `worker` are
the two ends of the one process that measures, `going` is the visit from start to report.
"""
