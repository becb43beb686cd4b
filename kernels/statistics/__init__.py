"""Statistics of attention weights, one file each: the folder is the registry."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from headscope.kernels.aliases import resolve as resolve
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.kernels.statistic import Statistic


def names() -> list[str]:
    """List every statistic, without importing any."""
    return sorted(entry.name for entry in iter_modules(__path__))


@cache
def load(name: str) -> "Statistic":
    """Load the declaration of one statistic, the module's ``STATISTIC``."""
    if name not in names():
        raise InvalidInput(f"stats: no statistic {name!r}; choose from {', '.join(names())}")
    statistic: Statistic = import_module(f"{__name__}.{name}").STATISTIC
    if statistic.name != name:
        raise InvalidInput(
            f"{name}.py declares {statistic.name!r}; name the statistic like its file"
        )
    return statistic
