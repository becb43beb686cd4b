"""Nulls: what importance a head has where there is nothing to be important for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.analyses._runtime.results import label
from headscope.analyses._stats.bootstrap import draws
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model
from headscope.probes.models.model import Model

Array = NDArray[np.float64]
RESAMPLES = 1000


def shuffled(questions: Sequence[Sequence[Any]], seed: int) -> tuple[tuple[Any, ...], ...]:
    """Give the questions of every prompt the answers, right and wrong, of another prompt.

    Positions stay. Every prompt gets those of the next one in a random order, so none keeps its own
    unless it is alone or two prompts ask for the same.

    Examples
    --------
    >>> from headscope.probes.prompts.tokens import EncodedQuestion
    >>> rows = [[EncodedQuestion(4, (1,), (2,), ())], [EncodedQuestion(6, (3,), (4,), ())]]
    >>> [(question.at, question.answer_ids) for [question] in shuffled(rows, seed=0)]
    [(4, (3,)), (6, (1,))]
    """
    order = np.random.default_rng(seed).permutation(len(questions))
    source = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))

    def exchanged(question: Any, others: Sequence[Any], number: int) -> Any:
        other = others[number % len(others)]
        return replace(question, answer_ids=other.answer_ids, wrong_ids=other.wrong_ids)

    return tuple(
        tuple(
            exchanged(question, questions[source[row]], number)
            for number, question in enumerate(own)
        )
        for row, own in enumerate(questions)
    )


def threshold(samples: Array, seed: int) -> float:
    """Return what the largest head of a null reaches, in 95 of 100 resamples of the prompts.

    The largest over heads, so that it holds for all heads at once. NaN with one prompt.

    ``samples`` are importances under the null (prompt, layer, head).
    """
    flat = samples.reshape(len(samples), -1)
    flat = flat[:, ~np.isnan(flat).any(0)]
    if len(flat) < 2:
        return float("nan")
    means = draws(len(flat), RESAMPLES, seed) / len(flat) @ flat
    return float(np.quantile(np.maximum(means.max(1), 0.0), 0.95))


def important(lower: Array, least: float) -> list[str]:
    """Name the heads whose interval lies above a null, the furthest first.

    >>> import numpy as np
    >>> important(np.array([[0.1, 0.9], [0.5, np.nan]]), 0.3)
    ['L0H1', 'L1H0']
    """
    filled = np.where(np.isnan(lower), -np.inf, lower)
    order = np.argsort(-filled.ravel(), kind="stable")
    heads = [divmod(int(at), lower.shape[1]) for at in order if filled.ravel()[at] > least]
    return [label(head) for head in heads]


def untrained(model: Model, seed: int) -> Model:
    """Return a model of the same config with the random weights of its initialiser.

    Raises
    ------
    NotApplicable
        When the class cannot make a model from its config alone.
    """
    kind: Any = type(model.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = kind(model.module.config).eval()
        except (TypeError, ValueError) as error:
            raise NotApplicable(
                f"random_weights: {model.architecture} is not made from its config alone "
                f"({str(error).splitlines()[0]}); give random_weights=false"
            ) from error
    return load_model(made.to(model.device, model.dtype), tokenizer=model.tokenizer)
