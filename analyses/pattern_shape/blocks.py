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

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import predicts
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, Results, label, require, top
from headscope.analyses._stats.length_trend import length_note, mean
from headscope.analyses.pattern_shape import _tiles
from headscope.kernels.formatting import percent
from headscope.probes.models.model import Model

NEEDS = ("pooled_mean",)
QUICK = {"causal_prompts": 2}
SUPPORTS = {"encoder", "vision", "hybrid"}

SOURCE = "SeerAttention; VMoBA; Quest"
STRIPES = "SampleAttention"
CONDITIONS = ("all blocks", "needed blocks", "as many random blocks")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    mass: Annotated[float, Between(0.01, 0.999)] = 0.9,
    window: Annotated[int, AtLeast(1)] = 1,
    stripes: Annotated[int, AtLeast(0)] = 2,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
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

    Returns
    -------
    Dataset with ``blocks_needed`` (layer, head; blocks), ``block_density`` (layer, head; their
    share of the visible blocks), ``mass_in_blocks`` (layer, head, blocks; share held by the best 1,
    2, 4, … blocks of each row), ``window_share``, ``stripe_share`` and ``rest_share`` (layer, head;
    they sum to 1), ``stripes_needed`` (layer, head; columns that reach p together with the window)
    and ``block_loss`` (condition; nats a token, the causal number), with 95 % intervals over
    prompts. Shares are of the mass on keys: a learned sink is no block.
    """
    require(capture, NEEDS, "blocks", ("self",))

    maps, weights, visible = _tiles.maps(capture)
    sums = _tiles.sorted_sums(maps)
    needed = _tiles.needed(maps, mass)
    budgets = [2**power for power in range(maps.shape[-1].bit_length())]
    budget_mass = np.stack([sums[..., budget - 1] for budget in budgets], axis=-1)
    near, columns = _tiles.decompose(maps, weights, window)
    stripe = columns[..., :stripes].sum(-1)
    enough = near[..., None] + np.concatenate(
        (np.zeros((*near.shape, 1)), np.cumsum(columns, axis=-1)), axis=-1
    )
    count = np.where(np.isnan(near), np.nan, (enough < mass - _tiles.SLACK).sum(-1))

    tile = int(capture.attrs["tile"])
    convention = (
        f"blocks of {tile} × {tile} tokens; share of the mass on keys, mean over queries; prompts "
        f"of {length_note(capture)}"
    )
    fewest = f"fewest blocks with {percent(mass)} of a block row's mass; {convention}"
    split = f"window of {window}, then {stripes} stripes with the most of the rest; {convention}"
    number, share = _tiles.average(needed, weights), _tiles.average(needed / visible, weights)
    outside = np.maximum(1 - near - stripe, 0)
    results = Results(capture, seed=seed, source=SOURCE)
    results.add_means(
        ("blocks_needed", GRID, number, f"Blocks that hold {percent(mass)} of the mass",
         ("blocks", "sequential", 0), fewest),
        ("block_density", GRID, share, "Needed share of the visible blocks",
         ("share of blocks", "sequential", 0, 1), fewest),
        ("window_share", GRID, near, "Mass inside the window", SHARE, split, STRIPES),
        ("stripe_share", GRID, stripe, "Mass on the column stripes", SHARE, split, STRIPES),
        ("rest_share", GRID, outside, "Mass outside window and stripes", SHARE, split, STRIPES),
        ("stripes_needed", GRID, count, f"Stripes that reach {percent(mass)} with the window",
         ("columns of blocks", "sequential", 0), split, STRIPES),
        ("mass_in_blocks", (*GRID, "blocks"), _tiles.average(budget_mass, weights[..., None]),
         "Mass in the best blocks of each row", SHARE,
         f"best blocks of each row of blocks; {convention}"),
    )  # fmt: skip
    coords: dict[str, Any] = {"blocks": [f"best {budget}" for budget in budgets]}
    density = results["block_density"].values
    sparsest = ", ".join(label(head) for head in top(-density, 8))
    note = (
        f"{percent(mass)} of the mass lies in {percent(float(mean(density.ravel())))} of the "
        f"visible blocks, mean over heads; sparsest heads: {sparsest}; those of a "
        "head that rests on a sink are few, too."
    )
    longest = int(capture["length"].max())
    if not (predicts(capture) and causal_prompts and longest > 1):
        note += (
            " No loss is measured: the model is not causal, no prompt has a next token, or "
            "causal_prompts is 0."
        )
        return results.dataset(coords, convention=convention, note=note)
    loss, verdict = _tiles.sparse_loss(capture, model, maps, needed, causal_prompts, seed)
    results.add_mean(
        "block_loss", ("condition",), loss, "Loss with heads kept to some blocks", "nats",
        "sequential", 0, evidence="causal",
        convention=f"loss a token on {len(loss)} prompts, all heads at once; {fewest}",
    )  # fmt: skip
    coords["condition"] = list(CONDITIONS)
    return results.dataset(coords, verdict, convention=convention, note=note)
