"""Nulls: what importance a head has where there is nothing to be important for."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np

from headscope.analyses._runtime.results import label, top
from headscope.analyses._stats.bootstrap import Array, draws

RESAMPLES = 1000


def shuffled(questions: Sequence[Sequence[Any]], seed: int) -> tuple[tuple[Any, ...], ...]:
    """Replace the answers of every prompt, right and wrong, by those of another prompt.

    Positions stay. Every prompt gets those of the next one in a random order, so none keeps its own
    unless it is alone or two prompts ask for the same.
    """
    order = np.random.default_rng(seed).permutation(len(questions))
    source = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))

    return tuple(
        tuple(
            replace(
                question, answer_ids=source_question.answer_ids, wrong_ids=source_question.wrong_ids
            )
            for question, source_question in zip(
                row_questions, cycle(questions[source[row]]), strict=False
            )
        )
        for row, row_questions in enumerate(questions)
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
    """List the heads whose interval lies above a null, the furthest first.

    >>> import numpy as np
    >>> important(np.array([[0.1, 0.9], [0.5, np.nan]]), 0.3)
    ['L0H1', 'L1H0']
    """
    return [label(head) for head in top(lower, int((lower > least).sum()))]
