"""Position bias: is a document attended to for its position, or for its content?

A fact that is asked for is moved over the slots of a prompt of facts, and then a dummy, a fact that
nobody asks for, is put in its place. The mass on the dummy in each slot is the positional bias of a
head; what the asked fact gets beyond it is its relevance, as in calibrated attention,
``rel(x) = Attn(x, slot) − Attn(dummy, slot)``. The bias over slots is described by a parabola: tilt
(towards the end), U shape (both ends above the middle) and what is left, the wave. Documents are
then sought by the largest attention, raw and calibrated. The causal number: the accuracy without
the heads of the largest relevance, and without as many others.

Sources: Found in the Middle (calibration by dummy documents); Fortify the Shortest Stave
(waveform); Attention Sorting.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._interventions.ablation import Array, evaluate
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import (
    SHARE,
    ZERO_TO_ONE,
    Results,
    above,
    first_few,
    marked,
    named,
)
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import bootstrap, percentiles
from headscope.analyses._stats.bootstrap import draws as resamples
from headscope.analyses.pattern_shape import _slots
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.writing import split

NEEDS = ()
QUICK = {"draws": 1}
SUPPORTS = {"hybrid"}
TASK = "recall"
PROMPTS = 16
SLOTS = 4
# How much more mass both ends must get than the slots between where a bias is called U-shaped.
LEAST_RISE = 0.01

SOURCE = "Found in the Middle"
SHARES = ("slot", "document", "both together")


def run(
    model: Model,
    task: Task,
    *,
    length: Annotated[int, AtLeast(0)] = 0,
    least_relevance: Annotated[float, Between(0, 1)] = 0.1,
    draws: Annotated[int, AtLeast(1)] = 2,
    seed: int = 0,
) -> xr.Dataset:
    """Separate positional bias from relevance, head by head, by moving documents over slots.

    Parameters
    ----------
    model
        Model to measure; its heads are ablated for the causal check.
    task
        Prompts of stated facts: the role ``value`` names the stated values (the task recall).
    length
        Words of a prompt: the facts are drawn anew that far apart, with sentences between them;
        0 takes the prompts of the task as they are.
    least_relevance
        Relevance above which a head is named and ablated (the best one where none is).
    draws
        Number of random sets of as many other heads.
    seed
        Seed of the bootstrap over prompts and of the random sets.

    Returns
    -------
    Dataset with ``asked_mass`` and ``bias`` (layer, head, slot; the last query's mass on the asked
    fact and on the dummy), ``relevance`` (layer, head; their difference, mean over slots),
    ``tilt``, ``u_shape`` and ``wave`` (layer, head; of the bias), ``explained`` (by; share of the
    variance over slots and documents, mean over heads), ``bias_share`` (layer, head; of the
    variance, by the slot), ``slot_mass`` (document, slot; mean over heads), ``found`` (condition;
    share of documents that get the most attention, mean over heads), ``slot_accuracy`` (slot) and
    ``relevance_accuracy`` (ablation, the causal number), with 95 % intervals over prompts.
    """
    few = task.name == TASK and len(task.prompts[0].roles["key"]) < 3
    if length or few:
        # In natural register recall states two facts, too few for a curve over slots.
        draw_options: dict[str, Any] = ({"length": length} if length else {}) | (
            {"pairs": SLOTS} if few else {}
        )
        task = tasks.make(
            TASK, tokenizer=model.tokenizer, n=len(task), seed=task.seed, queries=1, **draw_options
        )
    moved = _slots.move(task, model)
    parts = [_slots.masses(model, prompt) for prompt in moved]
    asked, dummy = np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts])
    count = asked.shape[1]
    # Masses on the slot where the moved document stands: prompt, layer, head, slot.
    on_asked, on_dummy = (np.einsum("psljs->pljs", masses) for masses in (asked, dummy))

    facts = Task(
        "slots", tuple(prompt for document in moved for prompt in document.asked), "accuracy",
        task.seed, "The asked fact in every slot.",
    )  # fmt: skip
    right = evaluate(model, facts, metric="accuracy").reshape(len(moved), count)

    convention = (
        f"mass of the last query on key and value of a fact; {len(moved)} prompts of {task.name}, "
        f"{count} slots, {len(split(str(moved[0].asked[0].clean)))} words"
    )
    source = _source(model, parts[0][2] | {"task": task.name, "seed": task.seed}, len(facts))
    results = Results(source, seed=seed, convention=convention, source=SOURCE)
    _add_scores(results, on_asked, on_dummy)
    results.add_mean(
        "found", ("condition",), _hits(asked, on_dummy), "Asked facts with the most attention",
        "share of slots", *ZERO_TO_ONE,
        convention=f"largest mean over heads; calibrated: less the bias of a slot; {convention}",
    )  # fmt: skip
    results.add_mean(
        "slot_accuracy", ("slot",), right, "Accuracy by slot of the asked fact",
        "share of answers", *ZERO_TO_ONE, evidence="causal",
    )  # fmt: skip
    scores = results["relevance"].values
    pool = marked(np.isfinite(scores))
    ablated = above(scores, least_relevance, len(pool) // 2)
    accuracy, conditions, record = causal_check.check(
        "relevance_accuracy", "Accuracy on the moved facts", model, facts, ablated, pool,
        kind="relevance", draws=draws, seed=seed,
    )  # fmt: skip
    results.variables |= {
        name: xr.Variable(("ablation",), array.values, array.attrs)
        for name, array in accuracy.items()
    }
    best = named(scores, scores > least_relevance)[:8]
    tilt, bend = (float(np.nanmean(results[name].values)) for name in ("tilt", "u_shape"))
    # A curve that rises at one end alone is bent upwards, too.
    ends = np.minimum(on_dummy[..., 0], on_dummy[..., -1]) - on_dummy[..., 1:-1].mean(-1)
    rise, lower, _ = bootstrap(ends, seed=seed)
    u_shaped = named(rise, lower > LEAST_RISE)
    return results.dataset(
        {
            "slot": [f"slot {number}" for number in range(1, count + 1)],
            "document": ["asked fact", "dummy"],
            "by": list(SHARES),
            "condition": ["raw", "calibrated", "chance"],
            "ablation": conditions,
        },
        Verdict(record["verdict"], record["note"]),
        heads_by_type={"relevance": best, "U-shaped": u_shaped},
        causal=record,
        note=(
            f"Heads that attend to the asked fact for its content: {first_few(best) or 'none'}. "
            f"Positional bias, mean over heads: tilt {amount(tilt, '+')}, U shape "
            f"{amount(bend, '+')}; U-shaped heads: {first_few(u_shaped) or 'none'}."
        ),
    )


def _source(model: Model, provenance: dict[str, object], prompts: int) -> xr.Dataset:
    """Return the provenance of all captures as one Dataset with the model's layers and heads."""
    attends = np.isin(np.arange(model.layers), model.geometry.attending)
    coords = {
        "layer": np.arange(model.layers),
        "head": np.arange(model.heads),
        "attention_map": ("layer", attends),
    }
    return xr.Dataset(coords=coords, attrs=provenance | {"n_prompts": prompts})


def _add_scores(results: Results, on_asked: Array, on_dummy: Array) -> None:
    """Add bias and relevance of every head (prompt, layer, head, slot)."""
    convention, signed = results.about["convention"], ("share", "diverging")
    grid = ("layer", "head")
    difference, (tilt, bend) = (on_asked - on_dummy).mean(-1), _slots.curve(on_dummy)
    fit = "a + b x + c x² over slots"
    results.add_means(
        ("asked_mass", (*grid, "slot"), on_asked, "Mass on the asked fact by slot", SHARE),
        ("bias", (*grid, "slot"), on_dummy, "Mass on a dummy by slot: positional bias", SHARE),
        ("relevance", grid, difference, "Relevance: asked fact against dummy", (*signed, -1, 1),
         f"Attn(asked, slot) − Attn(dummy, slot), mean over slots; {convention}"),
        ("tilt", grid, tilt, "Tilt of the bias towards the end", signed,
         f"b of {fit}, x from −1 to 1; {convention}"),
        ("u_shape", grid, bend, "U shape of the bias", signed,
         f"c of {fit}; above 0 it is bent upwards; {convention}"),
    )  # fmt: skip
    _add_wave(results, on_dummy)
    by_prompt = [_slots.explained(*pair) for pair in zip(on_asked, on_dummy, strict=True)]
    results.add_mean(
        "explained", ("by",),
        np.array([[np.nanmean(share) for share in shares] for shares in by_prompt]),
        "Variance of the mass over slots and documents", "share of variance", *ZERO_TO_ONE,
        convention=f"two-way, mean over heads; {convention}",
    )  # fmt: skip
    by_slot, _, _ = _slots.explained(on_asked.mean(0), on_dummy.mean(0))
    results.add(
        "bias_share", grid, by_slot, "Variance of the mass by the slot alone", "share of variance",
        *ZERO_TO_ONE, convention=f"two-way over the mean of the prompts; {convention}",
    )  # fmt: skip
    documents = np.stack([on_asked.mean((1, 2)), on_dummy.mean((1, 2))], axis=1)
    results.add_mean(
        "slot_mass", ("document", "slot"), documents, "Mass by slot, mean over heads", *SHARE
    )


def _add_wave(results: Results, bias: Array) -> None:
    """Add the wave of the mean bias, so that the noise of single prompts is not one."""
    lower = upper = np.full(bias.shape[1:3], np.nan)
    if len(bias) > 1:
        drawn = resamples(len(bias), 300, results.seed) / len(bias)
        means = np.einsum("rp,pljs->rljs", drawn, bias)
        lower, upper = percentiles(_slots.wave(means), 0.025)
    rule = "root mean square of what a parabola leaves of the mean bias"
    results.add_interval(
        "wave", ("layer", "head"), (_slots.wave(bias.mean(0)), lower, upper),
        "Wave of the bias over slots", "share", "sequential", 0,
        convention=f"{rule}; {results.about['convention']}", source="Fortify the Shortest Stave",
    )  # fmt: skip


def _hits(fact_masses: Array, bias: Array) -> Array:
    """Return the share of asked facts with the largest attention (prompt, condition).

    The attention is the mean over heads, raw, and less what a dummy gets in the slot; then chance.
    """
    slots = np.arange(fact_masses.shape[1])
    raw = np.nanmean(fact_masses, axis=(2, 3))
    calibrated = np.nanmean(fact_masses - bias[:, None], axis=(2, 3))
    hits = [(masses.argmax(-1) == slots).mean(-1) for masses in (raw, calibrated)]
    return np.stack([*hits, np.full(len(fact_masses), 1 / len(slots))], axis=1)
