"""Prompt pairs: where heads look under one prompt and not under its twin.

Two prompts that differ in a few words, such as two instructions about one text or a clean and a
corrupted question, are compared position by position: the row of every head at the question in
condition A, minus its row in condition B. The causal number: what the answers of A lose when the
heads that differ most get the pattern of B, against as many other heads.

Source: Instruction-Aligned Visual Attention (attention under two instructions, subtracted), for
any two aligned prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.causal_check import Progress, random_sets
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    attending,
    averaged,
    dataset,
    heads,
    interval,
    label,
    require,
    top,
    variable,
)
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ("lse",)
KEEP = ("q", "k")
TASK = "induction"
PROMPTS = 16

SOURCE = "Instruction-Aligned Visual Attention"
CONDITIONS = ("pattern of B in the heads that differ most", "pattern of B in random other heads")
# What is lost below this is no effect to speak of.
LEAST_NATS = 0.01
Array = NDArray[np.float64]
Head = tuple[int, int]


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    best: int = 4,
    draws: int = 3,
    checked: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Subtract the rows of every head in condition B from those in condition A.

    Parameters
    ----------
    capture
        Capture of condition A, the prompts of the task, with the kept ``q`` and ``k`` and ``lse``.
    model
        Model that was captured.
    task
        Prompts and, as their corrupted twins, condition B: word for word of the same length.
    best
        Heads that differ most, whose pattern is swapped; half of all at most.
    draws
        Random sets of as many other heads.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the random sets and of the bootstrap.
    progress
        Called with (done, total) prompts of the causal check.

    Returns
    -------
    Dataset with ``difference`` (layer, head; share of weight that moves between A and B,
    ``½ Σ_j |A_ij − B_ij|``, 0 to 1), ``moved_to`` (query; A − B along the first prompt, mean over
    the heads that differ most) and ``lost`` (condition; log-probability of A's answers that is
    lost, in nats), with 95 % intervals over prompts.

    Raises
    ------
    NotApplicable
        For a capture of other prompts or without q, k and lse, or an option out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> execute("prompt_pairs", model, n=2, options={"draws": 1})["difference"].dims
    ('layer', 'head')
    """
    from headscope.probes import capture as capture_again
    from headscope.probes.prompts.reading import read

    for name, value in (("best", best), ("draws", draws), ("checked", checked)):
        options.at_least(name, value, 1)
    require(capture, (*KEEP, *NEEDS), "prompt_pairs")
    qk_rows.refuse_other(capture, "prompt_pairs")
    encoded = read(model, task).encoded
    assert encoded is not None
    if len(encoded.ids) != capture.sizes["prompt"]:
        raise NotApplicable(
            f"capture: it holds {capture.sizes['prompt']} prompts and the task has "
            f"{len(encoded.ids)}; capture this task"
        )
    other = capture_again(
        model, [list(one) for one in encoded.corrupted_ids], stats=NEEDS, keep=KEEP
    )
    places = [np.unique([one.at for one in asked]) for asked in encoded.questions]
    shape = (capture.sizes["prompt"], capture.sizes["layer"], capture.sizes["head"])
    moved = np.full(shape, np.nan)
    length = int(capture["length"].values[0])
    first = np.full((*shape[1:], length), np.nan)
    for prompt, queries in enumerate(places):
        for layer in np.flatnonzero(attending(capture)):
            apart = np.subtract(
                *(
                    qk_rows.rows(each, prompt, int(layer), queries).weights()
                    for each in (capture, other)
                )
            )
            moved[prompt, layer] = np.abs(apart).sum(-1).mean(-1) / 2
            if prompt == 0:
                first[layer] = apart.mean(1)

    said = f"rows at the questions of {shape[0]} prompts of {task.name}; B: their corrupted twins"
    variables = averaged(
        "difference", ("layer", "head"), moved.clip(0, 1), "Weight that moves between the prompts "
        "of a pair", "share", "sequential", 0, 1, seed=seed, source=SOURCE,
        evidence="correlational", convention=f"½ Σ_j |A_ij − B_ij|; {said}",
    )  # fmt: skip
    pool = heads(capture)
    size = min(best, len(pool) // 2)
    chosen = top(variables["difference"].values, size)
    variables["moved_to"] = variable(
        ("query",), np.mean([first[head] for head in chosen], axis=0), "Weight under A minus under "
        "B", "share", "diverging", -1, 1, source=SOURCE,
        convention=f"first prompt, mean over {', '.join(map(label, chosen))} and the questions; "
        "the axis names the token that receives",
    )  # fmt: skip
    coords: dict[str, Any] = {"query": np.arange(length)}
    coords["token"] = ("query", capture["token"].values[0, :length].astype(str))
    reason = pattern_substitution.reason(capture)
    if not reason and (
        not model.geometry.causal or model.module.get_output_embeddings() is None  # type: ignore[no-untyped-call]
    ):
        reason = "the model predicts no next token"
    if reason:
        note = f"No causal check: {reason}."
    else:
        sets = random_sets([one for one in pool if one not in chosen], size, draws, seed)
        lost = _lost(model, task, other, (chosen, *sets), checked, progress)
        samples = np.stack([lost[:, 0], lost[:, 1:].mean(1)], axis=1)
        mean, lower, upper = bootstrap(samples, seed=seed)
        variables |= interval(
            "lost", ("condition",), mean, lower, upper, "Log-probability of A's answers lost",
            "nats", "diverging", evidence="causal", source=SOURCE,
            convention=f"intact − with the pattern of B; {size} heads, or as many random others "
            f"(mean of {draws} sets); {len(lost)} prompts of {task.name}",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
        note = _verdict(samples, size, seed)
    return dataset(
        capture,
        variables,
        coords,
        convention=said,
        heads_by_type={"differ between the prompts": [label(head) for head in chosen]},
        note=note,
    )


def _lost(
    model: Model,
    task: Task,
    other: xr.Dataset,
    groups: tuple[Any, ...],
    checked: int,
    progress: Progress | None,
) -> Array:
    """Give groups of heads the patterns of condition B (prompt, group): nats that answers lose."""
    import torch

    from headscope.analyses._interventions.metrics import score
    from headscope.probes.attention.forward import logits
    from headscope.probes.prompts.reading import read

    encoded = read(model, task).encoded
    assert encoded is not None
    found = []
    total = min(checked, len(encoded.ids))
    for prompt in range(total):
        ids, asked = torch.tensor([encoded.ids[prompt]]), [encoded.questions[prompt]]
        whole = np.arange(ids.shape[1])
        maps = {
            layer: qk_rows.rows(other, prompt, layer, whole).weights()
            for layer in {layer for group in groups for layer, _ in group}
        }
        values = []
        for group in ((), *groups):
            edits = pattern_substitution.fix({head: maps[head[0]][head[1]] for head in group})
            with torch.no_grad():
                output = logits(model, ids, edits)
                values.append(float(score(output, asked, "log_probability")))
        found.append([values[0] - each for each in values[1:]])
        if progress is not None:
            progress(prompt + 1, total)
    return np.asarray(found)


def _verdict(samples: Array, size: int, seed: int) -> str:
    own, random = samples.mean(0)
    said = (
        f"with the pattern of B in the {size} heads that differ most the answers lose {own:.3f} "
        f"nats, with it in as many random others {random:.3f}"
    )
    if len(samples) < 2:
        return f"INCONCLUSIVE (one prompt has no interval): {said}."
    apart = float(bootstrap(samples[:, 0] - samples[:, 1], seed=seed)[1])
    if own > LEAST_NATS and apart > 0:
        return f"Causal check agrees: {said}."
    return f"DISAGREEMENT: {said}; the difference is correlational here."
