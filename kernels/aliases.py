"""Earlier names of statistics, accepted for one release."""

import warnings

STATISTICS = {"sink_mass": "learned_sink_mass"}
"""Today's name of each statistic that was renamed."""


def resolve(name: str) -> str:
    """Return today's name of a statistic, with a warning where it was renamed."""
    if name not in STATISTICS:
        return name
    new = STATISTICS[name]
    warnings.warn(f"stats: {name!r} is now {new!r}", FutureWarning, stacklevel=3)
    return new
