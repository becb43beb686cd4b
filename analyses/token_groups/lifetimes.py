"""Lifetimes: how long a token keeps being attended, head by head.

After the text has gone on for a window, does a head still attend back to a token, and does it until
the end? A token is `window` in a head where nobody farther than the window attends to it, `global`
where the last queries of the text still do, and `local` in between: attended to from a distance for
a while. Being attended to means a mean weight, times the keys that these queries see, of ``alive``
or more: an even spread gives 1 to every token, and so does one query in n that attends to nothing
else. What is kept in a cache can be read off: window tokens leave it as the window passes, local
ones later, global ones never. The causal number: the loss with heads whose weight is on window
tokens limited to the window, which should change nothing, and with as many other heads limited so.

Sources: Neural Attention Search (global, local and sliding-window tokens, learned there);
LLM-Microscope; Scissorhands (persistence of importance).
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens
from headscope.analyses._measurements.received import token_axis
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    ZERO_TO_ONE,
    Results,
    attending,
    label,
    named,
    require,
    top,
)
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses.token_groups._lifetime import judge, received
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.interventions import Window
from headscope.probes.models.model import Model

NEEDS = ()
SUPPORTS = {"hybrid"}

SOURCE = "Neural Attention Search"
KINDS = ("window", "local", "global")
CONDITIONS = ("intact", "window heads limited", "as many others limited")
# Text beyond the window that a token needs behind it, in windows, to be judged.
BEHIND = 2


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    window: Annotated[int, AtLeast(0)] = 0,
    alive: Annotated[float, AtLeast(0)] = 0.5,
    least_mass: Annotated[float, Between(0, 1)] = 0.9,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Class every token in every head by how long it is attended: window, local or global.

    Parameters
    ----------
    capture, model
        Capture of the prompts, whose tokens are read again, and the causal model behind it.
    window
        Tokens of the window, the query's own included; the last queries of a text are as many. 0
        takes an eighth of the shortest prompt, 64 at most.
    alive
        Mean weight, times the keys seen, from which a token counts as attended to; an even spread
        gives 1.
    least_mass
        Share of a head's weight within the window from which it is limited in the causal check.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``lifetime_tokens`` (layer, head, lifetime; share of the judged tokens),
    ``lifetime_mass`` (layer, head, lifetime; their share of the weight on judged tokens),
    ``near_mass`` (layer, head; share of weight within the window), ``token_global``,
    ``token_local`` (query; share of the heads in which a token of the first prompt is one) and
    ``window_loss`` (condition; nats a token, the causal number), with 95 % intervals over prompts.
    Tokens with less than three windows of text behind them are not judged.
    """
    require(capture, NEEDS, "lifetimes", ("self",))
    if "pixels" in capture.coords or not predicts(capture):
        raise NotApplicable(
            "model: lifetimes follows what later tokens attend to; it needs causal order"
        )
    prompts = tokens(capture)
    shortest = min(map(len, prompts))
    window = window or min(max(shortest // 8, 1), 64)
    behind = window * (1 + BEHIND)
    if shortest < behind + window:
        raise NotApplicable(
            f"window: a prompt of {shortest} tokens is shorter than {behind + window}, "
            f"four windows of {window}; give longer prompts or a smaller window"
        )
    reach = capture["window"].values
    shares, masses, near, kinds = [], [], [], []
    checked = prompts[:causal_prompts]
    for ids in prompts:
        weights = received(model, ids, window, reach)
        kind = judge(weights, alive)[..., : len(ids) - behind]
        belongs = kind[..., None] == np.arange(len(KINDS))
        mass = (weights.total[..., : len(ids) - behind, None] * belongs).sum(-2)
        # A layer without an attention map has no judgement either.
        shares.append(np.where(np.isnan(weights.total[..., :1]), np.nan, belongs.mean(-2)))
        masses.append(mass / np.where(mass.sum(-1) > 0, mass.sum(-1), np.nan)[..., None])
        near.append(np.clip(weights.near.sum(-1) / weights.total.sum(-1), 0, 1))
        kinds.append(kind)

    convention = (
        f"window of {window} tokens; attended to: mean weight × keys seen ≥ {alive:g}; tokens "
        f"with {behind} or more behind them; {len(prompts)} prompt(s)"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_means(
        ("lifetime_tokens", (*GRID, "lifetime"), np.clip(np.stack(shares), 0, 1),
         "Tokens by lifetime", ("share of tokens", *ZERO_TO_ONE)),
        ("lifetime_mass", (*GRID, "lifetime"), np.clip(np.stack(masses), 0, 1),
         "Weight by lifetime of the token", SHARE),
        ("near_mass", GRID, np.stack(near), "Weight within the window", SHARE,
         f"window of {window} tokens, the query's own included; {len(prompts)} prompt(s)"),
    )  # fmt: skip
    first = kinds[0][attending(capture)]
    for name in ("global", "local"):
        results.add(
            f"token_{name}", ("query",), (first == KINDS.index(name)).mean((0, 1)),
            f"Heads in which a token is {name}", "share of heads", *ZERO_TO_ONE,
            convention=f"first prompt; {convention}",
        )  # fmt: skip
    coords = token_axis(capture, first.shape[-1]) | {"lifetime": list(KINDS)}
    verdict = None
    if checked:
        verdict = _limit(results, model, checked, window, least_mass)
        coords["condition"] = list(CONDITIONS)
    by_kind = np.moveaxis(results["lifetime_mass"].values, -1, 0)
    by_type = {kind: named(mass, mass > 0.5) for kind, mass in zip(KINDS, by_kind, strict=True)}
    means = np.nanmean(results["lifetime_tokens"].values, axis=(0, 1))
    listed = ", ".join(f"{percent(share)} {kind}" for kind, share in zip(KINDS, means, strict=True))
    remark = "" if verdict else " No loss stands beside it: causal_prompts is 0."
    return results.dataset(
        coords,
        heads_by_type=by_type,
        note=f"Tokens by lifetime, mean of heads: {listed}.{remark}",
        verdict=verdict,
    )


def _limit(
    results: Results, model: Model, prompts: list[list[int]], window: int, least: float
) -> Verdict:
    """Add the loss with window heads limited to the window, and with as many others."""
    near = results["near_mass"].values
    ranked = top(near, near.size)
    passing = [head for head in ranked if near[head] >= least]
    others = [head for head in reversed(ranked) if near[head] < least]
    size = min(len(passing), len(others))
    sets = dict(zip(CONDITIONS[1:], (passing[:size], others[:size]), strict=True))
    limits = [
        [Window(heads=tuple(heads), recent=window, first=0)] if size else []
        for heads in sets.values()
    ]
    loss = contrast(model, prompts, [(), *limits])
    if size:
        costs = loss.mean(0) - loss[:, :1].mean()
        verdict = causal_verdict(
            loss[:, 2] - loss[:, 1],
            f"limited to a window of {window}, the {size} heads with most weight in it "
            f"({', '.join(map(label, passing[: min(size, 4)]))}) change the loss by "
            f"{amount(costs[1], '+')} nats, the {size} with least {amount(costs[2], '+')}",
        )  # fmt: skip
    else:
        loss[:, 1:] = np.nan
        which = "Every head keeps" if passing else "No head keeps"
        verdict = Verdict("too_few", f"{which} {percent(least)} of its weight within the window.")
    results.add_mean(
        "window_loss", ("condition",), loss, "Loss with heads limited to the window",
        "nats a token", "sequential", 0, evidence="causal", note=verdict.text,
        heads={name: [label(head) for head in heads] for name, heads in sets.items()},
        convention=f"heads with ≥ {percent(least)} of their weight within {window} tokens, and as "
        f"many with least; {len(loss)} prompt(s)",
    )  # fmt: skip
    return verdict
