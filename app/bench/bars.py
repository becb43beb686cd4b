"""Bars: what a benchmark must reach, judged from what it measured and never by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One thing that must hold.

    Parameters
    ----------
    name
        Short name.
    what
        What is measured, against what, and where it counts.
    must
        Bound that must be kept.
    aim
        Bound that is hoped for; None where there is none.
    least
        Whether the bounds are the smallest values rather than the largest.
    units
        Units of the values.
    """

    name: str
    what: str
    must: float
    aim: float | None = None
    least: bool = False
    units: str = "×"

    def judge(self, cases: Mapping[str, float]) -> dict[str, Any]:
        """Say whether every case keeps the bounds.

        Parameters
        ----------
        cases
            Measured values, by where.

        Returns
        -------
        A row for the result file: the worst case and whether bounds are met, None where nothing
        was measured.

        Examples
        --------
        >>> Bar("speed", "ours / theirs", must=1.5).judge({"4096": 1.2, "8192": 1.6})["met"]
        False
        """
        worst = None
        if cases:
            worst = (min if self.least else max)(cases, key=lambda where: cases[where])
        value = None if worst is None else cases[worst]
        return {
            "bar": self.name,
            "what": self.what,
            "bound": "at least" if self.least else "at most",
            "units": self.units,
            "must": self.must,
            "aim": self.aim,
            "measured": value,
            "worst_at": worst,
            "cases": dict(cases),
            "met": self._keeps(value, self.must),
            "aim_met": self._keeps(value, self.aim),
        }

    def _keeps(self, value: float | None, bound: float | None) -> bool | None:
        if value is None or bound is None:
            return None
        return value >= bound if self.least else value <= bound
