"""Slots: is a document looked at for where it stands, or for what it says?

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

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import above, averaged, dataset, interval, label, top
from headscope.analyses._stats.bootstrap import draws as resamples
from headscope.analyses._stats.bootstrap import percentiles
from headscope.analyses.pattern_shape import _slots

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "recall"
PROMPTS = 8

SOURCE = "Found in the Middle"
SHARES = ("slot", "document", "both together")
Array = NDArray[np.float64]


def run(
    model: Model,
    task: Task,
    *,
    length: int = 0,
    least_relevance: float = 0.1,
    draws: int = 2,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Separate positional bias from relevance, head by head, by moving documents over slots.

    Parameters
    ----------
    model
        Model to look at; its heads are ablated for the causal check.
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
    progress
        Called with (done, total) ablations.

    Returns
    -------
    Dataset with ``asked_mass`` and ``bias`` (layer, head, slot; the last query's mass on the asked
    fact and on the dummy), ``relevance`` (layer, head; their difference, mean over slots),
    ``tilt``, ``u_shape`` and ``wave`` (layer, head; of the bias), ``explained`` (by; share of the
    variance over slots and documents, mean over heads), ``bias_share`` (layer, head; of the
    variance, by the slot), ``slot_mass`` (document, slot; mean over heads), ``found`` (condition;
    share of documents that get the most attention, mean over heads), ``slot_accuracy`` (slot) and
    ``relevance_accuracy`` (ablation, the causal number), with 95 % intervals over prompts.

    Raises
    ------
    HeadscopeError
        When the prompts state no facts at a role ``value``, or an option is out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> execute("position_bias", model, n=2, options={"draws": 1})["relevance"].dims
    ('layer', 'head')
    """
    from headscope.analyses._interventions.ablation import evaluate
    from headscope.probes.prompts import tasks
    from headscope.probes.prompts.task import Task

    options.at_least("length", length, 0)
    options.between("least_relevance", least_relevance, 0, 1)
    options.at_least("draws", draws, 1)
    if length:
        task = tasks.make(
            TASK, tokenizer=model.tokenizer, n=len(task), seed=task.seed, length=length, queries=1
        )
    moved = _slots.move(task, model)
    parts = [_slots.masses(model, one) for one in moved]
    asked, dummy = np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts])
    count = asked.shape[1]
    # Masses on the slot where the moved document stands: prompt, layer, head, slot.
    on_asked, on_dummy = (np.einsum("psljs->pljs", each) for each in (asked, dummy))

    facts = Task(
        "slots", tuple(prompt for one in moved for prompt in one.asked), "accuracy", task.seed,
        "The asked fact in every slot.",
    )  # fmt: skip
    right = evaluate(model, facts, metric="accuracy").reshape(len(moved), count)

    convention = (
        f"mass of the last query on key and value of a fact; {len(moved)} prompts of {task.name}, "
        f"{count} slots, {len(moved[0].asked[0].words)} words"
    )
    variables = _scores(on_asked, on_dummy, convention, seed)
    variables |= _found(asked, on_dummy, convention, seed)
    variables |= averaged(
        "slot_accuracy", ("slot",), right, "Accuracy by slot of the asked fact",
        "share of answers", "sequential", 0, 1, seed=seed, convention=convention, evidence="causal",
        source=SOURCE,
    )  # fmt: skip
    scores = variables["relevance"].values
    pool = [(int(a), int(b)) for a, b in np.argwhere(np.isfinite(scores))]
    accuracy, conditions, record = causal_check.check(
        "relevance_accuracy", "Accuracy on the moved facts", model, facts,
        above(scores, least_relevance, len(pool) // 2), pool, kind="relevance", draws=draws,
        seed=seed, progress=progress,
    )  # fmt: skip
    renamed = {
        name: xr.Variable(("ablation",), each.values, each.attrs) for name, each in accuracy.items()
    }
    provenance = {**parts[0][2], "task": task.name, "seed": task.seed, "n_prompts": len(facts)}
    attends = np.isin(np.arange(model.layers), model.geometry.attending)
    source = xr.Dataset(
        coords={
            "layer": np.arange(model.layers),
            "head": np.arange(model.heads),
            "attention_map": ("layer", attends),
        },
        attrs=provenance,
    )
    best = [label(head) for head in top(scores, min(int((scores > least_relevance).sum()), 8))]
    means = {name: float(np.nanmean(variables[name].values)) for name in ("tilt", "u_shape")}
    return dataset(
        source,
        {**variables, **renamed},
        {
            "slot": [f"slot {number}" for number in range(1, count + 1)],
            "document": ["asked fact", "dummy"],
            "by": list(SHARES),
            "condition": ["raw", "calibrated", "chance"],
            "ablation": conditions,
        },
        convention=convention,
        heads_by_type={"relevance": best},
        causal=record,
        note=(
            f"Heads that look at the asked fact for what it is: {', '.join(best) or 'none'}. "
            f"Positional bias, mean over heads: tilt {means['tilt']:+.3f}, U shape "
            f"{means['u_shape']:+.3f}. {record['note']}"
        ),
    )


def _scores(on_asked: Array, on_dummy: Array, convention: str, seed: int) -> dict[str, xr.Variable]:
    """Describe bias and relevance of every head."""
    tilt, bend = _slots.curve(on_dummy)
    variables: dict[str, xr.Variable] = {}
    for name, values, title in (
        ("asked_mass", on_asked, "Mass on the asked fact by slot"),
        ("bias", on_dummy, "Mass on a dummy by slot: positional bias"),
    ):
        variables |= averaged(
            name, ("layer", "head", "slot"), values, title, "share", "sequential", 0, 1, seed=seed,
            convention=convention, source=SOURCE,
        )  # fmt: skip
    for name, values, title, scale, low, said in (
        ("relevance", (on_asked - on_dummy).mean(-1), "Relevance: asked fact against dummy",
         "diverging", -1, "Attn(asked, slot) − Attn(dummy, slot), mean over slots"),
        ("tilt", tilt, "Tilt of the bias towards the end", "diverging", None,
         "b of a + b x + c x² over slots, x from −1 to 1"),
        ("u_shape", bend, "U shape of the bias", "diverging", None,
         "c of a + b x + c x² over slots; above 0 both ends get more than the middle"),
    ):  # fmt: skip
        variables |= averaged(
            name, ("layer", "head"), values, title, "share", scale, low, -low if low else None,
            seed=seed, convention=f"{said}; {convention}", source=SOURCE,
        )  # fmt: skip
    variables |= _wave(on_dummy, convention, seed)
    shares = _slots.explained(on_asked.mean(0), on_dummy.mean(0))
    each = [_slots.explained(*pair) for pair in zip(on_asked, on_dummy, strict=True)]
    variables |= averaged(
        "explained", ("by",), np.array([[np.nanmean(share) for share in one] for one in each]),
        "Variance of the mass over slots and documents", "share of variance", "sequential", 0, 1,
        seed=seed, convention=f"two-way, mean over heads; {convention}", source=SOURCE,
    )  # fmt: skip
    variables["bias_share"] = xr.Variable(
        ("layer", "head"), shares[0],
        {"long_name": "Variance of the mass by the slot alone", "units": "share of variance",
         "scale": "sequential", "low": 0, "high": 1, "source": SOURCE,
         "convention": f"two-way over the mean of the prompts; {convention}"},
    )  # fmt: skip
    documents = np.stack([one.mean((1, 2)) for one in (on_asked, on_dummy)], axis=1)
    variables |= averaged(
        "slot_mass", ("document", "slot"), documents, "Mass by slot, mean over heads", "share",
        "sequential", 0, 1, seed=seed, convention=convention, source=SOURCE,
    )  # fmt: skip
    return variables


def _wave(bias: Array, convention: str, seed: int) -> dict[str, xr.Variable]:
    """Measure the wave of the mean bias, so that the noise of single prompts is not one."""
    lower = upper = np.full(bias.shape[1:3], np.nan)
    if len(bias) > 1:
        drawn = resamples(len(bias), 300, seed) / len(bias)
        means = np.einsum("rp,pljs->rljs", drawn, bias)
        lower, upper = percentiles(_slots.wave(means), 0.025)
    return interval(
        "wave", ("layer", "head"), _slots.wave(bias.mean(0)), lower, upper,
        "Wave of the bias over slots", "share", "sequential", 0,
        convention=f"root mean square of what a parabola leaves of the mean bias; {convention}",
        source="Fortify the Shortest Stave",
    )  # fmt: skip


def _found(asked: Array, bias: Array, convention: str, seed: int) -> dict[str, xr.Variable]:
    """Seek the asked fact by the largest attention, averaged over heads."""
    place = np.arange(asked.shape[1])
    raw = np.nanmean(asked, axis=(2, 3))
    # What a dummy gets in a slot is subtracted from what stands there.
    calibrated = np.nanmean(asked - bias[:, None], axis=(2, 3))
    hits = [(each.argmax(-1) == place).mean(-1) for each in (raw, calibrated)]
    samples = np.stack([*hits, np.full(len(asked), 1 / len(place))], axis=1)
    return averaged(
        "found", ("condition",), samples, "Asked facts with the most attention", "share of slots",
        "sequential", 0, 1, seed=seed, source=SOURCE,
        convention=f"largest mean over heads; calibrated: less the bias of a slot; {convention}",
    )  # fmt: skip
