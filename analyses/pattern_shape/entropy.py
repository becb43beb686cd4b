"""Attention entropy: how evenly each head spreads its attention over the keys that it sees.

The entropy of a query's weights, ``H_i = −Σ_j P_ij log P_ij``, raw in nats and as a share of what
is possible, ``H_i / log n_i`` for n_i visible keys (0: all on one key, 1: even). Raw entropy grows
with the text, so only the share compares heads across lengths. Queries that see one key have no
entropy and are left out. Learned sinks are one more outcome, of which log(n_i + 1) is the largest.

A head with most weight on the first token has next to no entropy, whatever it does with the rest.
So each number is also computed without the first token: the entropy of the weights renormalised
over the other keys, ``(H + p log p) / (1 − p) + log(1 − p)`` for a mass p on the first token, as a
share of log(n_i − 1). Where the first token has 25 % more of all mass than in even rows, these come
first and name heads.

Source: Zhang et al., Attention Entropy is a Key Factor; what context that is encoded in parallel
does to it is `parallel_context`.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import without_first
from headscope.analyses._runtime.options import Between
from headscope.analyses._runtime.results import (
    GRID,
    ZERO_TO_ONE,
    Results,
    first_few,
    named,
    require,
)
from headscope.analyses._stats.length_trend import Array, length_note, mean, per_query, visible

NEEDS = ("entropy", "first_mass")
SUPPORTS = {"encoder", "vision", "hybrid"}

SOURCE = "Attention Entropy is a Key Factor (Zhang et al.)"


def run(
    capture: xr.Dataset,
    *,
    sharp: Annotated[float, Between(0, 1)] = 0.2,
    broad: Annotated[float, Between(0, 1)] = 0.8,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by the entropy of its rows, raw and against log(visible keys).

    Parameters
    ----------
    capture
        Capture with ``entropy`` and ``first_mass`` (prompt, layer, head, query).
    sharp, broad
        Shares of the largest possible entropy below and above which a head is named sharp or broad.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``entropy`` (layer, head; nats), ``entropy_share`` (layer, head; share of log n),
    ``layer_entropy_share`` (layer) and ``query_entropy_share`` (query; mean over heads and
    prompts), and each of them ``_without_first`` token, with 95 % intervals over prompts. Layers
    without an attention map are missing.
    """
    Between(sharp, 1).check("broad", broad)
    require(capture, NEEDS, "entropy", ("self", "encoder", "decoder"))

    raw, first = per_query(capture, "entropy"), without_first.mass(capture)
    convention = (
        f"mean over the queries that see more than one key; prompts of {length_note(capture)}"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=f"H / log n; {convention}")
    rest = without_first.entropy(raw, first), largest_entropy(capture, without_first.others)
    variants = {
        "": (raw, largest_entropy(capture), "", ""),
        without_first.SUFFIX: (*rest, without_first.TITLE, without_first.RULE),
    }
    first_dominates = without_first.first_dominates(capture)
    for end in sorted(variants, reverse=first_dominates):
        _add(results, end, convention, *variants[end])
    scores = results[f"entropy_share{without_first.SUFFIX if first_dominates else ''}"].values
    kinds = {"sharp": named(-scores, scores < sharp), "broad": named(scores, scores > broad)}
    listed = "; ".join(
        f"{len(heads)} {kind}{f' ({first_few(heads)})' if heads else ''}"
        for kind, heads in kinds.items()
    )
    return results.dataset(
        {"query": np.arange(raw.shape[-1])},
        convention=convention,
        heads_by_type=kinds,
        note=(
            f"{without_first.dominance_note(capture)}Heads by entropy: {listed}. How a head "
            "spreads its attention, not what it does: what the model loses when heads are spread "
            "out is measured in `parallel_context`, what it loses without a head in `importance`."
        ),
    )


def _add(
    results: Results, end: str, convention: str, raw: Array, most: Array, title: str, rule: str
) -> None:
    """Add the entropies of rows that may reach ``most``, under names with this end."""
    most = np.where(most > 0, most, np.nan)
    raw = np.where(np.isnan(most), np.nan, raw)
    # Rounding in float32 may leave an even row a hair above the largest possible entropy.
    share = np.minimum(raw / most, 1.0)
    over = mean(np.moveaxis(share.reshape(len(share), -1, share.shape[-1]), 1, 2))
    against, units = f"against log(visible keys){title}", ("share of log n", *ZERO_TO_ONE)
    results.add_means(
        (f"entropy{end}", GRID, mean(raw), f"Attention entropy{title}", ("nats", "sequential", 0),
         f"raw; {convention}{rule}"),
        (f"entropy_share{end}", GRID, mean(share), f"Attention entropy {against}", units),
        (f"layer_entropy_share{end}", ("layer",), mean(mean(share)),
         f"Entropy of a layer's heads {against}", units),
        (f"query_entropy_share{end}", ("query",), over, f"Entropy at each query {against}", units,
         f"H / log n; mean over heads and prompts{rule}"),
        convention=f"H / log n; {convention}{rule}",
    )  # fmt: skip


def largest_entropy(
    capture: xr.Dataset, count: Callable[[xr.Dataset], Array] = visible
) -> NDArray[np.float64]:
    """Return the largest possible entropy of every row (prompt, layer, head, query).

    ``count`` counts the keys of each query.
    """
    keys = count(capture)[:, :, None] * np.ones((1, 1, capture.sizes["head"], 1))
    if "sink_logit" in capture.coords:
        sinks = capture["sink_logit"].transpose("layer", "head").values
        keys = keys + ~np.isnan(sinks)[None, :, :, None]
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(keys))
