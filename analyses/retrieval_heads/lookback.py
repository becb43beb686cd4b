"""Lookback: do heads attend to the context or to their answer, and does that show hallucination?

The lookback ratio of a generated token is c / (c + n): the mean weight of a context position
against that of a position of the answer so far. It is read step by step while the model writes,
from two sums a row. Half of the questions ask for a fact that the context states; their
counterfactuals ask for one that it does not, so what is answered there is hallucinated for certain.
A logistic regression on all heads learns to separate the two and is judged on other prompts.

Source: Chuang et al., Lookback Lens (2407.07071).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, ZERO_TO_ONE, Results, heads, label, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.classification import auroc
from headscope.analyses.retrieval_heads._detector import Detector, log_odds, ratios, windowed
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes import capture
from headscope.probes.capturing.generation import generate
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tasks._absent_facts import with_absent_fact, with_stated_fact
from headscope.probes.prompts.tokens import encode

NEEDS = ()
QUICK = {"new_tokens": 1, "draws": 1}
SUPPORTS = {"hybrid"}
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
    new_tokens: Annotated[int, AtLeast(1)] = 2,
    answer: Annotated[int, AtLeast(1)] = 1,
    window: Annotated[int, AtLeast(1)] = 8,
    prefix: Annotated[int, AtLeast(1)] = 2,
    ablated: Annotated[int, AtLeast(1)] = 6,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Generate answers with and without their fact, and detect the hallucinated ones.

    Parameters
    ----------
    task
        Four prompts or more with stated facts (``recall`` or ``needle``); the first question of
        each is used. The counterfactual has another key in the place of the asked one, and stays on
        the same side of the split: half of the prompts train, the others test.
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
        Seed of the counterfactuals, the split and the bootstrap.

    Returns
    -------
    Dataset with ``lookback`` (fact, layer, head; 0 to 1), ``difference`` (layer, head; stated −
    absent, −1 to 1), ``head_auroc`` (layer, head; the ratio of one head alone, low for
    hallucinated), ``auroc`` (features, split), ``weight`` (layer, head; of the regression),
    ``risk`` (step, fact; probability along the generation, test prompts), ``supported`` and
    ``borrowed`` (fact; shares of answers), ``accuracy`` (condition; the causal check), with 95 %
    intervals over prompts.
    """
    model.check_predicts()
    Between(1, new_tokens).check("answer", answer)
    if len(task) < 4:
        raise NotApplicable(f"n: {len(task)} prompts cannot be split; ask for 4 or more")
    present = with_stated_fact(task)
    pair = (present, with_absent_fact(present, model.tokenizer, seed))
    answers: list[Any] = []
    for prompts in pair:
        answers.append(_generate(model, prompts, new_tokens, prefix, answered=not answers))
    reference = capture(model, present, stats=("lse",))
    results = Results(reference, seed=seed, source=SOURCE)
    ratio, truth, borrowed = map(np.stack, zip(*answers, strict=True))
    means = ratio[:, :, :answer].mean(2)
    split = np.random.default_rng(seed).permutation(len(task))
    sides = {"train": split[: len(task) // 2], "test": split[len(task) // 2 :]}
    inputs = _features(ratio, answer, window)
    areas, detectors = _detect(inputs, truth, sides, seed)
    owner = np.tile(np.arange(len(task)), 2)
    columns = means.reshape(truth.size, -1).T
    alone = np.array([auroc(truth.ravel(), -ratio, owner, seed=seed) for ratio in columns])
    alone = alone.T.reshape(3, *means.shape[2:])
    pool = heads(reference)
    telling = top(np.abs(alone[0] - 0.5), min(ablated, len(pool) // 2))
    checked, conditions, record = causal_check.check(
        "accuracy", "Accuracy where the fact is stated", model, present, telling, pool,
        kind="lookback", draws=draws, seed=seed,
    )  # fmt: skip

    convention = (
        f"{len(task)} prompts of {task.name} and their counterfactuals without the asked fact; "
        f"context = prompt but its last {prefix} tokens"
    )
    results.add_means(
        ("lookback", ("fact", *GRID), np.moveaxis(means, 0, 1), "Lookback ratio of the answer",
         SHARE, f"c / (c + n), mean weights of a position; {convention}"),
        ("difference", GRID, means[0] - means[1], "Lookback ratio, fact stated − absent",
         ("share", "diverging", -1, 1), f"mean over the pairs; {convention}"),
    )  # fmt: skip
    results.add_interval(
        "head_auroc", GRID, alone, "AUROC of the head's lookback ratio alone", "AUROC",
        *ZERO_TO_ONE,
        convention=f"low ratio = hallucinated; 0.5 is chance; nothing is trained; {convention}",
    )  # fmt: skip
    results.add_interval(
        "auroc", ("features", "split"), np.moveaxis(areas, -1, 0),
        "AUROC of the hallucination detector", "AUROC", *ZERO_TO_ONE,
        convention=f"logistic regression on {means[0, 0].size} heads; {len(sides['train'])} "
        f"prompts train, {len(sides['test'])} test, pairs on one side; window {window}; ratio: as "
        "in the paper; log odds: log c / n, standardized",
    )  # fmt: skip
    results.add(
        "weight", GRID, detectors[BEST].weights, "Weight of the head in the detector",
        "log odds per spread", "diverging",
        convention=f"{BEST}; positive: attending back is suspicious",
    )  # fmt: skip
    tested = inputs[ALONG][:, sides["test"]]
    risk = detectors[ALONG].probability(tested.reshape(-1, *tested.shape[3:]))
    of_answers = ("share of answers", *ZERO_TO_ONE)
    results.add_means(
        ("risk", ("step", "fact"), risk.reshape(tested.shape[:3]).transpose(1, 2, 0),
         "Probability of hallucination along the generation", ("probability", *ZERO_TO_ONE),
         f"detector on {ALONG}; test prompts"),
        ("supported", ("fact",), (~truth).T.astype(float), "Answers that the context supports",
         of_answers),
        ("borrowed", ("fact",), borrowed.T.astype(float),
         "Answers that are the value of another key", of_answers),
        convention=f"first generated token; {convention}",
    )  # fmt: skip
    results.variables |= checked
    area, low, high = areas[FEATURES.index(BEST), 1]
    note = (
        f"Hallucinations on test prompts ({BEST}): AUROC {amount(area)} ({amount(low)} to "
        f"{amount(high)})."
        if truth.any() and not truth.all()
        else "The model answers no stated fact, so there is nothing to tell hallucinations from."
    )
    return results.dataset(
        {
            "fact": list(CONDITIONS),
            "features": list(FEATURES),
            "split": list(SPLITS),
            "step": np.arange(1, ratio.shape[2] + 1),
            "condition": conditions,
        },
        convention=convention,
        heads_by_type={"lookback": [label(head) for head in telling]},
        causal={"lookback": record},
        note=note,
        verdict=Verdict(record["verdict"], record["note"]),
    )


def _generate(
    model: Model, task: Task, new_tokens: int, prefix: int, *, answered: bool
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Generate an answer to every prompt; all are wrong where no fact is stated (``answered``).

    Lookback ratios (prompt, step, layer, head), and which answers are wrong, and borrowed.
    """
    generated = generate(
        model, task, ("span_mass",), new_tokens=new_tokens, prefix=prefix,
        # The end of a text would leave steps of different number.
        options={"eos_token_id": None},
    )  # fmt: skip
    wrong, borrowed = [], []
    for row, (question, *_) in enumerate(encode(task, model.tokenizer, model.bos).questions):
        token = int(generated["token_id"].values[row, question.at + 1])
        right = token in question.answer_ids
        wrong.append(not (answered and right))
        borrowed.append(token in question.wrong_ids or (right and not answered))
    return ratios(generated, prefix), np.array(wrong), np.array(borrowed)


def _features(ratio: Array, answer: int, window: int) -> dict[str, Array]:
    """Return the inputs of the detectors (fact, prompt, step, layer, head)."""
    inputs = []
    for form in (ratio, log_odds(ratio)):
        inputs.append(form[:, :, :answer].mean(2, keepdims=True))
        inputs.append(windowed(form.reshape(-1, *form.shape[2:]), window).reshape(form.shape))
    return dict(zip(FEATURES, inputs, strict=True))


def _detect(
    inputs: dict[str, Array],
    truth: NDArray[np.bool_],
    sides: dict[str, NDArray[np.int64]],
    seed: int,
) -> tuple[Array, dict[str, Detector]]:
    """Train a detector on every feature; AUROCs with their ends (feature, split, end)."""
    areas, detectors = [], {}
    for feature, values in inputs.items():
        labels = np.repeat(truth[:, :, None], values.shape[2], axis=2)
        owner = np.broadcast_to(np.arange(truth.shape[1])[None, :, None], labels.shape)
        flat: dict[str, list[Any]] = {
            side: [
                array[:, rows].reshape(-1, *array.shape[3:]) for array in (values, labels, owner)
            ]
            for side, rows in sides.items()
        }
        detector = Detector(flat["train"][0], flat["train"][1], feature.startswith("log"))
        areas.append(
            [
                auroc(labels, detector.probability(samples), owners, seed=seed)
                for samples, labels, owners in (flat[side] for side in SPLITS)
            ]
        )
        detectors[feature] = detector
    return np.asarray(areas), detectors
