"""The numbers that options take, for verbs that are functions: looked at before any work, one line where one is outside.

    check_ranges(num_frames=(num_frames, 1, MOST_FRAMES), timeout_s=(timeout_s, LEAST_WAIT_S, DAY_S))

Each name is an option's, spelt as in the function; its value may be None where it was not given. Both ends are within the
range. What a pydantic model holds is checked by its fields instead.
"""

from __future__ import annotations

import math
import os

from vmae2_ds.errors import ConfigError

LEAST_WAIT_S = 0.1
"""The shortest limit on a read that leaves time for one, in seconds."""
DAY_S = 86400.0
"""The longest wait that anybody can mean, in seconds."""
MOST_FRAMES = 100_000
"""Of one clip, and steps between its frames."""
MOST_PIXELS = 2**14
"""Along one side of a clip or a cube."""
MOST_VIEWS = 1024
"""Clips of one video, crops of one clip."""
MOST_WORKERS = 1024
"""Loader processes of one rank."""
MOST_SEED = 2**63 - 1
MANY = 10**9
"""More of anything than there can be: what is above is a slip of the hand, and overflows somewhere later."""


def check_ranges(**asked: tuple[float | None, float, float]) -> None:
    """Raises ConfigError for the first option whose value is not within least .. most; nan never is.

    Args:
        asked: option=(value, least, most).
    """
    for name, (value, least, most) in asked.items():
        if value is not None and not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: a number from {_said(least)} to {_said(most)}")


CLIP_OPTIONS: dict[str, tuple[int, int]] = {
    "clips": (1, MOST_VIEWS),
    "crops": (1, MOST_VIEWS),
    "num_frames": (1, MOST_FRAMES),
    "size": (1, MOST_PIXELS),
    "stride": (1, MOST_FRAMES),
    "workers": (0, MOST_WORKERS),
    "seed": (0, MOST_SEED),
}
"""Options by which several verbs say what clips they take, and their ranges."""


def check_clip_options(**asked: int | None) -> None:
    """`check_ranges` for options that have the same range wherever they are."""
    check_ranges(**{name: (value, *CLIP_OPTIONS[name]) for name, value in asked.items()})


def most_workers() -> int:
    """Processes or threads at once, past which a machine only loses."""
    return max(32, 4 * (os.cpu_count() or 1))


def _said(number: float) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else f"{number:g}"
