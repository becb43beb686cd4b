"""Context reliance: how much of what a head writes hangs on one span of the context.

The span, such as the fact that a question asks for, is hidden from every query after it, and the
output of every head at the question is held against the intact one: in all layers at once (total:
what the span passes on through other heads counts too), and in each layer alone (direct: what the
head itself reads there). As many random other tokens, hidden likewise, are the control. The causal
number: the accuracy without the heads that rely most on the span, and without as many others.

Sources: Cracking the Code of Hallucination (vision-aware head divergence: the Euclidean distance of
a head's outputs with and without the image), for any span; the normalised distance is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, heads, label, top
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "recall"
PROMPTS = 12

SOURCE = "Cracking the Code of Hallucination (VHD)"
SPACES = {"residual": "z W_O in the residual stream", "z": "z before the output projection"}
Array = NDArray[np.float64]


def run(
    model: Model,
    task: Task,
    *,
    span: str = "evidence",
    space: str = "residual",
    controls: int = 2,
    best: int = 5,
    draws: int = 3,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Hide a span of the context, and measure how far the output of every head moves.

    Parameters
    ----------
    model
        Causal language model that answers.
    task
        Prompts with questions; each is cut at its first question, where heads are read.
    span
        ``evidence`` (the tokens that hold the answer) or a role of the task, such as ``needle``.
    space
        ``residual`` (after the head's slice of the output projection) or ``z`` (before it).
    controls
        Random spans of as many other tokens; the first token and the question are never among
        them.
    best
        Heads with the largest direct distance beyond the control, ablated in the causal check;
        half of all at most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the random tokens, the random sets and the bootstrap.
    progress
        Called with (done, total) prompts, then ablations.

    Returns
    -------
    Dataset with ``divergence`` (layer, head; Euclidean distance, total), ``reliance`` and
    ``direct`` (layer, head; share ``‖a − b‖ / (‖a‖ + ‖b‖)``, 0 to 1, total and direct),
    ``beyond_control`` (layer, head; direct minus the same with other tokens hidden, −1 to 1) and
    ``accuracy`` (condition; the causal check), with 95 % intervals over prompts.

    Raises
    ------
    NotApplicable
        For a model that predicts no next token, a prompt without the span before its question, an
        option out of range, or where the output projection is not known.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> options = {"draws": 1, "controls": 1}
    >>> model = load_model("headscope/bundled")
    >>> execute("context_reliance", model, n=2, options=options)["direct"].dims
    ('layer', 'head')
    """
    from headscope.analyses._measurements.head_outputs import output_weights
    from headscope.analyses.conditions._span_knockout import distances, outputs
    from headscope.probes import capture
    from headscope.probes.prompts.reading import read
    from headscope.probes.prompts.tasks._absent_facts import stated

    model.check_predicts()
    options.one_of("space", space, SPACES)
    for name, value in (("controls", controls), ("best", best), ("draws", draws)):
        options.at_least(name, value, 1)
    cut = stated(task)
    given = read(model, cut)
    assert given.encoded is not None
    writes = output_weights(model).double().numpy() if space == "residual" else None

    def written(z: Array) -> Array:
        return z if writes is None else np.einsum("lhs,lhsr->lhr", z, writes)

    rng = np.random.default_rng(seed)
    far, total, direct, control = [], [], [], []
    for row, ids in enumerate(given.ids):
        question = given.encoded.questions[row][0]
        places = _span(span, question, given.encoded.roles[row], row, task.name)
        spare = [at for at in range(1, question.at) if at not in set(places)]
        if len(spare) < len(places):
            raise NotApplicable(
                f"span: prompt {row + 1} has {len(spare)} other tokens to set against the "
                f"{len(places)} of the span; choose a smaller one or longer prompts"
            )
        intact = written(outputs(model, ids, question.at, (), "total"))
        moved, share = distances(intact, written(outputs(model, ids, question.at, places, "total")))
        far.append(moved)
        total.append(share)
        direct.append(
            distances(intact, written(outputs(model, ids, question.at, places, "direct")))[1]
        )
        others = [
            sorted(int(at) for at in rng.choice(spare, len(places), replace=False))
            for _ in range(controls)
        ]
        control.append(
            np.mean([
                distances(intact, written(outputs(model, ids, question.at, each, "direct")))[1]
                for each in others
            ], axis=0)
        )  # fmt: skip
        if progress is not None:
            progress(row + 1, len(given.ids))

    said = (
        f"{span} hidden from all later queries, read at the first question of {len(given.ids)} "
        f"prompts of {task.name}; {SPACES[space]}"
    )
    grid, share_of = ("layer", "head"), "‖a − b‖ / (‖a‖ + ‖b‖)"
    variables: dict[str, xr.Variable] = {}
    for name, values, title, how in (
        ("reliance", total, "Output that hangs on the span", "hidden in all layers at once"),
        ("direct", direct, "Output that the head itself reads from the span",
         "hidden in the head's layer alone"),
    ):  # fmt: skip
        variables |= averaged(
            name, grid, np.stack(values), title, "share", "sequential", 0, 1, seed=seed,
            source=SOURCE, evidence="causal", convention=f"{share_of}; {how}; {said}",
        )  # fmt: skip
    variables |= averaged(
        "beyond_control", grid, np.stack(direct) - np.stack(control),
        "Read from the span beyond other tokens", "share", "diverging", -1, 1, seed=seed,
        source=SOURCE, evidence="causal",
        convention=f"direct − the same with as many random other tokens hidden (mean of "
        f"{controls}); {said}",
    )  # fmt: skip
    variables |= averaged(
        "divergence", grid, np.stack(far), "Divergence with and without the span",
        "norm of the output", "sequential", 0, seed=seed, source=SOURCE, evidence="causal",
        convention=f"Euclidean distance; hidden in all layers at once; {said}",
    )  # fmt: skip

    known = capture(model, cut, stats=("lse",))
    pool = heads(known)
    chosen = top(variables["beyond_control"].values, min(best, len(pool) // 2))
    checked, conditions, record = causal_check.check(
        "accuracy", f"Accuracy on {task.name}", model, cut, chosen, pool, kind="context-reliant",
        draws=draws, seed=seed, progress=progress,
    )  # fmt: skip
    return dataset(
        known,
        variables | checked,
        {"condition": conditions},
        convention=said,
        heads_by_type={"context-reliant": [label(head) for head in chosen]},
        causal={"context-reliant": record},
        note=record["note"],
    )


def _span(
    span: str, question: object, roles: dict[str, tuple[int, ...]], row: int, task: str
) -> list[int]:
    """Return the positions of the span before the question."""
    end: int = question.at  # type: ignore[attr-defined]
    named = {"evidence": question.evidence, **roles}  # type: ignore[attr-defined]
    options.one_of("span", span, named)
    places = sorted({int(at) for at in named[span] if 0 < at < end})
    if not places:
        raise NotApplicable(
            f"span: prompt {row + 1} of {task} has no token of {span!r} between its first token "
            "and its first question; choose another span or task"
        )
    return places
