"""Head types: previous-token, duplicate-token, induction and BOS heads.

Scores of the attention pattern on a sequence of random tokens that is repeated, where the four
types are easily separated; beside them the causal check of the induction score: what the accuracy
on the repeated part becomes without the top induction heads, and without as many random others.
A model without causal order (an encoder) also gets next-token heads; it predicts no next token, so
there is no causal check.

Sources: Olsson et al., In-context Learning and Induction Heads (2209.11895); the conventions are
HeadVis' (mean over the queries that have a target) and TransformerLens' ``detect_head`` (share of
all weight). Unlike HeadVis, weights below 0.01 count too.
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import taxonomy
from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._runtime.results import (
    SHARE,
    Results,
    above,
    attending,
    heads,
    named,
    require,
)
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.length_trend import Array, mean, per_query
from headscope.kernels.errors import NotApplicable
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ("offset_mass", "target_mass", "first_mass")
QUICK = {"draws": 1}
SUPPORTS = {"encoder", "hybrid"}
OFFSETS = (-1, 0, 1)
TARGETS = ("duplicate", "induction")
TASK = "induction"
FEW_PASSES = True  # one capture and a few ablations: runs where no analysis is named
PROMPTS = 16

CONVENTIONS = {
    "headvis": "mean over the queries that have a target",
    "transformer_lens": "share of all weight: sum over the targets, divided by all rows",
}
TITLES = {
    "previous_token": "Attention to the token before",
    "duplicate_token": "Attention to earlier copies of the token",
    "induction": "Attention to the token after an earlier copy",
    "bos": "Attention to the first token",
    "next_token": "Attention to the token after",
}
BOTH_WAYS = Verdict(
    "too_few",
    "The model sees later tokens too, so it predicts no next token, and the scores have no causal "
    "number here; they are correlational.",
)


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    convention: Annotated[str, OneOf(tuple(CONVENTIONS))] = "headvis",
    least_score: Annotated[float, Between(0, 1)] = 0.4,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head as previous-token, duplicate-token, induction and BOS head.

    Parameters
    ----------
    capture
        Capture of the task with ``offset_mass`` at offsets 1 and -1, ``target_mass`` for the rules
        ``duplicate`` (keys that hold the query's token) and ``induction`` (keys right after
        those), and ``first_mass``.
    model
        Model that was captured; its heads are ablated for the causal check.
    task
        Repeated random tokens; its accuracy is the causal number.
    convention
        ``headvis``: mean over the queries that have a target; ``transformer_lens``: sum over the
        targets divided by all rows (the ``mul`` of its ``detect_head``).
    least_score
        Score above which a head is named by a type. The named heads (the best one where none is)
        are ablated in the causal check.
    draws
        Number of random sets of as many other heads.
    seed
        Seed of the bootstrap over prompts and of the random sets.

    Returns
    -------
    Dataset with ``previous_token``, ``duplicate_token``, ``induction`` and ``bos`` (layer, head;
    share of weight, with 95 % intervals over prompts) and ``induction_accuracy`` (condition).
    The first query is left out of ``bos``: it can see nothing else. Without causal order there is
    ``next_token`` (layer, head) in place of the accuracy, and ``bos`` is the mass on the first
    token, [CLS] of most encoders.
    """
    require(capture, NEEDS, "head_types")
    masses = {
        "previous_token": _at_offset(capture, 1),
        "duplicate_token": _by_rule(capture, "duplicate"),
        "induction": _by_rule(capture, "induction"),
        "bos": per_query(capture, "first_mass"),
    }
    masses["bos"][..., 0] = np.nan
    if not model.geometry.causal:
        masses["next_token"] = _at_offset(capture, -1)
    rows, form = _rows(capture), f"{convention}: {CONVENTIONS[convention]}"
    results = Results(
        capture, seed=seed, convention=form, source="HeadVis; TransformerLens detect_head"
    )
    by_type: dict[str, list[str]] = {}
    for name, mass in masses.items():
        results.add_mean(
            name, ("layer", "head"), _score(mass, rows, convention), TITLES[name], *SHARE,
            **taxonomy.attributes(name.replace("_", "-"), "scoring"),
        )  # fmt: skip
        scores = results[name].values
        by_type[name] = named(scores, scores > least_score)
    if not model.geometry.causal:
        return results.dataset(convention=form, heads_by_type=by_type, verdict=BOTH_WAYS)

    pool = heads(capture)
    ablated = {
        name: above(results[name].values, least_score, len(pool) // 2)
        for name in ("induction", "previous_token")
    }
    checked, conditions, record = causal_check.check(
        "induction_accuracy", "Accuracy on the repeated tokens", model, task,
        ablated["induction"], pool, kind="induction", draws=draws, seed=seed,
        others={"previous-token heads ablated": ablated["previous_token"]},
    )  # fmt: skip
    results.variables |= checked
    remark = (
        " The other three scores are statistics of the pattern; for their causal number see"
        " `importance`."
    )
    return results.dataset(
        {"condition": conditions},
        heads_by_type=by_type,
        causal=record,
        verdict=Verdict(record["verdict"], record["note"] + remark),
    )


def _at_offset(capture: xr.Dataset, offset: int) -> Array:
    if offset not in capture["offset"].values:
        _missing(f"offset_mass at offset {offset}", f"offsets={OFFSETS}")
    # A query without a token at that offset has no mass there: it is left out, not counted as zero.
    return per_query(capture.sel(offset=offset), "offset_mass")


def _by_rule(capture: xr.Dataset, rule: str) -> Array:
    if rule not in capture["target"].values:
        _missing(f"target_mass of the rule {rule!r}", 'targets=("duplicate", "induction")')
    return per_query(capture.sel(target=rule), "target_mass")


def _missing(needed: str, fix: str) -> None:
    raise NotApplicable(f"capture: head_types needs {needed}; capture again with {fix}")


def _rows(capture: xr.Dataset) -> Array:
    """Count the queries of each prompt."""
    layer = int(np.flatnonzero(attending(capture))[0])
    first = capture["first_mass"].isel(layer=layer, head=0).transpose("prompt", "query")
    return np.asarray(first.notnull().sum("query").values, dtype=np.float64)


def _score(mass: Array, rows: Array, convention: str) -> Array:
    """Reduce (prompt, layer, head, query) to (prompt, layer, head) by the convention."""
    if convention == "transformer_lens":
        return np.asarray(np.nansum(mass, axis=-1) / rows[:, None, None])
    return mean(mass)
