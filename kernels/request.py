"""Statistics to compute and their parameters, with defaults and bounds."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.kernels.aliases import resolve
from headscope.kernels.errors import InvalidInput

NO_KEY = -1
AT_LEAST_ONE = {
    "first": "{} first keys",
    "tile": "{} tokens a tile",
    "clip": "a largest distance of {} tokens",
    "recent": "{} last keys",
    "k": "{} top keys",
    "last": "{} last queries",
}


@dataclass(frozen=True, eq=False)
class Request:
    """The statistics wanted from one attention call, with their parameters.

    Parameters
    ----------
    stats
        Names from ``headscope.kernels.statistics.names()``; ``z`` is always computed.
    first
        Number of first keys whose mass is ``first_mass``, which ``span_without_first`` leaves out;
        1 or more.
    offsets
        Relative offsets of ``offset_mass``: the mass at key = query - offset, in tokens; 0 is the
        token itself, 1 the previous token, -1 the next one.
    targets
        Key indices of ``target_mass`` for every query, up to ``occurrence`` keys each; -1 means no
        key. The target dimension holds different questions (induction, duplicate, ...).
    tile
        Tokens in one tile of ``pooled_mean`` and ``pooled_max``, 1 or more.
    recent
        Number of last keys, the query itself included, whose mass is ``recent_mass``, 1 or more.
    spans
        For every key the number of its span in ``span_mass``, from 0; -1 means none.
    share
        Share of the mass that ``effective_span`` and ``span_without_first`` hold, between 0 and 1.
    k
        Number of keys in ``topk`` and ``topk_key``, 1 or more.
    horizon
        Nearest and farthest distance, in tokens, of the later queries in ``received_later``.
    last
        Number of last queries of a text in ``received_last``, 1 or more.
    clip
        Largest distance in tokens that ``distance`` and ``distance_variance`` count; longer ones
        count as this. None counts every distance in full.
    """

    stats: tuple[str, ...]
    first: int = 1
    offsets: tuple[int, ...] = (0, 1)
    targets: Int[Tensor, "batch target query occurrence"] | None = None
    tile: int = 16
    clip: int | None = None
    recent: int = 64
    spans: Int[Tensor, "batch key"] | None = None
    share: float = 0.9
    k: int = 8
    horizon: tuple[int, int] = (1, 64)
    last: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.stats, str):
            raise InvalidInput(f"stats: {self.stats!r} is one string; give a tuple of names")
        object.__setattr__(self, "stats", tuple(map(resolve, self.stats)))
        for field, message in AT_LEAST_ONE.items():
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidInput(f"{field}: {message.format(value)}; give 1 or more")
        if not 0 < self.share < 1:
            raise InvalidInput(f"share: {self.share} of the mass; give a number between 0 and 1")
        if not 0 <= self.horizon[0] <= self.horizon[1]:
            raise InvalidInput(
                f"horizon: {self.horizon}; give (nearest, farthest), 0 or more tokens"
            )
        if len(set(self.offsets)) < len(self.offsets):
            raise InvalidInput(f"offsets: {self.offsets} names an offset twice; name each once")
        if "offset_mass" in self.stats and not self.offsets:
            raise InvalidInput(
                "offsets: offset_mass needs at least one offset, such as offsets=(1,)"
            )
        if self.targets is not None:
            _refuse_repeated(self.targets)
        elif "target_mass" in self.stats:
            raise InvalidInput("targets: target_mass needs the target keys of every query")
        if self.spans is not None:
            _refuse_spans(self.spans)
        elif "span_mass" in self.stats:
            raise InvalidInput("spans: span_mass needs the span of every key")


def _refuse_spans(spans: Tensor) -> None:
    if spans.ndim != 2 or spans.is_floating_point() or spans.dtype == torch.bool:
        raise InvalidInput(
            f"spans: give an integer tensor (batch, key), not {spans.dtype} {tuple(spans.shape)}"
        )
    if spans.numel() and int(spans.min()) < NO_KEY:
        raise InvalidInput(f"spans: span {int(spans.min())}; use {NO_KEY} for no span")


def _refuse_repeated(targets: Tensor) -> None:
    if targets.ndim != 4 or targets.is_floating_point():
        raise InvalidInput(
            "targets: give an integer tensor (batch, target, query, occurrence), "
            f"not {targets.dtype} {tuple(targets.shape)}"
        )
    if targets.numel() and int(targets.min()) < NO_KEY:
        raise InvalidInput(f"targets: key {int(targets.min())}; use {NO_KEY} for no key")
    ordered = targets.sort(dim=-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != NO_KEY)
    if torch.any(repeated):
        raise InvalidInput("targets: a key is listed twice for one query; list each key once")
