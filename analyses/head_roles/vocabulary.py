"""Head vocabulary: name-mover-like and copy-suppression heads, and the stage that heads serve.

A head copies a word when its value at the word, sent through its output projection, the final norm
and the unembedding, has that word among its k largest logits; it suppresses the word when it is
among the k smallest. The score of a name mover is by how much more it attends to the answer than to
the wrong answers, where it copies the answer; of copy suppression, its attention to candidates,
right or wrong, that it suppresses. Beside both stands the causal number: the logit difference lost
without the head, positive for a mover, and for a suppressor negative where it suppresses the answer
more than the wrong ones, else positive.

Sources: Wang et al., Interpretability in the Wild (2211.00593), for the heads; MAPS (2412.11965)
for both signs of the logits; Attention Heads of Large Language Models: A Survey, for the stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, label, require, top, variable
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ("target_mass",)
KEEP = ("v",)
TARGETS = ("evidence",)
TASK = "ioi"
PROMPTS = 24

KINDS = {"name_mover": "name-mover-like", "copy_suppression": "copy-suppression"}
COPIES = "MAPS 2412.11965"


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    k: int = 1,
    least_score: float = 0.2,
    least_change: float = 0.05,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head as name mover and as copy suppressor, and take it out.

    Parameters
    ----------
    capture
        Capture of the task with ``target_mass`` of the rule ``evidence`` and the kept ``v``.
    model
        Model that was captured; every head in turn is ablated.
    task
        Prompts whose questions name the answer's place in the prompt, and wrong answers.
    k
        Among how many largest (smallest) logits a copied (suppressed) word must be.
    least_score
        Score from which a head is named.
    least_change
        Logit difference below which an ablation says nothing.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``to_answer`` and ``to_wrong`` (weight from the question to the answer and to the
    wrong ones), ``copying`` and ``suppression`` (share of answers), ``name_mover`` and
    ``copy_suppression`` (share of weight), ``lost`` (logits; the ablation), all over layer and head
    with 95 % intervals over prompts, and ``types`` (type; heads named). The coordinates
    ``head_type``, ``stage``, ``evidence``, ``method`` (layer, head) and ``type_stage``,
    ``type_placed_by`` (type) serve as filters.

    Raises
    ------
    NotApplicable
        When the capture lacks something, no question names its evidence, or the model has no
        unembedding.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> result = execute("vocabulary", load_model("headscope/bundled"), n=2)
    >>> str(result["type_stage"].sel(type="name-mover-like").values)
    'expression preparation'
    """
    from headscope.analyses._interventions import ablation
    from headscope.analyses._runtime import taxonomy
    from headscope.analyses.head_roles import _candidates

    options.at_least("k", k, 1)
    options.between("least_score", least_score, 0, 1)
    options.at_least("least_change", least_change, 0)
    require(capture, (*NEEDS, *KEEP), "vocabulary")
    if "evidence" not in capture["target"].values:
        raise NotApplicable(
            "capture: vocabulary needs target_mass of the rule 'evidence'; give targets"
        )

    seen = _candidates.look(capture, model, task, k)
    answer, wrong = (
        seen.to_answer * seen.suppresses,
        seen.to_wrong * seen.suppresses_wrong,
    )
    moved = (seen.to_answer - seen.to_wrong) * seen.copies
    signs = {
        "name_mover": np.ones((model.layers, model.heads)),
        "copy_suppression": np.sign((wrong - answer).mean(0)),
    }
    metric = "logit_difference"
    encoded = ablation.encode_task(model, task)
    intact = ablation.evaluate(model, encoded, (), metric)
    lost = intact[:, None, None] - ablation.ablate_each_head(model, encoded, metric)
    lost[:, list(model.geometry.without)] = np.nan

    grid, count = ("layer", "head"), len(intact)
    said = f"{count} prompts of {task.name}"
    variables: dict[str, xr.Variable] = {}
    for name, title, units, low, samples, kind, convention in (
        ("to_answer", "Attention from the question to the answer", "share", 0, seen.to_answer,
         "name-mover-like", f"mass on the answer's tokens in the text; {said}"),
        ("to_wrong", "Attention from the question to wrong answers", "share", 0, seen.to_wrong,
         "name-mover-like", f"mass on all wrong answers in the text; {said}"),
        ("copying", "Copies the answer it could look at", "share of prompts", 0, seen.copies,
         "name-mover-like", f"answer among the {k} largest logits of v·W_O; {said}"),
        ("suppression", "Suppresses the answer it could look at", "share of prompts", 0,
         seen.suppresses, "copy-suppression",
         f"answer among the {k} smallest logits of v·W_O; {said}"),
        ("name_mover", "Name-mover-like score", "share", -1, moved, "name-mover-like",
         f"(weight on the answer − weight on wrong answers) × whether it is copied; {said}"),
        ("copy_suppression", "Copy-suppression score", "share", 0, answer + wrong,
         "copy-suppression", f"weight on answer and wrong answers × whether suppressed; {said}"),
    ):  # fmt: skip
        variables |= averaged(
            name, grid, samples, title, units, "diverging" if low else "sequential", low, 1,
            seed=seed, convention=convention, source=COPIES,
            **taxonomy.attributes(kind, "scoring"),
        )  # fmt: skip
    variables |= averaged(
        "lost", grid, lost, f"Lost on {task.name} without the head", "logits", "diverging",
        seed=seed, convention=f"logit difference, intact − set to zero; {said}",
        **taxonomy.attributes("name-mover-like", "ablation"),
    )  # fmt: skip

    kinds = np.full((model.layers, model.heads), "", dtype="<U16")
    named: dict[str, list[str]] = {}
    notes = []
    effect, lower, upper = (variables[f"lost{end}"].values for end in ("", "_lower", "_upper"))
    for name, kind in KINDS.items():
        score = variables[name].values
        chosen = top(score, int((score >= least_score).sum()))
        named[kind] = [label(head) for head in chosen]
        agree = []
        for head in chosen:
            kinds[head] = kind
            sign = signs[name][head]
            sure = lower[head] > 0 if sign > 0 else upper[head] < 0
            if sure and sign * effect[head] >= least_change:
                agree.append(head)
        notes.append(_verdict(kind, chosen, agree, count))
    variables["types"] = variable(
        ("type",), [len(named[kind]) for kind in KINDS.values()], "Heads named by type",
        "heads", "sequential", 0, convention=f"score ≥ {least_score:g}; other types: `head_types`, "
        "`classes`, `retrieval`", source="Attention Heads of Large Language Models: A Survey",
    )  # fmt: skip
    return dataset(
        capture,
        variables,
        {
            "type": list(named),
            "type_stage": ("type", [taxonomy.TERMS[kind].stage for kind in named]),
            "type_placed_by": ("type", [taxonomy.TERMS[kind].placed_by for kind in named]),
            **taxonomy.coordinates(kinds, "scoring"),
        },
        heads_by_type=named,
        note=" ".join(notes),
    )


def _verdict(
    kind: str, chosen: list[tuple[int, int]], agree: list[tuple[int, int]], count: int
) -> str:
    """Say which named heads an ablation supports."""
    if not chosen:
        return f"No head is {kind}."
    names = ", ".join(label(head) for head in chosen)
    if count < 2:
        return f"INCONCLUSIVE for {kind} heads {names}: one prompt has no interval."
    said = f"{len(agree)} of {len(chosen)} {kind} heads ({names}) change the logit difference as "
    supported = ", ".join(label(head) for head in agree)
    if len(agree) == len(chosen):
        return f"Causal check agrees: {said}their score says."
    return f"DISAGREEMENT: {said}their score says" + (f": {supported}." if supported else ".")


def types_of(result: xr.Dataset, **wanted: Any) -> list[tuple[int, int]]:
    """List the heads of a result whose coordinates have the wanted words.

    Examples
    --------
    >>> grid = (("layer", "head"), [["broad", "recency"]])
    >>> types_of(xr.Dataset(coords={"layer": [0], "head": [0, 1], "head_type": grid}),
    ...          head_type="recency")
    [(0, 1)]
    """
    chosen = np.ones((result.sizes["layer"], result.sizes["head"]), dtype=bool)
    for name, word in wanted.items():
        if name not in result.coords:
            raise InvalidInput(
                f"{name}: this result has no such coordinate; see `vocabulary`, `classes`"
            )
        chosen &= result[name].transpose("layer", "head").values == word
    return [(int(layer), int(head)) for layer, head in np.argwhere(chosen)]
