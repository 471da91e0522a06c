"""The published name of a parameter, to find it in the golden files."""

from __future__ import annotations

from vmae2_ds.weights.layouts import LAYOUTS


def official_name(name: str, *, classifier: bool = False) -> str:
    """The published key of one of our parameters."""
    (theirs,) = LAYOUTS["published"].names(name, classifier)
    return theirs
