"""Lookback: do heads look at the context or at their own answer, and does it betray hallucination?

The lookback ratio of a generated token is c / (c + n): the mean weight of a context position
against that of a position of the answer so far. It is read step by step while the model writes,
from two sums a row. Half of the questions ask for a fact that the context states; their twins ask
for one that it does not, so what is answered there is hallucinated for certain. A logistic
regression on all heads learns to tell the two apart and is judged on other prompts.

Source: Chuang et al., Lookback Lens (2407.07071).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    heads,
    interval,
    label,
    top,
    variable,
)
from headscope.analyses._stats.classification import auroc
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "recall"
PROMPTS = 24

SOURCE = "Chuang et al. 2407.07071"
CONDITIONS = ("fact stated", "fact absent")
# By what is averaged over which tokens; the paper's features are the ratios as they are.
FEATURES = ("ratio, answer", "ratio, window", "log odds, answer", "log odds, window")
BEST = FEATURES[2]
ALONG = FEATURES[3]
SPLITS = ("train", "test")


def run(
    model: Model,
    task: Task,
    *,
    new_tokens: int = 2,
    answer: int = 1,
    window: int = 8,
    prefix: int = 2,
    ablated: int = 6,
    draws: int = 3,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Generate answers with and without their fact, and detect the hallucinated ones.

    Parameters
    ----------
    model
        Causal language model that answers.
    task
        Prompts with stated facts (``recall`` or ``needle``); the first question of each is used.
        The twin has another key in the place of the asked one. Twins stay on one side of the
        split: half of the prompts train, the others test.
    new_tokens
        Tokens to generate.
    answer
        First generated tokens that are the answer; their mean ratio is the ``answer`` feature.
    window
        Tokens in the sliding window, the other feature: one sample a generated token.
    prefix
        Last tokens of the prompt, the question, that count as the answer's beginning.
    ablated
        Heads whose own AUROC is farthest from 0.5, ablated in the causal check; half of all at
        most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the twins, the split and the bootstrap.
    progress
        Called with (done, total) prompts, then ablations.

    Returns
    -------
    Dataset with ``lookback`` (fact, layer, head; 0 to 1), ``difference`` (layer, head; stated −
    absent, −1 to 1), ``head_auroc`` (layer, head; the ratio of one head alone, low for
    hallucinated), ``auroc`` (features, split), ``weight`` (layer, head; of the regression),
    ``risk`` (step, fact; probability along the generation, test prompts), ``supported`` and
    ``borrowed`` (fact; shares of answers), ``accuracy`` (condition; the causal check), with 95 %
    intervals over prompts.

    Raises
    ------
    NotApplicable
        With fewer than 4 prompts, a task without facts, options out of range, or a model that does
        not generate.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> options = {"new_tokens": 1, "draws": 1}
    >>> result = execute("lookback", load_model("headscope/bundled"), n=4, options=options)
    >>> result["auroc"].dims
    ('features', 'split')
    """
    from headscope.analyses.retrieval_heads._detector import Detector, log_odds, ratios, windowed
    from headscope.probes import capture
    from headscope.probes.capturing.generation import generate
    from headscope.probes.prompts.tasks._absent_facts import absent, stated
    from headscope.probes.prompts.tokens import encode

    model.check_predicts()
    for name, value in (
        ("answer", answer), ("new_tokens", new_tokens), ("window", window), ("prefix", prefix),
        ("ablated", ablated), ("draws", draws),
    ):  # fmt: skip
        options.at_least(name, value, 1)
    options.between("answer", answer, 1, new_tokens)
    if len(task) < 4:
        raise NotApplicable(f"n: {len(task)} prompts cannot be split; ask for 4 or more")
    present = stated(task)
    pair = (present, absent(present, model.tokenizer, seed))
    ratio, wrong, borrowed = [], [], []
    for half, each in enumerate(pair):
        found = generate(
            model, each, ("span_mass",), new_tokens=new_tokens, prefix=prefix,
            # The end of a text would leave steps of different number.
            options={"eos_token_id": None},
            progress=_part(progress, half * len(task), 2 * len(task)),
        )  # fmt: skip
        ratio.append(ratios(found, prefix))
        asked = [one[0] for one in encode(each, model.tokenizer).questions]
        said = [
            int(found["token_id"].values[row, question.at + 1])
            for row, question in enumerate(asked)
        ]
        right = [token in question.answer_ids for token, question in zip(said, asked, strict=True)]
        wrong.append(np.ones(len(task), dtype=bool) if half else ~np.asarray(right))
        borrowed.append([
            token in (*question.wrong_ids, *(question.answer_ids if half else ()))
            for token, question in zip(said, asked, strict=True)
        ])  # fmt: skip
    looked, truth = np.stack(ratio), np.stack(wrong)

    means = looked[:, :, :answer].mean(2)
    split = np.random.default_rng(seed).permutation(len(task))
    sides = {"train": split[: len(task) // 2], "test": split[len(task) // 2 :]}
    inputs = []
    for form in (looked, log_odds(looked)):
        inputs.append(form[:, :, :answer].mean(2, keepdims=True))
        inputs.append(windowed(form.reshape(-1, *form.shape[2:]), window).reshape(form.shape))
    areas, detectors = [], {}
    for feature, values in zip(FEATURES, inputs, strict=True):
        steps = values.shape[2]
        labels = np.repeat(truth[:, :, None], steps, axis=2)
        owner = np.broadcast_to(np.arange(len(task))[None, :, None], labels.shape)

        def flat(rows: np.ndarray, side: str) -> np.ndarray:
            return rows[:, sides[side]].reshape(-1, *rows.shape[3:])

        detectors[feature] = Detector(
            flat(values, "train"), flat(labels, "train"), feature.startswith("log")
        )
        areas.append([
            auroc(
                flat(labels, side), detectors[feature].probability(flat(values, side)),
                flat(owner, side), seed=seed,
            )
            for side in SPLITS
        ])  # fmt: skip

    said_of = (
        f"{len(task)} prompts of {task.name} and their twins without the asked fact; context = "
        f"prompt but its last {prefix} tokens"
    )
    grid = ("layer", "head")
    variables = averaged(
        "lookback", ("fact", *grid), np.moveaxis(means, 0, 1), "Lookback ratio of the answer",
        "share", "sequential", 0, 1, seed=seed, source=SOURCE,
        convention=f"c / (c + n), mean weights of a position; {said_of}",
    )  # fmt: skip
    variables |= averaged(
        "difference", grid, means[0] - means[1], "Lookback ratio, fact stated − absent",
        "share", "diverging", -1, 1, seed=seed, source=SOURCE, convention=f"twins; {said_of}",
    )  # fmt: skip
    owner = np.tile(np.arange(len(task)), 2)
    alone = np.array([
        auroc(truth.ravel(), -means[..., layer, head].ravel(), owner, seed=seed)
        for layer in range(means.shape[2]) for head in range(means.shape[3])
    ]).T.reshape(3, *means.shape[2:])  # fmt: skip
    variables |= interval(
        "head_auroc", grid, *alone, "AUROC of the head's lookback ratio alone", "AUROC",
        "sequential", 0, 1, source=SOURCE,
        convention=f"low ratio = hallucinated; 0.5 is chance; nothing is trained; {said_of}",
    )  # fmt: skip
    variables |= interval(
        "auroc", ("features", "split"), *np.moveaxis(np.asarray(areas), -1, 0),
        "AUROC of the hallucination detector", "AUROC", "sequential", 0, 1, source=SOURCE,
        convention=f"logistic regression on {means[0, 0].size} heads; {len(sides['train'])} "
        f"prompts train, {len(sides['test'])} test, twins on one side; window {window}; ratio: as "
        "in the paper; log odds: log c / n, standardized",
    )  # fmt: skip
    variables["weight"] = variable(
        grid, detectors[BEST].weights, "Weight of the head in the detector", "log odds per spread",
        "diverging", convention=f"{BEST}; positive: looking back is suspicious", source=SOURCE,
    )  # fmt: skip
    tested = inputs[3][:, sides["test"]]
    risk = detectors[ALONG].probability(tested.reshape(-1, *tested.shape[3:]))
    variables |= averaged(
        "risk", ("step", "fact"), risk.reshape(tested.shape[:3]).transpose(1, 2, 0),
        "Probability of hallucination along the generation", "probability", "sequential", 0, 1,
        seed=seed, convention=f"detector on {ALONG}; test prompts", source=SOURCE,
    )  # fmt: skip
    for name, values, title in (
        ("supported", ~truth, "Answers that the context supports"),
        ("borrowed", np.asarray(borrowed), "Answers that are the value of another key"),
    ):
        variables |= averaged(
            name, ("fact",), values.T.astype(float), title, "share of answers", "sequential",
            0, 1, seed=seed, convention=f"first generated token; {said_of}",
        )  # fmt: skip

    attrs = capture(model, present, stats=("lse",))
    ablated = min(ablated, len(heads(attrs)) // 2)
    telling = np.abs(variables["head_auroc"].values - 0.5)
    checked, conditions, record = causal_check.check(
        "accuracy", "Accuracy where the fact is stated", model, present, top(telling, ablated),
        heads(attrs), kind="lookback", draws=draws, seed=seed, progress=progress,
    )  # fmt: skip
    area, low, high = areas[FEATURES.index(BEST)][1]
    verdict = (
        f"Hallucinations on test prompts ({BEST}): AUROC {area:.2f} ({low:.2f} to {high:.2f})."
        if truth.any() and not truth.all()
        else "The model answers no stated fact, so there is nothing to tell hallucinations from."
    )
    best = [label(head) for head in top(telling, ablated)]
    return dataset(
        attrs,
        variables | checked,
        {
            "fact": list(CONDITIONS), "features": list(FEATURES), "split": list(SPLITS),
            "step": np.arange(1, looked.shape[2] + 1), "condition": conditions,
        },
        convention=said_of,
        heads_by_type={"lookback": best},
        causal={"lookback": record},
        note=f"{verdict} {record['note']}",
    )  # fmt: skip


def _part(
    progress: causal_check.Progress | None, before: int, total: int
) -> causal_check.Progress | None:
    """Count the prompts of one condition behind those of the conditions before it."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
