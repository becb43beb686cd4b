"""The types of heads that a run names, in the words of the survey."""

from collections.abc import Mapping
from dataclasses import dataclass
from re import findall

import xarray as xr

from headscope.analyses._runtime.taxonomy import TERMS, term


@dataclass(frozen=True)
class Kind:
    """A type of head: its stage, evidence and method, and the heads that a run names so."""

    name: str
    stage: str
    placed_by: str
    evidence: str
    method: str
    heads: frozenset[str]

    @property
    def listed(self) -> str:
        """The heads, in order.

        >>> Kind("sharp", "", "", "", "", frozenset({"L10H0", "L2H1"})).listed
        'L2H1, L10H0'
        """
        return ", ".join(sorted(self.heads, key=lambda name: [*map(int, findall(r"\d+", name))]))


def collect(results: Mapping[str, xr.Dataset]) -> dict[str, Kind]:
    """List the types that heads of a run have, as ``heads_by_type`` of the results says.

    Those of the survey come first, the others are called ``name (analysis)``.

    >>> result = xr.Dataset(attrs={"heads_by_type": {"induction": ["L3H0"], "sharp": ["L0H1"]}})
    >>> [(kind.name, kind.stage) for kind in collect({"entropy": result}).values()]
    [('induction', 'latent reasoning'), ('sharp (entropy)', 'no single stage')]
    """
    found: dict[str, Kind] = {}
    for analysis, result in results.items():
        for key, heads in dict(result.attrs.get("heads_by_type", {})).items():
            word, placed = str(key).replace("_", "-"), term(analysis, str(key))
            name = word if word in TERMS else f"{key} ({analysis})"
            before = found[name].heads if name in found else frozenset()
            if heads:
                found[name] = Kind(
                    name, placed.stage, placed.placed_by, placed.evidence, placed.way,
                    before | frozenset(heads),
                )  # fmt: skip
    ordered = sorted(found.values(), key=lambda one: (one.name not in TERMS, one.stage, one.name))
    return {kind.name: kind for kind in ordered}
