"""Faithfulness: which method of token relevance follows what the model uses.

Every method orders the tokens of a prompt by how much the answer comes from them. Deletion replaces
tokens in that order and loses the answer at once where the order is faithful; insertion brings them
back in that order and regains it at once. Beside both stands the rank correlation with what is lost
when each token alone is replaced. Orders at random and that of the replacements themselves say what
is little and what is much. An explanation by attention can be far from what the model uses: where
raw attention is no better than an order at random, the result says so.

Sources: Samek et al. (1509.06321) and DeYoung et al., ERASER (1911.03429), for the curves; Jain &
Wallace, Attention is not Explanation (1902.10186); Pruthi et al., Learning to Deceive with
Attention-Based Explanations (1909.07913).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope import probes
from headscope.analyses import _relevance as registry
from headscope.analyses._interventions import ablation
from headscope.analyses._relevance import target as targets
from headscope.analyses._relevance.perturbation import areas, order_of, perturb
from headscope.analyses._relevance.target import Target
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._runtime import progress
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import Results, require, require_maps
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.attribution._relevance_scores import (
    ORDERS,
    RANDOM,
    REPLACED,
    Measured,
    table,
    verdict,
)
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ()
TASK = "ioi"
PROMPTS = 16
SUPPORTS: set[str] = set()
QUICK = {"steps": 2, "other": ""}

SOURCE = "Samek et al. 1509.06321; ERASER 1911.03429"


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    other: str = "recall",
    prompt: Annotated[int, AtLeast(0)] = 0,
    draws: Annotated[int, AtLeast(1)] = 1,
    steps: Annotated[int, Between(2, 100)] = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how faithfully every method of token relevance orders the tokens of a task.

    Parameters
    ----------
    capture
        Capture of the task, for its provenance.
    model, task
        What is explained: the last question of every prompt, by the logit of the answer over the
        wrong one.
    other
        A second task, of which as many prompts are drawn; empty for none.
    prompt
        Prompt whose relevances are shown.
    draws
        Replacements that each token has, drawn from the other prompts' tokens.
    steps
        Points of a curve beside its start.
    seed
        Seed of the replacements, of the random orders and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``deletion`` and ``insertion`` (task, explainer; area under the curve as a share of
    what the intact prompts have over prompts of replaced tokens; a faithful method has a small
    deletion and a large insertion), ``replacement_correlation`` (task, explainer; Spearman ρ with
    what is lost when each token alone is replaced, −1 to 1), all with 95 % intervals over prompts;
    ``relevance`` (explainer, query; of the shown prompt, over its largest size), and
    ``replacement_effect`` (query; logits). Methods that refuse a task are NaN there, and
    ``refused`` says why.
    """
    require(capture, NEEDS, "faithfulness")
    require_maps(capture, "faithfulness")
    names = list(registry.methods())
    encoded = _encoded(model, task, other)
    answers = targets.of_task(encoded[task.name])
    Between(0, len(answers) - 1).check("prompt", prompt)
    pool = [token for target in answers for token in target.ids]
    parts = _Parts(sum(len(ids) for part in encoded.values() for ids in part.ids))
    measured = {
        name: _measure(model, part, names, draws, steps, seed, parts)
        for name, part in encoded.items()
    }
    scores = measured[task.name]
    accepting = [name for name in names if name in scores.deletion]
    rows = [*accepting, REPLACED, RANDOM]

    results = Results(capture, seed=seed, source=SOURCE, evidence="causal")
    over = f"{steps} steps, {draws} draws of the prompts' other tokens; special tokens stay"
    for name, title in (
        ("deletion", "Answer kept while tokens are replaced in a method's order"),
        ("insertion", "Answer regained while tokens return in a method's order"),
    ):
        results.add_mean(
            name, ("task", "explainer"), table(measured, name, rows, share=True), title, "share",
            "diverging", convention="area under the curve over the share of tokens, less the text "
            f"of replaced tokens, over what the intact text has more; {over}",
        )  # fmt: skip
    results.add_mean(
        "replacement_correlation", ("task", "explainer"),
        table(measured, "agreement", rows, share=False), "Agreement with replacing each token",
        "Spearman ρ", "diverging", -1, 1, convention=f"over the tokens of each prompt; {over}",
    )  # fmt: skip
    explained = explain(
        model, answers[prompt], names=accepting, pool=pool, draws=draws, seed=seed + 1
    )
    # An order at random has no relevance.
    results.variables["relevance"] = explained["relevance"].variable.pad(explainer=(0, 1))
    results.variables["replacement_effect"] = explained["replacement_effect"].variable
    titles = {name: method.title for name, method in registry.methods().items()}
    refused = {name: scores.refused for name, scores in measured.items() if scores.refused}
    return results.dataset(
        {"task": list(measured), "explainer": [titles.get(name, name) for name in rows],
         "query": explained["query"], "token": explained["token"]},
        verdict(measured, titles),
        prompt=prompt,
        refused=refused,
    )  # fmt: skip


def replaced_passes(
    model: Model, task: Task, *, other: str, prompt: int, draws: int, steps: int, **_: Any
) -> list[tuple[int, int]]:
    """List the tokens of every prompt that is run, and how often with some of them replaced.

    Each token is replaced alone, so that long prompts are run more often, and once more in the
    prompt that is shown; the curves are as many in any.
    """
    curves = 2 * (len(registry.methods()) + 1 + ORDERS) * (steps - 1) + 2
    lengths = [len(ids) for part in _encoded(model, task, other).values() for ids in part.ids]
    return [
        (length, draws * ((length + 1) * (1 + (at == prompt)) + curves))
        for at, length in enumerate(lengths)
    ]


def _encoded(model: Model, task: Task, other: str) -> dict[str, EncodedTask]:
    """Encode the task, and as many prompts of another one."""
    encoded = {task.name: ablation.encode_task(model, task)}
    if other:
        second = probes.tasks.make(other, tokenizer=model.tokenizer, n=len(task), seed=task.seed)
        encoded[second.name] = ablation.encode_task(model, second)
    return encoded


def explain(
    model: Model,
    target: Target | str,
    *,
    names: Sequence[str] = (),
    pool: Sequence[int] = (),
    draws: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Explain one answer by every method, beside what is lost when each token is replaced.

    Parameters
    ----------
    target
        A text, whose answer is the token that the model predicts after it; or an answer of
        `_relevance.target`, such as that of a task's question.
    names
        Methods of the registry; without any, all.
    pool
        Tokens that replacements are drawn from; without any, those of the text.
    draws
        Replacements that each token has.

    Returns
    -------
    Dataset with ``relevance`` (explainer, query; over its largest size, −1 to 1) and
    ``replacement_effect`` (query; logits). ``refused`` says which methods cannot follow this text,
    and why; they are not among its rows.
    """
    if isinstance(target, str):
        target = targets.predicted(model, model.encode(target))
    generator = np.random.default_rng(seed)
    effect = perturb(model, target, pool or target.ids, draws, generator).effect()
    relevances, refused = registry.measure(Trace(model, target), names or list(registry.methods()))
    rows = {registry.method(name).title: relevance for name, relevance in relevances.items()}
    rows[REPLACED] = effect
    shares = np.stack([row / (np.nanmax(np.abs(row)) or 1.0) for row in rows.values()])
    results = Results(xr.Dataset(), source=SOURCE)
    results.add(
        "relevance", ("explainer", "query"), shares, "Relevance of each token", "share of largest",
        "diverging", -1, 1, evidence="correlational", convention="over the largest absolute one",
    )  # fmt: skip
    results.add(
        "replacement_effect", ("query",), effect, "Lost when the token is replaced", "logits",
        "diverging", evidence="causal",
        convention=f"intact − replaced by {draws} draws; special tokens stay",
    )  # fmt: skip
    tokens = [str(word) for word in model.to_str_tokens(list(target.ids))]
    answer = " / ".join(map(str, model.to_str_tokens(list(target.answer_ids))))
    return xr.Dataset(
        dict(results.variables),
        {"explainer": list(rows), "query": np.arange(len(tokens)), "token": ("query", tokens)},
        {"model": model.name, "answer": answer, "refused": refused, "seed": seed},
    )


@dataclass
class _Parts:
    """How many of the tokens of all prompts are done."""

    tokens: int
    done: int = 0

    def add(self, count: int) -> None:
        """Report some more tokens; how often they ran follows from the methods."""
        self.done += count
        progress.completed(self.done / self.tokens)


def _measure(
    model: Model,
    encoded: EncodedTask,
    names: Sequence[str],
    draws: int,
    steps: int,
    seed: int,
    parts: _Parts,
) -> Measured:
    """Measure every method on the prompts of a task; one that refuses any of them is left out."""
    generator = np.random.default_rng(seed)
    pool = [token for ids in encoded.ids for token in ids]
    scores = Measured()
    shared: dict[Callable[..., Any], Any] = {}
    for ids, target in zip(encoded.ids, targets.of_task(encoded), strict=True):
        perturbation = perturb(model, target, pool, draws, generator)
        free = perturbation.free
        # Other draws than those of the curves, so that chance in them is not shared.
        effect = perturb(model, target, pool, draws, generator).effect()
        accepting = [name for name in names if name not in scores.refused]
        relevances, refused = registry.measure(Trace(model, target, shared), accepting)
        scores.refused |= refused
        orders = {name: order_of(values, free) for name, values in relevances.items()}
        orders[REPLACED] = order_of(effect, free)
        places = np.flatnonzero(free)
        shuffled = {f"{RANDOM} {at}": generator.permutation(places) for at in range(ORDERS)}
        by_name = areas(perturbation, orders | shuffled, steps)
        intact, empty = perturbation.ends()
        scores.whole.append(intact - empty)
        by_name[RANDOM] = tuple(np.mean([by_name.pop(name) for name in shuffled], axis=0).tolist())
        for name, (deleted, inserted) in by_name.items():
            scores.deletion.setdefault(name, []).append(deleted)
            scores.insertion.setdefault(name, []).append(inserted)
            relevance = relevances.get(name, effect)
            rho = ranked(relevance[free], effect[free]) if name in relevances else np.nan
            scores.agreement.setdefault(name, []).append(rho)
        parts.add(len(ids))
    for part in (scores.deletion, scores.insertion, scores.agreement):
        for name in scores.refused:
            part.pop(name, None)
    return scores
