"""Declaration of a statistic, from which engines, oracle, capture schema and tooltips follow."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.errors import NotApplicable
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.visibility import Visibility

MERGES = {
    "average": "query panels are joined; key splits add, each times w = exp(lse_split - lse)",
    "logsumexp": "query panels are joined; key splits combine as log Σ exp(lse_split)",
    "entropy": "query panels are joined; key splits add as Σ w (H_split - log w)",
    "maximum": "query panels are joined; of the key splits the largest w · part",
    "variance": "query panels are joined; key splits add as Σ w (variance + (mean - mean_all)²)",
    "join": "query panels are joined; key splits are joined, each times w",
    "top": "query panels are joined; of all key splits' w · part the k largest, with their keys",
    "row": "query panels are joined; key splits do not combine: the whole row is needed",
    "sum": "query panels add, weighted by their queries; key splits need the final lse first",
    "largest": "of query panels the largest; key splits need the final lse first",
    "end": "the query panel that holds the last queries; key splits need the final lse first",
}
"""How partial results combine, by the name of the rule; w = exp(lse_split - lse)."""

TritonPass = Literal["forward", "columns", "rows", "gathers", "topk"]
"""Passes of the Triton engine: the fused forward pass, and passes over its weights given lse."""

Labels = Callable[[Request, int], Sequence[int]]
"""Labels along a dim, from the request and the length of the text."""


@dataclass(frozen=True)
class Statistic:
    """One statistic of attention weights.

    Parameters
    ----------
    name
        Name of the variable, and of the file in ``kernels/statistics``.
    dims
        Dims of the variable after batch and head, ``query`` first where there is one.
    merge
        How partial results combine: a name of ``MERGES``.
    units
        Units of the values.
    formula
        Definition, with P the attention weights of query i and key j, s the logits.
    source
        Paper that the statistic is known from.
    doc
        The module's docstring; its first line is the label and tooltip.
    panel
        The statistic of one row panel, with the extents of ``dims`` inside the panel. Without
        ``query`` among the dims, panels add up, or the largest counts where ``merge`` says so.
    dense
        The same from the whole matrix in float64, by a formula of its own: the oracle.
    low, high
        Bounds of the values; None where there is none.
    scale
        Kind of colour scale that suits the values.
    finish
        Turns what the panels gave together into the statistic; None leaves it.
    empty
        Value at a query that sees no key.
    distribution
        Whether it makes sense only where the weights of a row are shares of one whole: refused
        where each weight is a sigmoid of its own.
    positional
        Whether it compares the places of query and key, so that it makes sense only where both are
        tokens of one text: refused for cross-attention.
    reductions
        Properties of a panel that ``panel`` reads, and nothing else that follows from the weights:
        the compiled sweep fills them in and keeps no weights. Names of
        ``headscope.kernels.compiled.sweep.REDUCTIONS``; empty where ``panel`` reads the weights.
    triton
        Passes of the Triton engine that compute it, first choice first; empty where it is computed
        by torch panels on the GPU.
    labels
        For each dim other than query, key, their tiles and size: the labels along it, from the
        request and the larger of the numbers of queries and keys. They are its coordinate, and
        their number is its extent.
    """

    name: str
    dims: tuple[str, ...]
    merge: str
    units: str
    formula: str
    source: str
    doc: str
    panel: Callable[[Panel], Tensor]
    dense: Callable[[DenseAttention], Tensor]
    low: float | None = 0.0
    high: float | None = None
    scale: Literal["sequential", "diverging"] = "sequential"
    finish: Callable[[Tensor, Visibility, Request], Tensor] | None = None
    empty: float = float("nan")
    distribution: bool = False
    positional: bool = False
    reductions: tuple[str, ...] = ()
    triton: tuple[TritonPass, ...] = ()
    labels: Mapping[str, Labels] = field(default_factory=dict)

    @property
    def reads(self) -> frozenset[str]:
        """Properties of a panel that have to be there: ``reductions``, else the weights."""
        return frozenset(self.reductions or ("weights",))

    @property
    def title(self) -> str:
        """First line of the docstring, without its full stop."""
        return self.doc.strip().splitlines()[0].rstrip(".")

    @property
    def by_query(self) -> bool:
        """Whether there is one result for every query."""
        return "query" in self.dims


def mask_unattended(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Finish a statistic of keys: NaN at those that no query sees."""
    return total.masked_fill(visibility.query_counts[:, None] == 0, float("nan"))


def check_distribution(chosen: Iterable[Statistic], spec: AttentionSpec) -> None:
    """Refuse statistics of a distribution where weights are none."""
    for statistic in chosen:
        if spec.sigmoid and statistic.distribution:
            raise NotApplicable(
                f"stats: {statistic.name} needs rows that are shares of one whole; "
                "weights of sigmoid attention are not"
            )
