"""Context reliance: how much of what a head writes depends on one span of the context.

The span, such as the fact that a question asks for, is hidden from every query after it, and the
output of every head at the question is compared with the clean one: in all layers at once (total:
what the span passes on through other heads counts too), and in each layer alone (direct: what the
head itself reads there). As many random other tokens, hidden likewise, are the control. The causal
number: the accuracy without the heads that rely most on the span, and without as many others.

Sources: Cracking the Code of Hallucination (vision-aware head divergence: the Euclidean distance of
a head's outputs with and without the image), for any span; the normalised distance is ours.
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._measurements.head_outputs import output_weights
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import GRID, SHARE, Results, heads, label, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.conditions._span_knockout import distances, outputs
from headscope.kernels.errors import NotApplicable
from headscope.probes.capturing.capture import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tasks._absent_facts import with_stated_fact
from headscope.probes.prompts.tokens import EncodedQuestion

NEEDS = ()
TASK = "recall"
PROMPTS = 16
QUICK = {"controls": 1, "draws": 1}
SUPPORTS = {"hybrid"}

SOURCE = "Cracking the Code of Hallucination (VHD)"
SPACES = {"residual": "z W_O in the residual stream", "z": "z before the output projection"}
RATIO = "‖a − b‖ / (‖a‖ + ‖b‖)"


def run(
    model: Model,
    task: Task,
    *,
    span: str = "evidence",
    space: Annotated[str, OneOf(tuple(SPACES))] = "residual",
    controls: Annotated[int, AtLeast(1)] = 2,
    best: Annotated[int, AtLeast(1)] = 5,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Hide a span of the context, and measure how far the output of every head moves.

    Parameters
    ----------
    task
        Prompts with questions; each is cut at its first question, where heads are read.
    span
        ``evidence`` (the tokens that hold the answer) or a role of the task, such as ``needle``.
    space
        ``residual`` (after the head's slice of the output projection) or ``z`` (before it).
    controls
        Random spans of as many other tokens; the first token and the question are never among them.
    best
        Heads with the largest direct distance beyond the control, ablated in the causal check;
        half of all at most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the random tokens, the random sets and the bootstrap.

    Returns
    -------
    Dataset with ``divergence`` (layer, head; Euclidean distance, total), ``reliance`` and
    ``direct`` (layer, head; share ``‖a − b‖ / (‖a‖ + ‖b‖)``, 0 to 1, total and direct),
    ``beyond_control`` (layer, head; direct minus the same with other tokens hidden, −1 to 1) and
    ``accuracy`` (condition; the causal check), with 95 % intervals over prompts.
    """
    model.check_predicts()
    cut = with_stated_fact(task)
    total, direct, control, far = _distances(
        model, cut, span, space, controls, np.random.default_rng(seed)
    )

    convention = (
        f"{span} hidden from all later queries, read at the first question of {len(total)} "
        f"prompts of {task.name}; {SPACES[space]}"
    )
    captured = capture(model, cut, stats=("lse",))
    results = Results(captured, seed=seed, source=SOURCE, evidence="causal", convention=convention)
    everywhere = "hidden in all layers at once"
    results.add_means(
        ("reliance", GRID, total, "Output that hangs on the span", SHARE,
         f"{RATIO}; {everywhere}; {convention}"),
        ("direct", GRID, direct, "Output that the head itself reads from the span", SHARE,
         f"{RATIO}; hidden in the head's layer alone; {convention}"),
        ("beyond_control", GRID, direct - control, "Read from the span beyond other tokens",
         ("share", "diverging", -1, 1),
         f"direct − the same with as many random other tokens hidden (mean of "
         f"{controls}); {convention}"),
        ("divergence", GRID, far, "Divergence with and without the span",
         ("norm of the output", "sequential", 0),
         f"Euclidean distance; {everywhere}; {convention}"),
    )  # fmt: skip

    pool = heads(captured)
    chosen = top(results["beyond_control"].values, min(best, len(pool) // 2))
    checked, conditions, record = causal_check.check(
        "accuracy", f"Accuracy on {task.name}", model, cut, chosen, pool,
        kind="context-reliant", draws=draws, seed=seed,
    )  # fmt: skip
    results.variables |= checked
    return results.dataset(
        {"condition": conditions},
        heads_by_type={"context-reliant": [label(head) for head in chosen]},
        causal={"context-reliant": record},
        verdict=Verdict(record["verdict"], record["note"]),
    )


def _distances(
    model: Model, task: Task, span: str, space: str, controls: int, rng: np.random.Generator
) -> Array:
    """Return (kind, prompt, layer, head): total, direct, control shares, Euclidean distance."""
    prompts = read(model, task)
    assert prompts.encoded is not None
    weights = output_weights(model).double().numpy() if space == "residual" else None

    def head_outputs(ids: tuple[int, ...], query: int, keys: list[int], method: str) -> Array:
        z = outputs(model, ids, query, keys, method)
        return z if weights is None else np.einsum("lhs,lhsr->lhr", z, weights)

    rows = []
    for row, ids in enumerate(prompts.ids):
        question = prompts.encoded.questions[row][0]
        query = question.at
        keys = _span(span, question, prompts.encoded.roles[row], row, task.name)
        spare = [at for at in range(1, query) if at not in set(keys)]
        if len(spare) < len(keys):
            raise NotApplicable(
                f"span: prompt {row + 1} has {len(spare)} other tokens to set against the "
                f"{len(keys)} of the span; choose a smaller one or longer prompts"
            )
        clean = head_outputs(ids, query, [], "total")
        far, total = distances(clean, head_outputs(ids, query, keys, "total"))
        _, direct = distances(clean, head_outputs(ids, query, keys, "direct"))
        control_keys = [
            sorted(rng.choice(spare, len(keys), replace=False).tolist()) for _ in range(controls)
        ]
        control = [
            distances(clean, head_outputs(ids, query, keys, "direct"))[1] for keys in control_keys
        ]
        rows.append(np.stack([total, direct, np.mean(control, axis=0), far]))
    return np.stack(rows, axis=1)


def _span(
    span: str, question: EncodedQuestion, roles: dict[str, tuple[int, ...]], row: int, task: str
) -> list[int]:
    """Return the positions of the span before the question."""
    positions = {"evidence": question.evidence, **roles}
    OneOf(positions).check("span", span)
    keys = sorted({int(at) for at in positions[span] if 0 < at < question.at})
    if not keys:
        raise NotApplicable(
            f"span: prompt {row + 1} of {task} has no token of {span!r} between its first token "
            "and its first question; choose another span or task"
        )
    return keys
