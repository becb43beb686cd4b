"""Attention entropy: how evenly each head spreads its attention over the keys that it sees.

The entropy of a query's weights, ``H_i = −Σ_j P_ij log P_ij``, raw in nats and as a share of what
is possible, ``H_i / log n_i`` for n_i visible keys (0: all on one key, 1: even). Raw entropy grows
with the text, so only the share compares heads across lengths. Queries that see one key have no
entropy and are left out. Learned sinks are one more outcome, of which log(n_i + 1) is the largest.

Source: Zhang et al., Attention Entropy is a Key Factor; what context that is encoded in parallel
does to it is `parallel_context`.
"""

from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime.options import Between
from headscope.analyses._runtime.results import ZERO_TO_ONE, Results, named, require
from headscope.analyses._stats.length_trend import mean, per_query, stated, visible

NEEDS = ("entropy",)
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
        Capture with ``entropy`` (prompt, layer, head, query).
    sharp, broad
        Shares of the largest possible entropy below and above which a head is named sharp or broad.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``entropy`` (layer, head; nats), ``entropy_share`` (layer, head; share of log n),
    ``layer_entropy_share`` (layer) and ``query_entropy_share`` (query; mean over heads and
    prompts), each with 95 % intervals over prompts. Layers without an attention map are missing.
    """
    Between(sharp, 1).check("broad", broad)
    require(capture, NEEDS, "entropy", ("self", "encoder", "decoder"))

    raw = per_query(capture, "entropy")
    most = largest_entropy(capture)
    raw = np.where(most > 0, raw, np.nan)
    # Rounding in float32 may leave an even row a hair above the largest possible entropy.
    share = np.minimum(raw / np.where(most > 0, most, np.nan), 1.0)

    convention = f"mean over the queries that see more than one key; prompts of {stated(capture)}"
    over = mean(np.moveaxis(share.reshape(len(share), -1, share.shape[-1]), 1, 2))
    results = Results(capture, seed=seed, source=SOURCE, convention=f"H / log n; {convention}")
    results.add_means(
        ("entropy", ("layer", "head"), mean(raw), "Attention entropy", ("nats", "sequential", 0),
         f"raw; {convention}"),
        ("entropy_share", ("layer", "head"), mean(share),
         "Attention entropy against log(visible keys)", ("share of log n", *ZERO_TO_ONE)),
        ("layer_entropy_share", ("layer",), mean(mean(share)),
         "Entropy of a layer's heads against log(visible keys)", ("share of log n", *ZERO_TO_ONE)),
        ("query_entropy_share", ("query",), over, "Entropy at each query against log(visible keys)",
         ("share of log n", *ZERO_TO_ONE), "H / log n; mean over heads and prompts"),
    )  # fmt: skip
    scores = results["entropy_share"].values
    kinds = {"sharp": named(-scores, scores < sharp), "broad": named(scores, scores > broad)}
    listed = "; ".join(f"{kind}: {', '.join(heads) or 'none'}" for kind, heads in kinds.items())
    return results.dataset(
        {"query": np.arange(over.shape[-1])},
        convention=convention,
        heads_by_type=kinds,
        note=(
            f"Heads by entropy, {listed}. How a head spreads its attention, not what it does: what "
            "the model loses when heads are spread out is measured in `parallel_context`, what it "
            "loses without a head in `importance`."
        ),
    )


def largest_entropy(capture: xr.Dataset) -> NDArray[np.float64]:
    """Return the largest possible entropy of every row (prompt, layer, head, query)."""
    seen = visible(capture)[:, :, None] * np.ones((1, 1, capture.sizes["head"], 1))
    if "sink_logit" in capture.coords:
        sinks = capture["sink_logit"].transpose("layer", "head").values
        seen = seen + ~np.isnan(sinks)[None, :, :, None]
    return np.asarray(np.log(seen))
