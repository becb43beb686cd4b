"""Distractors: does a head keep attending to the asked fact as other facts are added?

Facts are stated and one of them is asked for; their number grows. For each number the mass of the
asking token is read on the asked fact, on the others, on the question itself. The relevance of a
head is the ratio of its mass on the asked fact to that on a mean other one; its dispersion is minus
the slope of the log of the asked fact's share of the facts' mass over the log of their number: 0
for a head that keeps attending to it, 1 for one that attends to all facts alike. Solved examples
before the prompt (shots) distract in the same way: then they grow in number, and each is held, per
token, against the asked fact. The causal numbers: the answer's accuracy and loss as the facts grow,
and with the asked fact hidden, another fact of the same size hidden, or the asked fact hidden from
the heads that attend to it most, and from as many others.

Sources: Focused Transformer (distraction); OpAmp (relevant against irrelevant documents); Focused
Large Language Models are Stable Many-Shot Learners (dispersion over shots).
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.causal_check import SOLVED, Head, random_sets
from headscope.analyses._runtime.options import AtLeast, numbers
from headscope.analyses._runtime.results import GRID, SHARE, ZERO_TO_ONE, Results, label, top
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses._stats.effect_size import exceeds_zero
from headscope.analyses._stats.length_trend import Array, mean, slope
from headscope.analyses.token_groups._facts import GROUPS, Facts, entropy, split
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.few_shot import few_shot
from headscope.probes.prompts.task import Task

NEEDS = ()
QUICK = {"facts": "2,4", "best": 1}
SUPPORTS = {"hybrid"}
TASK = "recall"
PROMPTS = 16

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
# Shots are taken from as many draws for each that is needed, since keys must not meet.
SHOT_DRAWS = 16


def run(
    model: Model,
    task: Task,
    *,
    facts: str = "2,4,8,16",
    shots: str = "",
    length: Annotated[int, AtLeast(0)] = 0,
    best: Annotated[int, AtLeast(1)] = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Measure relevance and dispersion of every head as distracting facts are added.

    Parameters
    ----------
    model
        Model to measure.
    task
        The task ``recall``: its seed, and how many prompts; they are drawn anew for every number.
    facts
        Numbers of facts, separated by commas; two numbers or more, each 2 or more.
    shots
        Numbers of shots, separated by commas, two or more: solved prompts before each prompt, of
        two facts each and of other keys, that grow in number in place of the facts.
    length
        Words of a prompt, with sentences between the facts; 0 states the facts alone, so that the
        prompt grows with them.
    best
        Number of heads, those with most mass on the asked fact, from which it is hidden.
    seed
        Seed of the bootstrap over prompts, of the other heads and of the other fact.

    Returns
    -------
    Dataset with ``asked_mass`` (layer, head, facts; share of weight), ``fact_entropy`` (layer,
    head, facts; of the mass over facts, share of its largest value), ``relevance`` (layer, head;
    log2 of asked over mean other fact, at the largest number), ``dispersion`` (layer, head; slope),
    ``group_mass`` (facts, group; mean over heads), ``accuracy`` (condition, facts) and
    ``answer_loss`` (condition, facts; nats), the causal numbers, with 95 % intervals over prompts.
    With shots the dim ``facts`` is ``shots``, and each shot is one of the others.
    """
    model.check_predicts()
    if task.name != TASK:
        raise NotApplicable(f"task: {task.name} does not come with any number of facts; use {TASK}")
    axis, least = ("shots", 1) if shots else ("facts", 2)
    counts = numbers(axis, shots or facts)
    if len(counts) < 2 or counts[0] < least:
        raise InvalidInput(f"{axis}: {shots or facts!r}; give two numbers or more, from {least}")
    pool = [(layer, head) for layer in model.geometry.attending for head in range(model.heads)]
    if 2 * best > len(pool):
        raise NotApplicable(f"best: {best} of {len(pool)} heads leave fewer others; take fewer")

    drawn_tasks = _draw(model, task, counts, length, bool(shots), seed)
    # What competes: the facts, or the shots and the asked fact.
    units = np.array(counts, dtype=float) + bool(shots)
    sets = [Facts(model, prompts) for prompts in drawn_tasks]
    masses = []
    for prompts in sets:
        masses.append(np.stack([prompts.masses(row) for row in range(len(task))]))
    on_asked, entropies, groups, relevance = _summarize(sets, masses)
    sums = np.stack(
        [
            _per_token(facts, mass)[..., :-2].sum(-1)
            for facts, mass in zip(sets, masses, strict=True)
        ],
        axis=-1,
    )
    share = np.maximum(on_asked, LEAST) / np.maximum(sums, LEAST)
    dispersion = -slope(np.log(units), np.log(share))
    chosen = top(bootstrap(on_asked[..., -1])[0], best)
    remaining = [head for head in pool if head not in chosen]
    random = random_sets(remaining, best, 1, seed)[0]
    generator = np.random.default_rng(seed)
    right, nats = np.empty((2, len(task), len(CONDITIONS), len(sets)))
    for column, prompts in enumerate(sets):
        right[..., column], nats[..., column] = _hide(prompts, pool, chosen, random, generator)

    prompts_words = (
        f"{len(task)} prompts of {TASK} for each of {', '.join(map(str, counts))} {axis}"
        + (f", {length} words" if length else ", nothing between them")
    )
    groups_named = [axis if shots and name == "other facts" else name for name in GROUPS]
    competing = "shots and the fact" if shots else "facts"
    convention = f"mass of the asking token on key and value of a fact; {prompts_words}"
    results = Results(
        capture(model, drawn_tasks[-1], stats=("lse",)),
        seed=seed,
        source=SOURCE,
        convention=convention,
    )
    results.add_means(
        ("asked_mass", (*GRID, axis), on_asked, "Mass on the asked fact", SHARE),
        ("fact_entropy", (*GRID, axis), entropies, "Entropy of the mass over facts",
         (f"share of log({competing})", *ZERO_TO_ONE)),
        ("relevance", GRID, relevance, "Relevance: asked fact against another one",
         ("log2 ratio", "diverging"),
         f"among {counts[-1]} {axis}, per token; masses below {LEAST:g} count as that; "
         f"{convention}"),
        ("dispersion", GRID, dispersion, f"Dispersion over distracting {axis}",
         ("slope", "diverging"),
         f"−d log(asked fact's share of the mass per token) / d log({competing}): 0 keeps "
         f"attending to it, 1 attends to all alike; {convention}"),
        ("group_mass", (axis, "group"), groups, "Mass of the asking token, mean of heads",
         SHARE),
    )  # fmt: skip
    verdict = _verdict(counts, axis, right, nats, chosen, dispersion)
    names = [label(head) for head in chosen]
    hiding = (
        f"hidden from all tokens after the fact; {best} heads with most asked mass; {prompts_words}"
    )
    results.add_means(
        ("accuracy", ("condition", axis), right, f"Accuracy among distracting {axis}",
         ("share of answers", *ZERO_TO_ONE), hiding),
        ("answer_loss", ("condition", axis), nats, f"Loss of the answer among distracting {axis}",
         ("nats an answer", "sequential", 0), f"−log p; {hiding}"),
        evidence="causal", note=verdict.text, heads=names,
    )  # fmt: skip
    result = results.dataset(
        {axis: list(counts), "group": groups_named, "condition": list(CONDITIONS)},
        heads_by_type={"asked fact": names},
        verdict=verdict,
    )
    result.attrs["n_prompts"] = len(task) * len(counts)
    return result


def _draw(
    model: Model, task: Task, counts: Sequence[int], length: int, shots: bool, seed: int
) -> list[Task]:
    """Draw the task with each number of facts, or with two facts behind each number of shots."""
    options: dict[str, Any] = {"length": length} if length else {}

    def draw(number: int, pairs: int, start: int) -> Task:
        return tasks.make(TASK, model.tokenizer, number, start, pairs=pairs, queries=1, **options)

    if not shots:
        return [draw(len(task), count, task.seed) for count in counts]
    base = draw(len(task), 2, task.seed)
    pool = draw(SHOT_DRAWS * counts[-1], 2, task.seed + 1)
    return [few_shot(base, count, pool, seed=seed, distinct_role="key") for count in counts]


def _summarize(sets: list[Facts], masses: list[Array]) -> tuple[Array, Array, Array, Array]:
    """Return mass on the asked fact, entropies, mass by group, and relevance at the most facts.

    Dims: (prompt, layer, head, facts) twice, (prompt, facts, group), (prompt, layer, head).
    """
    on_asked, entropies, groups = [], [], []
    for prompts, mass in zip(sets, masses, strict=True):
        by_row = [split(row, index) for row, index in zip(mass, prompts.asked_facts, strict=True)]
        other_mass = np.stack([other_masses.sum(-1) for _, other_masses in by_row])
        on_asked.append(np.stack([index for index, _ in by_row]))
        parts = (on_asked[-1], other_mass, mass[..., -2], mass[..., -1])
        groups.append(
            [[float(mean(part[row].ravel())) for part in parts] for row in range(len(mass))]
        )
        even = _per_token(prompts, mass)
        entropies.append(entropy(even[..., :-2]))
    other_masses = np.stack(
        [
            split(row, index)[1].mean(-1)
            for row, index in zip(even, prompts.asked_facts, strict=True)
        ]
    )
    relevance = np.log2(np.maximum(on_asked[-1], LEAST) / np.maximum(other_masses, LEAST))
    by_group = np.clip(np.stack([np.array(rows) for rows in groups], axis=1), 0, 1)
    return np.stack(on_asked, axis=-1), np.stack(entropies, axis=-1), by_group, relevance


def _per_token(prompts: Facts, mass: Array) -> Array:
    return np.stack([prompts.per_token(row, masses) for row, masses in enumerate(mass)])


def _hide(
    prompts: Facts,
    pool: list[Head],
    chosen: list[Head],
    random: tuple[Head, ...],
    generator: np.random.Generator,
) -> Array:
    """Hide facts from heads, and measure accuracy and loss (number, prompt, condition)."""
    numbers = np.empty((2, len(prompts.ids), len(CONDITIONS)))
    for row, index in enumerate(prompts.asked_facts):
        count = len(prompts.units[row])
        other = int(generator.choice([fact for fact in range(count) if fact != index]))
        hiding = ((index, pool), (other, pool), (index, chosen), (index, random))
        edits = [(), *(prompts.hidden(row, fact, heads) for fact, heads in hiding)]
        numbers[:, row] = np.array([prompts.answer(row, edit) for edit in edits]).T
    return numbers


def _verdict(
    counts: tuple[int, ...],
    axis: str,
    right: Array,
    nats: Array,
    chosen: list[Head],
    dispersion: Array,
) -> Verdict:
    """Conclude what distractors cost, and whether the answer depends on the asked fact."""
    accuracy, loss = right.mean(0), nats.mean(0)
    spread = float(np.mean([bootstrap(dispersion)[0][head] for head in chosen]))
    text = (
        f"From {counts[0]} to {counts[-1]} {axis} accuracy goes from {amount(accuracy[0, 0])} to "
        f"{amount(accuracy[0, -1])} and the loss of the answer from {amount(loss[0, 0])} to "
        f"{amount(loss[0, -1])} nats; dispersion of {', '.join(map(label, chosen))}: "
        f"{amount(spread)}."
    )
    if accuracy[0, 0] < SOLVED:
        return Verdict(
            "too_few", f"The model does not recall a fact among {counts[0]} {axis}. {text}"
        )
    change = loss[1:, -1] - loss[0, -1]
    effects = (
        f"with {counts[-1]} {axis}, hiding the asked fact changes the loss by "
        f"{amount(change[0], '+')} nats, "
        f"another one {amount(change[1], '+')}; hiding it from these heads "
        f"{amount(change[2], '+')}, from as many "
        f"others {amount(change[3], '+')}"
    )
    over = nats[:, [1, 3], -1] - nats[:, [2, 4], -1]
    fact_matters, _ = exceeds_zero(over)
    reason = "; the asked fact matters no more than another"
    if fact_matters:
        reason = "; the heads that attend to it matter no more than others"
    return causal_verdict(over, effects, reason) & Verdict("supported", text)
