"""Faithfulness: which method of token relevance finds the tokens that the model uses.

Every method orders the tokens of a prompt by how much the answer comes from them. Deletion replaces
tokens in that order and loses the answer early where the order is faithful; insertion restores them
in that order and regains it early. The rank correlation with the loss when each token alone is
replaced is a third measure. Random orders and the order of the replacements themselves are the
lower and upper reference. An explanation by attention can be far from what the model uses: where
raw attention is no better than a random order, the result says so.

Sources: Samek et al. (1509.06321) and DeYoung et al., ERASER (1911.03429), for the curves; Jain &
Wallace, Attention is not Explanation (1902.10186); Pruthi et al., Learning to Deceive with
Attention-Based Explanations (1909.07913).
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Annotated

import numpy as np
import xarray as xr

from headscope import probes
from headscope.analyses import _relevance as registry
from headscope.analyses._interventions import ablation
from headscope.analyses._relevance import target as targets
from headscope.analyses._relevance.perturbation import perturb
from headscope.analyses._relevance.target import Target
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import Results, require, require_maps
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.analyses.attribution._explainer_scores import (
    RANDOM,
    REPLACED,
    Measured,
    TokenCounter,
    measure,
    table,
)
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "ioi"
PROMPTS = 16
SUPPORTS: set[str] = set()
QUICK = {"steps": 2, "other": ""}

RAW = "raw_attention"
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
    encoded = {task.name: ablation.encode_task(model, task)}
    if other:
        second = probes.tasks.make(other, tokenizer=model.tokenizer, n=len(task), seed=task.seed)
        encoded[second.name] = ablation.encode_task(model, second)
    answers = targets.of_task(encoded[task.name])
    Between(0, len(answers) - 1).check("prompt", prompt)
    pool = [token for target in answers for token in target.ids]
    parts = TokenCounter(sum(len(ids) for part in encoded.values() for ids in part.ids))
    measured = {
        name: measure(model, part, names, draws, steps, seed, parts)
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
        _verdict(measured, titles),
        prompt=prompt,
        refused=refused,
    )  # fmt: skip


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
    table = np.stack([row / (np.nanmax(np.abs(row)) or 1.0) for row in rows.values()])
    results = Results(xr.Dataset(), source=SOURCE)
    results.add(
        "relevance", ("explainer", "query"), table, "Relevance of each token", "share of largest",
        "diverging", -1, 1, evidence="correlational", convention="over the largest absolute one",
    )  # fmt: skip
    results.add(
        "replacement_effect", ("query",), effect, "Lost when the token is replaced", "logits",
        "diverging", evidence="causal",
        convention=f"intact − replaced by {draws} draws; special tokens stay",
    )  # fmt: skip
    tokens = [str(text) for text in model.to_str_tokens(list(target.ids))]
    answer = " / ".join(map(str, model.to_str_tokens(list(target.answer_ids))))
    return xr.Dataset(
        dict(results.variables),
        {"explainer": list(rows), "query": np.arange(len(tokens)), "token": ("query", tokens)},
        {"model": model.name, "answer": answer, "refused": refused, "seed": seed},
    )


def _verdict(measured: Mapping[str, Measured], titles: Mapping[str, str]) -> Verdict:
    """Judge which methods beat a random order, and whether raw attention does."""
    return reduce(and_, (_of_task(name, scores, titles) for name, scores in measured.items()))


def _of_task(name: str, scores: Measured, titles: Mapping[str, str]) -> Verdict:
    methods = [method for method in titles if method in scores.deletion]
    above = np.stack([scores.gap(method) - scores.gap(RANDOM) for method in methods], axis=1)
    total = float(np.mean(scores.whole))
    if len(above) < LEAST_PROMPTS:
        return Verdict(
            "too_few", f"{name}: {len(above)} prompts are too few to tell methods from chance."
        )
    if not exceeds_zero(np.asarray(scores.whole)[:, None])[0]:
        return Verdict(
            "too_few", f"{name}: the model does not do it, so there is nothing to follow."
        )
    better = exceeds_zero(above)
    order = np.argsort(-above.mean(0))
    gaps = {
        method: amount(float(scores.gap(method).mean()) / total)
        for method in (*methods, RANDOM, REPLACED)
    }
    best = ", ".join(f"{titles[methods[at]]} {gaps[methods[at]]}" for at in order[:3])
    worse = [titles[methods[at]] for at in order if not better[at]]
    text = (
        f"{name}: insertion − deletion is largest by {best}; by token replacement "
        f"{gaps[REPLACED]}, by an order at random {gaps[RANDOM]}."
    )
    if worse:
        text += f" Not distinguishable from a random order: {', '.join(worse)}."
    if RAW in methods and not better[methods.index(RAW)]:
        return Verdict(
            "disagreement", f"{text} Raw attention does not say which tokens the answer comes from."
        )
    return Verdict("supported", text)
