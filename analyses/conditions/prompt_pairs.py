"""Prompt pairs: where heads attend under one prompt and not under its counterfactual.

Two prompts that differ in a few words, such as two instructions about one text or a clean and a
corrupted question, are compared position by position: the row of every head at the question in
condition A, minus its row in condition B. Instructions may be of different length: tokens that both
prompts begin and end with are compared one by one, and what differs as a whole. The causal number:
what the answers of A lose when the heads that differ most get the pattern of B, against as many
other heads.

Source: Instruction-Aligned Visual Attention (attention under two instructions, subtracted), for
any two aligned prompts.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.causal_check import Head, random_sets
from headscope.analyses._interventions.metrics import score
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import (
    SHARE,
    Results,
    attending,
    heads,
    label,
    require,
    require_prompts,
    top,
)
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.conditions._pair_alignment import Alignment, align
from headscope.kernels.formatting import amount
from headscope.probes.attention.forward import logits
from headscope.probes.capturing.capture import capture as capture_again
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task

NEEDS = ("lse",)
KEEP = ("q", "k")
TASK = "induction"
PROMPTS = 16
QUICK = {"draws": 1, "checked": 2}
SUPPORTS = {"encoder", "hybrid"}

SOURCE = "Instruction-Aligned Visual Attention"
CONDITIONS = ("pattern of B in the heads that differ most", "pattern of B in random other heads")
# What is lost below this is no effect to speak of.
LEAST_NATS = 0.01


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    best: Annotated[int, AtLeast(1)] = 4,
    draws: Annotated[int, AtLeast(1)] = 3,
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Subtract the rows of every head in condition B from those in condition A.

    Parameters
    ----------
    capture, model, task
        Capture of condition A, the prompts of the task, with the kept ``q`` and ``k`` and ``lse``;
        condition B are their counterfactuals, of the same length or with the same end.
    best
        Heads that differ most, whose pattern is swapped; half of all at most.
    draws
        Random sets of as many other heads.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the random sets and of the bootstrap.

    Returns
    -------
    Dataset with ``difference`` (layer, head; share of weight that moves between A and B,
    ``½ Σ_j |A_ij − B_ij|``, 0 to 1), ``moved_to`` (query; A − B along the first prompt, mean over
    the heads that differ most) and ``lost`` (condition; log-probability of A's answers that is
    lost, in nats), with 95 % intervals over prompts.
    """
    require(capture, (*KEEP, *NEEDS), "prompt_pairs")
    qk_rows.refuse_other(capture, "prompt_pairs")
    encoded = read(model, task).encoded
    assert encoded is not None
    require_prompts(capture, len(encoded.ids))
    other = capture_again(model, [list(ids) for ids in encoded.twins], stats=NEEDS, keep=KEEP)
    pairs = [align(*pair) for pair in zip(encoded.ids, encoded.twins, strict=True)]
    queries = [
        np.unique([question.at for question in questions]) for questions in encoded.questions
    ]
    moved, first = _differences(capture, other, queries, pairs)

    convention = (
        f"rows at the questions of {len(moved)} prompts of {task.name}; B: their counterfactuals"
    )
    if any(len(pair.extra) for pair in pairs):
        convention += "; what differs, of other length in B, counts as one key"
    results = Results(capture, seed=seed, source=SOURCE, evidence="correlational")
    results.add_mean(
        "difference", ("layer", "head"), moved.clip(0, 1),
        "Weight that moves between the prompts of a pair", *SHARE,
        convention=f"½ Σ_j |A_ij − B_ij|; {convention}",
    )  # fmt: skip
    pool = heads(capture)
    size = min(best, len(pool) // 2)
    chosen = top(results["difference"].values, size)
    results.add(
        "moved_to", ("query",), np.mean([first[head] for head in chosen], axis=0),
        "Weight under A minus under B", "share", "diverging", -1, 1,
        convention=f"first prompt, mean over {', '.join(map(label, chosen))} and the questions; "
        "the axis names the token that receives",
    )  # fmt: skip
    length = first.shape[-1]
    tokens = capture["token"].values[0, :length].astype(str)
    coords: dict[str, Any] = {"query": np.arange(length), "token": ("query", tokens)}
    reason = _unchecked(capture, model)
    verdict = None
    if not reason:
        sets = random_sets([head for head in pool if head not in chosen], size, draws, seed)
        lost = _lost(model, capture, task, other, pairs, (chosen, *sets), checked)
        samples = np.stack([lost[:, 0], lost[:, 1:].mean(1)], axis=1)
        results.add_mean(
            "lost", ("condition",), samples, "Log-probability of A's answers lost", "nats",
            "diverging", evidence="causal",
            convention=f"clean − with the pattern of B; {size} heads, or as many random others "
            f"(mean of {draws} sets); {len(lost)} prompts of {task.name}",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
        verdict = _verdict(samples, size)
    return results.dataset(
        coords,
        verdict,
        f"No causal check: {reason}." if reason else "",
        convention=convention,
        heads_by_type={"differ between the prompts": [label(head) for head in chosen]},
    )


def _differences(
    capture: xr.Dataset,
    other: xr.Dataset,
    queries: Sequence[NDArray[np.int64]],
    pairs: Sequence[Alignment],
) -> tuple[Array, Array]:
    """Return the weight that moves (prompt, layer, head), and A − B of the first prompt.

    The latter (layer, head, key) is the mean over the queries.
    """
    shape = tuple(capture.sizes[dim] for dim in ("prompt", "layer", "head"))
    moved = np.full(shape, np.nan)
    first = np.full((*shape[1:], int(capture["length"].values[0])), np.nan)
    for prompt, positions in enumerate(queries):
        for layer in map(int, np.flatnonzero(attending(capture))):
            rows = qk_rows.rows(capture, prompt, layer, positions).weights()
            partners = pairs[prompt].queries(positions)
            other_rows = qk_rows.rows(other, prompt, layer, partners).weights()
            difference = rows - pairs[prompt].onto(rows, other_rows)
            moved[prompt, layer] = np.abs(difference).sum(-1).mean(-1) / 2
            if prompt == 0:
                first[layer] = difference.mean(1)
    return moved, first


def _unchecked(capture: xr.Dataset, model: Model) -> str:
    """Return why there is no causal check; empty where there is one."""
    reason = pattern_substitution.reason(capture)
    predicts = model.geometry.causal and model.module.get_output_embeddings() is not None  # type: ignore[no-untyped-call]
    return reason or ("" if predicts else "the model predicts no next token")


def _lost(
    model: Model,
    capture: xr.Dataset,
    task: Task,
    other: xr.Dataset,
    pairs: Sequence[Alignment],
    groups: Sequence[Sequence[Head]],
    checked: int,
) -> Array:
    """Measure the loss in nats when groups of heads get condition B's patterns (prompt, group).

    Of prompts of different length the rows of the tokens that both have, as `Alignment.onto` lays
    them; the rows of the instruction stay (NaN).
    """
    encoded = read(model, task).encoded
    assert encoded is not None
    losses = []
    total = min(checked, len(encoded.ids))
    with torch.no_grad():
        for prompt in range(total):
            ids, questions = torch.tensor([encoded.ids[prompt]]), [encoded.questions[prompt]]
            pair = pairs[prompt]
            maps = {}
            for layer in {layer for group in groups for layer, _ in group}:
                rows = qk_rows.rows(capture, prompt, layer, pair.first_positions).weights()
                others = qk_rows.rows(other, prompt, layer, pair.second_positions).weights()
                maps[layer] = np.full((len(rows), ids.shape[1], ids.shape[1]), np.nan)
                maps[layer][:, pair.first_positions] = pair.onto(rows, others)
            values = []
            for group in ((), *groups):
                edits = pattern_substitution.fix({head: maps[head[0]][head[1]] for head in group})
                output = logits(model, ids, edits)
                values.append(float(score(output, questions, "log_probability")))
            losses.append([values[0] - value for value in values[1:]])
    return np.asarray(losses)


def _verdict(samples: Array, size: int) -> Verdict:
    most_different, random = samples.mean(0)
    text = (
        f"with the pattern of B in the {size} heads that differ most the answers lose "
        f"{amount(most_different)} nats, with it in as many random others {amount(random)}"
    )
    remark = "; the difference is correlational here"
    over = [samples[:, 0] - LEAST_NATS, samples[:, 0] - samples[:, 1]]
    return causal_verdict(np.stack(over, 1), text, remark)
