"""Lifetimes: how long a token keeps being attended, head by head.

After the text has gone on for a window, does a head still look back at a token, and does it until
the end? A token is `window` in a head where nobody farther than the window looks at it, `global`
where the last queries of the text still do, and `local` in between: looked at from afar for a
while. Being looked at means a mean weight, times the keys that these queries see, of ``alive`` or
more: an even spread gives 1 to every token, and so does one query in n that looks at nothing else.
What is kept in a cache can be read off: window tokens leave it as the window passes, local ones
later, global ones never. The causal number: the loss with heads whose weight is on window tokens
limited to the window, which should change nothing, and with as many other heads limited so.

Sources: Neural Attention Search (global, local and sliding-window tokens, learned there);
LLM-Microscope; Scissorhands (persistence of importance).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens, verdict
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import attending, averaged, dataset, label, require, top
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ()

SOURCE = "Neural Attention Search"
KINDS = ("window", "local", "global")
CONDITIONS = ("intact", "window heads limited", "as many others limited")
# Text beyond the window that a token needs behind it, in windows, to be judged.
BEHIND = 2
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    window: int = 0,
    alive: float = 0.5,
    least_mass: float = 0.9,
    causal_prompts: int = 6,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Class every token in every head by how long it is attended: window, local or global.

    Parameters
    ----------
    capture
        Capture of the prompts; their tokens are read again.
    model
        Model that was captured; causal.
    window
        Tokens of the window, the query's own included; the last queries of a text are as many. 0
        takes an eighth of the shortest prompt, 64 at most.
    alive
        Mean weight, times the keys seen, from which a token counts as looked at; an even spread
        gives 1.
    least_mass
        Share of a head's weight within the window from which it is limited in the causal check.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) prompts.

    Returns
    -------
    Dataset with ``lifetime_tokens`` (layer, head, lifetime; share of the judged tokens),
    ``lifetime_mass`` (layer, head, lifetime; their share of the weight on judged tokens),
    ``near_mass`` (layer, head; share of weight within the window), ``token_global``,
    ``token_local`` (query; share of the heads in which a token of the first prompt is one) and
    ``window_loss`` (condition; nats a token, the causal number), with 95 % intervals over prompts.
    Tokens with less than three windows of text behind them are not judged.

    Raises
    ------
    NotApplicable
        When the model is not causal, prompts are shorter than four windows, or an option is out of
        range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(40)), list(range(2, 42))]
    >>> execute("lifetimes", model, given, options={"causal_prompts": 0})["near_mass"].dims
    ('layer', 'head')
    """
    from headscope.analyses.token_groups._lifetime import judge, received

    options.at_least("window", window, 0)
    options.at_least("alive", alive, 0.0)
    options.between("least_mass", least_mass, 0.0, 1.0)
    options.at_least("causal_prompts", causal_prompts, 0)
    require(capture, NEEDS, "lifetimes")
    options.one_text(capture.attrs.get("attention", "self"), "lifetimes")
    if "pixels" in capture.coords or not predicts(capture):
        raise NotApplicable(
            "model: lifetimes follows what later tokens look at; it needs causal order"
        )
    ids = tokens(capture)
    window = window or min(max(min(map(len, ids)) // 8, 1), 64)
    behind = window * (1 + BEHIND)
    if min(map(len, ids)) < behind + window:
        raise NotApplicable(
            f"window: a prompt of {min(map(len, ids))} tokens is shorter than {behind + window}, "
            f"four windows of {window}; give longer prompts or a smaller window"
        )
    total = len(ids) + min(causal_prompts, len(ids))
    reach = capture["window"].values
    counts, masses, near, kinds = [], [], [], []
    for row, one in enumerate(ids):
        weights = received(model, one, window, reach)
        kind = judge(weights, alive)[..., : len(one) - behind]
        belongs = kind[..., None] == np.arange(len(KINDS))
        mass = (weights.total[..., : len(one) - behind, None] * belongs).sum(-2)
        # A layer without an attention map has no judgement either.
        counts.append(np.where(np.isnan(weights.total[..., :1]), np.nan, belongs.mean(-2)))
        masses.append(mass / np.where(mass.sum(-1) > 0, mass.sum(-1), np.nan)[..., None])
        near.append(np.clip(weights.near.sum(-1) / weights.total.sum(-1), 0, 1))
        kinds.append(kind)
        if progress is not None:
            progress(row + 1, total)

    convention = (
        f"window of {window} tokens; looked at: mean weight × keys seen ≥ {alive:g}; tokens with "
        f"{behind} or more behind them; {len(ids)} prompt(s)"
    )
    grid = ("layer", "head")
    variables: dict[str, xr.Variable] = {}
    for name, samples, title, units in (
        ("lifetime_tokens", counts, "Tokens by lifetime", "share of tokens"),
        ("lifetime_mass", masses, "Weight by lifetime of the token", "share"),
    ):
        variables |= averaged(
            name, (*grid, "lifetime"), np.clip(np.stack(samples), 0, 1), title, units,
            "sequential", 0, 1, seed=seed, convention=convention, source=SOURCE,
        )  # fmt: skip
    variables |= averaged(
        "near_mass", grid, np.stack(near), "Weight within the window", "share", "sequential", 0, 1,
        seed=seed, convention=f"window of {window} tokens, the query's own included; {len(ids)} "
        "prompt(s)", source=SOURCE,
    )  # fmt: skip
    variables |= _lanes(kinds[0][attending(capture)], convention)
    coords: dict[str, Any] = {
        "lifetime": list(KINDS),
        "query": np.arange(kinds[0].shape[-1]),
        "token": ("query", capture["token"].values[0, : kinds[0].shape[-1]].astype(str)),
    }
    scores = variables["near_mass"].values
    told = "No loss stands beside it: causal_prompts is 0."
    if causal_prompts:
        found, told = _limit(
            capture, model, ids[:causal_prompts], scores, window, least_mass, seed, progress, total
        )
        variables |= found
        coords["condition"] = list(CONDITIONS)
    tokens_of, mass_of = (variables[f"lifetime_{of}"].values for of in ("tokens", "mass"))
    by_type = {
        kind: [label(each) for each in top(each_mass, int((each_mass > 0.5).sum()))]
        for kind, each_mass in zip(KINDS, np.moveaxis(mass_of, -1, 0), strict=True)
    }
    means = np.nanmean(tokens_of, axis=(0, 1))
    listed = ", ".join(f"{share:.0%} {kind}" for kind, share in zip(KINDS, means, strict=True))
    return dataset(
        capture,
        variables,
        coords,
        convention=convention,
        heads_by_type=by_type,
        note=f"Tokens by lifetime, mean of heads: {listed}. {told}",
    )


def _lanes(kinds: NDArray[np.int64], convention: str) -> dict[str, xr.Variable]:
    """Return the share of heads in which each token of the first prompt is global, and local."""
    from headscope.analyses._runtime.results import variable

    return {
        f"token_{name}": variable(
            ("query",), (kinds == KINDS.index(name)).mean((0, 1)),
            f"Heads in which a token is {name}", "share of heads", "sequential", 0, 1,
            convention=f"first prompt; {convention}", source=SOURCE,
        )
        for name in ("global", "local")
    }  # fmt: skip


def _limit(
    capture: xr.Dataset,
    model: Model,
    ids: list[list[int]],
    near: Array,
    window: int,
    least: float,
    seed: int,
    progress: Progress | None,
    total: int,
) -> tuple[dict[str, xr.Variable], str]:
    """Measure the loss with window heads limited to the window, and with as many others."""
    from headscope.probes.interventions import Window

    passing = [head for head in top(near, near.size) if near[head] >= least]
    others = [head for head in reversed(top(near, near.size)) if near[head] < least]
    size = min(len(passing), len(others))
    sets = (passing[:size], others[:size])
    edits: dict[str, tuple[Window, ...]] = {CONDITIONS[0]: ()}
    for condition, heads in zip(CONDITIONS[1:], sets, strict=True):
        edits[condition] = (Window(heads=tuple(heads), recent=window, first=0),) if size else ()
    count = int(capture.sizes["prompt"])
    found = contrast(
        model,
        ids,
        edits,
        None if progress is None else lambda done, _: progress(count + done, total),
    )
    if not size:
        found[:, 1:] = np.nan
    costs = found.mean(0) - found[:, :1].mean()
    which = "no head keeps" if not passing else "every head keeps"
    note = f"INCONCLUSIVE: {which} {least:.0%} of its weight within the window."
    if size:
        note = (
            f"{verdict(found[:, 1], found[:, 2], seed)}: limited to a window of {window}, the "
            f"{size} heads with most weight in it ({', '.join(map(label, sets[0][:4]))}) change "
            f"the loss by {costs[1]:+.4f} nats, the {size} with least {costs[2]:+.4f}."
        )
    variables = averaged(
        "window_loss", ("condition",), found, "Loss with heads limited to the window",
        "nats a token", "sequential", 0, seed=seed, evidence="causal", note=note,
        heads={name: [label(one) for one in each]
               for name, each in zip(CONDITIONS[1:], sets, strict=True)},
        convention=f"heads with ≥ {least:.0%} of their weight within {window} tokens, and as many "
        f"with least; {len(found)} prompt(s)",
    )  # fmt: skip
    return variables, note
