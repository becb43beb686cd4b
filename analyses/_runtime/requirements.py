"""Needs: what an analysis requires of its capture."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import xarray as xr


@dataclass(frozen=True)
class Needs:
    """Statistics, kept tensors, offsets and target rules, by what a capture calls them."""

    stats: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: ModuleType) -> Needs:
        """Read the declarations of an analysis module."""
        return cls(
            tuple(module.NEEDS),
            tuple(getattr(module, "KEEP", ())),
            tuple(getattr(module, "OFFSETS", ())),
            tuple(getattr(module, "TARGETS", ())),
        )

    def __or__(self, other: Needs) -> Needs:
        """Return the union, in order of first mention."""
        return Needs(
            *(
                tuple(dict.fromkeys(getattr(self, name) + getattr(other, name)))
                for name in self.__dataclass_fields__
            )
        )

    def arguments(self) -> dict[str, tuple[Any, ...]]:
        """Return what to give ``capture``, which has offsets and targets of its own."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value or name in ("stats", "keep")}

    def held_by(self, capture: xr.Dataset) -> bool:
        """Return whether a capture holds all of it."""
        return (
            all(name in capture for name in self.stats + self.keep)
            and set(self.offsets) <= set(_coordinate(capture, "offset"))
            and set(self.targets) <= set(_coordinate(capture, "target"))
        )


def _coordinate(capture: xr.Dataset, name: str) -> list[Any]:
    return list(capture[name].values.tolist()) if name in capture.coords else []
