"""Distractors: does a head keep its eye on the asked fact as other facts are added?

Facts are stated and one of them is asked for; their number grows. For each number the mass of the
asking token is read on the asked fact, on the others, on the question itself. The relevance of a
head is the ratio of its mass on the asked fact to that on a mean other one; its dispersion is minus
the slope of the log of the asked fact's share of the facts' mass over the log of their number: 0
for a head that keeps its eye on it, 1 for one that looks at all facts alike. Examples given in a
prompt (shots) spread attention in the same way. The causal numbers: the answer's accuracy and loss
as the facts grow, and with the asked fact hidden, another fact of the same size hidden, or the
asked fact hidden from the heads that look at it most, and from as many others.

Sources: Focused Transformer (distraction); OpAmp (relevant against irrelevant documents); Focused
Large Language Models are Stable Many-Shot Learners (dispersion over shots).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import SOLVED, Progress, random_sets
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, label, top
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses._stats.length_trend import mean, slope
from headscope.analyses.retrieval_heads.needle_sweep import numbers
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.analyses.token_groups._facts import Facts
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "recall"
PROMPTS = 12

SOURCE = "Focused Transformer; Efficient OpAmp; Stable Many-Shot Learners"
CONDITIONS = (
    "intact",
    "asked fact hidden",
    "another fact hidden",
    "asked fact hidden from top heads",
    "asked fact hidden from other heads",
)
# Below this, float32 sums of weights are rounding.
LEAST = 1e-7
Array = NDArray[np.float64]


def run(
    model: Model,
    task: Task,
    *,
    facts: str = "2,4,8,16",
    length: int = 0,
    best: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measure relevance and dispersion of every head as distracting facts are added.

    Parameters
    ----------
    model
        Model to look at.
    task
        The task ``recall``: its seed, and how many prompts; they are drawn anew for every number.
    facts
        Numbers of facts, separated by commas; two numbers or more, each 2 or more.
    length
        Words of a prompt, with sentences between the facts; 0 states the facts alone, so that the
        prompt grows with them.
    best
        Number of heads, those with most mass on the asked fact, from which it is hidden.
    seed
        Seed of the bootstrap over prompts, of the other heads and of the other fact.
    progress
        Called with (done, total) prompts.

    Returns
    -------
    Dataset with ``asked_mass`` (layer, head, facts; share of weight), ``fact_entropy`` (layer,
    head, facts; of the mass over facts, share of its largest value), ``relevance`` (layer, head;
    log2 of asked over mean other fact, at the largest number), ``dispersion`` (layer, head; slope),
    ``group_mass`` (facts, group; mean over heads), ``accuracy`` (condition, facts) and
    ``answer_loss`` (condition, facts; nats), the causal numbers, with 95 % intervals over prompts.

    Raises
    ------
    HeadscopeError
        For another task, a model that predicts no next token, numbers that the words do not
        suffice for, and options out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> execute("distractors", model, n=2, options={"facts": "2,4"})["dispersion"].dims
    ('layer', 'head')
    """
    from headscope.analyses.token_groups import _facts
    from headscope.probes import capture
    from headscope.probes.prompts import tasks

    model.check_predicts()
    if task.name != TASK:
        raise NotApplicable(f"task: {task.name} does not come with any number of facts; use {TASK}")
    counts = numbers("facts", facts)
    if len(counts) < 2 or counts[0] < 2:
        raise InvalidInput(f"facts: {facts!r}; give two numbers or more, each from 2")
    options.at_least("length", length, 0)
    attending = model.geometry.attending
    pool = [(layer, head) for layer in attending for head in range(model.heads)]
    options.at_least("best", best, 1)
    if 2 * best > len(pool):
        raise NotApplicable(f"best: {best} of {len(pool)} heads leave fewer others; take fewer")

    drawn = [
        tasks.make(
            TASK, model.tokenizer, len(task), task.seed, pairs=count, queries=1,
            **({"length": length} if length else {}),
        )
        for count in counts
    ]  # fmt: skip
    sets = [_facts.Facts(model, one) for one in drawn]
    total = 2 * len(sets) * len(task)
    masses = [np.stack([one.masses(row) for row in range(len(task))]) for one in sets]
    if progress is not None:
        progress(total // 2, total)
    pairs = [
        [_facts.split(mass, asked) for mass, asked in zip(masses[at], one.asked, strict=True)]
        for at, one in enumerate(sets)
    ]
    on_asked = np.stack([[asked for asked, _ in each] for each in pairs], axis=-1)
    entropies = np.stack([_facts.entropy(each[..., :-2]) for each in masses], axis=-1)
    groups = np.stack([_groups(mass, each) for mass, each in zip(masses, pairs, strict=True)], 1)
    others = np.stack([rest.mean(-1) for _, rest in pairs[-1]])
    relevance = np.log2(np.maximum(on_asked[..., -1], LEAST) / np.maximum(others, LEAST))
    sums = np.stack([mass[..., :-2].sum(-1) for mass in masses], axis=-1)
    share = np.maximum(on_asked, LEAST) / np.maximum(sums, LEAST)
    dispersion = -slope(np.log(np.array(counts, dtype=float)), np.log(share))

    ranked = bootstrap(on_asked[..., -1])[0]
    chosen = top(ranked, best)
    rest = [head for head in pool if head not in chosen]
    random = random_sets(rest, best, 1, seed)[0]
    right, nats = _hide(sets, pool, chosen, random, seed, total, progress)

    said = f"{len(task)} prompts of {TASK} for each of {', '.join(map(str, counts))} facts" + (
        f", {length} words" if length else ", nothing between them"
    )
    asking = f"mass of the asking token on key and value of a fact; {said}"
    grid = ("layer", "head")
    variables: dict[str, xr.Variable] = {
        **averaged(
            "asked_mass", (*grid, "facts"), on_asked, "Mass on the asked fact", "share",
            "sequential", 0, 1, seed=seed, convention=asking, source=SOURCE,
        ),
        **averaged(
            "fact_entropy", (*grid, "facts"), entropies, "Entropy of the mass over facts",
            "share of log(facts)", "sequential", 0, 1, seed=seed, convention=asking, source=SOURCE,
        ),
        **averaged(
            "relevance", grid, relevance, "Relevance: asked fact against another one", "log2 ratio",
            "diverging", seed=seed, source=SOURCE,
            convention=f"among {counts[-1]} facts; masses below {LEAST:g} count as that; {asking}",
        ),
        **averaged(
            "dispersion", grid, dispersion, "Dispersion over distracting facts", "slope",
            "diverging", seed=seed, source=SOURCE,
            convention=f"−d log(asked fact's share of the facts' mass) / d log(facts): 0 keeps its "
            f"eye on it, 1 looks at all alike; {asking}",
        ),
        **averaged(
            "group_mass", ("facts", "group"), groups, "Mass of the asking token, mean of heads",
            "share", "sequential", 0, 1, seed=seed, convention=asking, source=SOURCE,
        ),
    }  # fmt: skip
    note = _verdict(counts, right, nats, chosen, dispersion, seed)
    causal = {"evidence": "causal", "note": note, "heads": [label(one) for one in chosen]}
    hiding = f"hidden from all tokens after the fact; {best} heads with most asked mass; {said}"
    variables |= averaged(
        "accuracy", ("condition", "facts"), right, "Accuracy among distracting facts",
        "share of answers", "sequential", 0, 1, seed=seed, convention=hiding, **causal,
    )  # fmt: skip
    variables |= averaged(
        "answer_loss", ("condition", "facts"), nats, "Loss of the answer among distracting facts",
        "nats an answer", "sequential", 0, seed=seed, convention=f"−log p; {hiding}", **causal,
    )  # fmt: skip
    result = dataset(
        capture(model, drawn[-1], stats=("lse",)),
        variables,
        {
            "facts": list(counts),
            "group": list(_facts.GROUPS),
            "condition": list(CONDITIONS),
        },
        convention=asking,
        heads_by_type={"asked fact": [label(one) for one in chosen]},
        note=note,
    )
    result.attrs["n_prompts"] = len(task) * len(counts)
    return result


def _groups(masses: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """Average the mass on every group of tokens over heads (prompt, group)."""
    rows = []
    for mass, (asked, others) in zip(masses, pairs, strict=True):
        parts = (asked, others.sum(-1), mass[..., -2], mass[..., -1])
        rows.append([float(mean(part.ravel())) for part in parts])
    return np.asarray(np.clip(np.array(rows), 0, 1))


def _hide(
    sets: list[Facts],
    pool: list[tuple[int, int]],
    chosen: list[tuple[int, int]],
    random: tuple[tuple[int, int], ...],
    seed: int,
    total: int,
    progress: Progress | None,
) -> tuple[Array, Array]:
    """Hide facts from heads: is the answer right, and its loss (prompt, condition, facts)."""
    generator = np.random.default_rng(seed)
    prompts = len(sets[0].ids)
    found = np.empty((2, prompts, len(CONDITIONS), len(sets)))
    for column, one in enumerate(sets):
        for row in range(prompts):
            asked = one.asked[row]
            count = len(one.encoded.roles[row]["value"])
            other = int(generator.choice([at for at in range(count) if at != asked]))
            edits = (
                (),
                one.hidden(row, asked, pool),
                one.hidden(row, other, pool),
                one.hidden(row, asked, chosen),
                one.hidden(row, asked, random),
            )
            found[:, row, :, column] = np.array([one.answer(row, each) for each in edits]).T
            if progress is not None:
                progress(total // 2 + column * prompts + row + 1, total)
    return found[0], found[1]


def _verdict(
    counts: tuple[int, ...],
    right: Array,
    nats: Array,
    chosen: list[tuple[int, int]],
    dispersion: Array,
    seed: int,
) -> str:
    """Say what distractors cost, and whether the asked fact is what the answer hangs on."""
    accuracy, loss = right.mean(0), nats.mean(0)
    spread = mean(np.array([bootstrap(dispersion)[0][head] for head in chosen]))
    told = (
        f"From {counts[0]} to {counts[-1]} facts accuracy goes from {accuracy[0, 0]:.2f} to "
        f"{accuracy[0, -1]:.2f} and the loss of the answer from {loss[0, 0]:.2f} to "
        f"{loss[0, -1]:.2f} nats; dispersion of {', '.join(map(label, chosen))}: {spread:.2f}."
    )
    if accuracy[0, 0] < SOLVED:
        return f"INCONCLUSIVE: the model does not recall a fact among {counts[0]}. {told}"
    if len(nats) < 2:
        return f"INCONCLUSIVE (one prompt has no interval). {told}"
    said = (
        f"with {counts[-1]} facts, hiding the asked one changes the loss by "
        f"{loss[1, -1] - loss[0, -1]:+.2f} nats, another one {loss[2, -1] - loss[0, -1]:+.2f}; "
        f"hiding it from these heads {loss[3, -1] - loss[0, -1]:+.2f}, from as many others "
        f"{loss[4, -1] - loss[0, -1]:+.2f}"
    )
    segment = float(bootstrap(nats[:, 1, -1] - nats[:, 2, -1], seed=seed)[1]) > 0
    looking = float(bootstrap(nats[:, 3, -1] - nats[:, 4, -1], seed=seed)[1]) > 0
    if segment and looking:
        return f"Causal check agrees: {said}. {told}"
    what = "the asked fact matters no more than another" if not segment else (
        "the heads that look at it matter no more than others"
    )  # fmt: skip
    return f"DISAGREEMENT: {what}; {said}. {told}"
