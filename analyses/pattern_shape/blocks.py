"""Blocks: how few blocks of the map hold the attention, and how much is a window and stripes.

The map of a head pooled into tiles says, for each block of queries, what share of its attention
goes to each block of keys; the map itself is never there. Counted are the blocks that hold a share
p of the mass, the best ones first, and the mass that a given number of best blocks holds. The
decomposition takes a window along the diagonal first, then the columns (stripes) with the most of
what is left. The causal number: what the loss becomes when each block of queries of every head sees
its needed blocks alone, and when it sees as many random ones.

Sources: SeerAttention and VMoBA (block selection by mass); Quest; SampleAttention (window and
column stripes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import predicts
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, label, require, top
from headscope.analyses._stats.length_trend import mean, stated
from headscope.analyses.pattern_shape import _tiles

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ("pooled_mean",)

SOURCE = "SeerAttention; VMoBA; Quest"
STRIPES = "SampleAttention"
CONDITIONS = ("all blocks", "needed blocks", "as many random blocks")
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    mass: float = 0.9,
    window: int = 1,
    stripes: int = 2,
    causal_prompts: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Count the blocks that each head needs, and split its map into window, stripes and the rest.

    Parameters
    ----------
    capture
        Capture of the prompts with ``pooled_mean``; its ``tile`` is stated with the result.
    model
        Model that was captured; its heads are kept to their needed blocks for the causal check.
    mass
        Share of a row's mass that the needed blocks hold (p), between 0 and 1.
    window
        Blocks of the window, the diagonal one included.
    stripes
        Columns of blocks beside the window.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts and of the random blocks.
    progress
        Called with (done, total) prompts of the causal check.

    Returns
    -------
    Dataset with ``blocks_needed`` (layer, head; blocks), ``block_density`` (layer, head; their
    share of the visible blocks), ``mass_in_blocks`` (layer, head, blocks; share held by the best 1,
    2, 4, … blocks of each row), ``window_share``, ``stripe_share`` and ``rest_share`` (layer, head;
    they sum to 1), ``stripes_needed`` (layer, head; columns that reach p together with the window)
    and ``block_loss`` (condition; nats a token, the causal number), with 95 % intervals over
    prompts. Shares are of the mass on keys: a learned sink is no block.

    Raises
    ------
    HeadscopeError
        When the capture lacks ``pooled_mean`` or an option is out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(40)), list(range(2, 42))]
    >>> execute("blocks", model, given, options={"causal_prompts": 0})["blocks_needed"].dims
    ('layer', 'head')
    """
    options.between("mass", mass, 0.01, 0.999)
    options.at_least("window", window, 1)
    options.at_least("stripes", stripes, 0)
    options.at_least("causal_prompts", causal_prompts, 0)
    require(capture, NEEDS, "blocks")
    options.one_text(capture.attrs.get("attention", "self"), "blocks")

    maps, weights, visible = _tiles.maps(capture)
    sums = _tiles.sorted_sums(maps)
    needed = _tiles.needed(maps, mass)
    budgets = [2**power for power in range(maps.shape[-1].bit_length())]
    held = np.stack([sums[..., one - 1] for one in budgets], axis=-1)
    near, columns = _tiles.decompose(maps, weights, window)
    stripe = columns[..., :stripes].sum(-1)
    enough = near[..., None] + np.concatenate(
        (np.zeros((*near.shape, 1)), np.cumsum(columns, axis=-1)), axis=-1
    )
    count = np.where(np.isnan(near), np.nan, (enough < mass - _tiles.SLACK).sum(-1))

    tile = int(capture.attrs["tile"])
    convention = (
        f"blocks of {tile} × {tile} tokens; share of the mass on keys, mean over queries; prompts "
        f"of {stated(capture)}"
    )
    least = f"fewest blocks with {mass:.0%} of a block row's mass; {convention}"
    split = f"window of {window}, then {stripes} stripes with the most of the rest; {convention}"
    texts: dict[str, tuple[Array, str, str, int | None, str, str]] = {
        "blocks_needed": (
            _tiles.average(needed, weights), f"Blocks that hold {mass:.0%} of the mass", "blocks",
            None, least, SOURCE,
        ),
        "block_density": (
            _tiles.average(needed / visible, weights), "Needed share of the visible blocks",
            "share of blocks", 1, least, SOURCE,
        ),
        "window_share": (near, "Mass inside the window", "share", 1, split, STRIPES),
        "stripe_share": (stripe, "Mass on the column stripes", "share", 1, split, STRIPES),
        "rest_share": (
            np.maximum(1 - near - stripe, 0), "Mass outside window and stripes", "share", 1, split,
            STRIPES,
        ),
        "stripes_needed": (
            count, f"Stripes that reach {mass:.0%} with the window", "columns of blocks", None,
            split, STRIPES,
        ),
    }  # fmt: skip
    variables: dict[str, xr.Variable] = {}
    for name, (values, title, units, high, said, source) in texts.items():
        variables |= averaged(
            name, ("layer", "head"), values, title, units, "sequential", 0, high, seed=seed,
            convention=said, source=source,
        )  # fmt: skip
    variables |= averaged(
        "mass_in_blocks", ("layer", "head", "blocks"), _tiles.average(held, weights[..., None]),
        "Mass in the best blocks of each row", "share", "sequential", 0, 1, seed=seed,
        convention=f"best blocks of each row of blocks; {convention}", source=SOURCE,
    )  # fmt: skip

    coords: dict[str, Any] = {"blocks": [f"best {one}" for one in budgets]}
    told = "No loss stands beside it: the model is not causal, or causal_prompts is 0."
    if predicts(capture) and causal_prompts:
        loss, told = _tiles.sparse_loss(
            capture, model, maps, needed, causal_prompts, seed, progress
        )
        coords["condition"] = list(CONDITIONS)
        variables |= averaged(
            "block_loss", ("condition",), loss, "Loss with heads kept to some blocks", "nats",
            "sequential", 0, seed=seed, source=SOURCE, evidence="causal",
            convention=f"loss a token on {len(loss)} prompts, all heads at once; {least}",
        )  # fmt: skip
    density = variables["block_density"].values
    dense = float(mean(density.ravel()))
    named = [label(head) for head in top(-density, 8)]
    return dataset(
        capture,
        variables,
        coords,
        convention=convention,
        note=(
            f"{mass:.0%} of the mass lies in {dense:.0%} of the visible blocks, mean over heads; "
            f"sparsest heads: {', '.join(named)}. {told}"
        ),
    )
