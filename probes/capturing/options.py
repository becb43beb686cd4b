"""Options of a capture, resolved: which statistics, with which parameters, of which edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headscope.kernels import statistics
from headscope.kernels.api import Request
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.probes.capturing.spans import SpansLike
    from headscope.probes.capturing.targets import TargetsLike
    from headscope.probes.models.model import Model

DEFAULT = ("lse", "entropy", "max_weight", "first_mass", "offset_mass", "received", "distance")
KEEP = ("q", "k", "v", "z", "resid")
TILES = 64
"""Tiles of the longest prompt, at most, where no tile is given."""


@dataclass(frozen=True, eq=False)
class CaptureOptions:
    """Options of a capture, without the prompts; fields as the parameters of `capture`.

    ``stats`` holds each statistic once; ``z`` is not among them but in ``keep``. ``request`` holds
    the parameters of those that need no positions of the prompts.
    """

    stats: tuple[str, ...]
    keep: tuple[str, ...]
    edits: tuple[Edit, ...]
    request: Request
    targets: TargetsLike | None = None
    spans: SpansLike | None = None
    bins: int | None = None

    def request_for(self, targets: Tensor | None, spans: Tensor | None) -> Request:
        """Complete the request with the positions of some prompts; without them it lacks both."""
        missing = {"target_mass": targets is None, "span_mass": spans is None}
        stats = tuple(name for name in self.stats if not missing.get(name))
        return replace(self.request, stats=stats, targets=targets, spans=spans)

    @property
    def reweighted(self) -> bool:
        """Whether an edit changes weights, so that q, k and lse do not determine them."""
        return any(type(edit).inside is not Edit.inside for edit in self.edits)


def resolve_options(
    model: Model,
    longest: int,
    stats: Sequence[str] | None,
    keep: Sequence[str] = (),
    edits: Sequence[Edit] = (),
    *,
    targets: TargetsLike | None = None,
    spans: SpansLike | None = None,
    bins: int | None = None,
    tile: int | None = None,
    **parameters: Any,
) -> CaptureOptions:
    """Check the options of a capture and fill in what they leave out.

    The default tile depends on ``longest``, the tokens of the longest prompt; ``parameters`` are
    fields of the kernels' ``Request``.
    """
    names, kept = _names(applicable_stats(DEFAULT, model) if stats is None else stats, keep, model)
    request = Request(
        stats=tuple(name for name in names if name not in ("target_mass", "span_mass")),
        tile=default_tile(longest) if tile is None else int(tile),
        **{name: _number(name, value) for name, value in parameters.items()},
    )
    bins = None if bins is None else int(bins)
    return CaptureOptions(names, kept, tuple(edits), request, targets, spans, bins)


def default_tile(length: int) -> int:
    """Return the tokens of a tile: 16, doubled until a text has 64 tiles at most.

    >>> default_tile(100), default_tile(1025)
    (16, 32)
    """
    tile = 16
    while length > TILES * tile:
        tile *= 2
    return tile


def _number(name: str, value: Any) -> Any:
    """Convert a parameter into the plain number, or the numbers, that a Request holds."""
    if value is None:
        return None
    if name in ("offsets", "horizon"):
        return tuple(map(int, value))
    return float(value) if name == "share" else int(value)


def applicable_stats(stats: Sequence[str], model: Model) -> tuple[str, ...]:
    """Leave out the statistics that the attention of a model does not have."""
    crossed = model.geometry.crossed
    return tuple(name for name in stats if not (crossed and statistics.load(name).positional))


def _names(
    stats: Sequence[str], keep: Sequence[str], model: Model
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Resolve the names of statistics and of activations."""
    if isinstance(stats, str) or isinstance(keep, str):
        raise InvalidInput("stats, keep: give a tuple of names, such as ('entropy',)")
    stats = tuple(map(statistics.resolve, stats))
    declared = statistics.names()
    for name in stats:
        if name not in declared:
            raise InvalidInput(f"stats: no statistic {name!r}; choose from {', '.join(declared)}")
        if name not in applicable_stats((name,), model):
            raise NotApplicable(
                f"stats: {name} compares the places of query and key, which are tokens of two "
                "texts in cross-attention; choose others"
            )
    for name in keep:
        if name not in KEEP:
            raise InvalidInput(f"keep: no activation {name!r}; choose from {', '.join(KEEP)}")
    kept = tuple(name for name in KEEP if name in keep or (name == "z" and "z" in stats))
    # A pattern is recomputed from the three of them, so none is kept in vain.
    implied = ("lse",) if {"q", "k"} <= set(kept) else ()
    return tuple(dict.fromkeys(name for name in (*stats, *implied) if name != "z")), kept
