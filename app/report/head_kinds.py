"""The types of heads that a run names, in the words of the survey."""

from collections.abc import Mapping
from dataclasses import dataclass
from re import findall

import xarray as xr

from headscope.analyses._runtime.taxonomy import TERMS, term


@dataclass(frozen=True)
class Kind:
    """A type of head: its stage, evidence and method, and the heads that a run names so.

    ``checks`` are the states of the verdicts of the analyses that name it, where they test it.
    """

    name: str
    stage: str
    placed_by: str
    evidence: str
    method: str
    heads: frozenset[str]
    checks: tuple[str, ...] = ()

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
    kinds: dict[str, Kind] = {}
    for analysis, result in results.items():
        for key, heads in dict(result.attrs.get("heads_by_type", {})).items():
            type_name, placed = str(key).replace("_", "-"), term(analysis, str(key))
            name = type_name if type_name in TERMS else f"{key} ({analysis})"
            before = kinds.get(name)
            if heads:
                kinds[name] = Kind(
                    name, placed.stage, placed.placed_by, placed.evidence, placed.way,
                    frozenset(heads) | (before.heads if before else frozenset()),
                    (*(before.checks if before else ()), *_check(result, str(key))),
                )  # fmt: skip
    ordered = sorted(
        kinds.values(), key=lambda kind: (kind.name not in TERMS, kind.stage, kind.name)
    )
    return {kind.name: kind for kind in ordered}


def _check(result: xr.Dataset, kind: str) -> tuple[str, ...]:
    """Return the state of a verdict that is about the heads of a type; none where it is not."""
    state = result.attrs.get("verdict")
    # The first set of heads that a causal check ablates are those that it tests.
    tested = next(iter(dict(result.attrs.get("causal", {}).get("heads", {}))), "")
    several = len(dict(result.attrs["heads_by_type"])) > 1
    if not state or (several and tested != f"{kind} heads ablated"):
        return ()
    return (str(state),)
