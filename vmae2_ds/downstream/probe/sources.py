"""The groups of a list, each of which a probe leaves out once."""

from __future__ import annotations

from collections.abc import Sequence

from vmae2_ds.errors import ConfigError


def check_sources(sources: Sequence[str]) -> None:
    """Raises ConfigError where there are no two sources, of which each could be left out once."""
    if len(sources) < 2:
        raise ConfigError(
            f"the list has one source, {sources[0]!r}: name groups (subjects, scenes) in its column `source`, each of which "
            "is left out once, or give --val-manifest"
        )
