"""Head vocabulary: name-mover-like and copy-suppression heads, and the stage that heads serve.

A head copies a word when its value at the word, sent through its output projection, the final norm
and the unembedding, has that word among its k largest logits; it suppresses the word when it is
among the k smallest. The score of a name mover is by how much more it attends to the answer than to
the wrong answers, where it copies the answer; of copy suppression, its attention to candidates,
right or wrong, that it suppresses. The causal number is the logit difference lost without the head,
positive for a mover, and for a suppressor negative where it suppresses the answer more than the
wrong ones, else positive.

Sources: Wang et al., Interpretability in the Wild (2211.00593), for the heads; MAPS (2412.11965)
for both signs of the logits; Attention Heads of Large Language Models: A Survey, for the stages.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.causal_check import Head
from headscope.analyses._interventions.screening import screen
from headscope.analyses._runtime import taxonomy
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import Results, label, marked, require, top
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import exceeds_zero
from headscope.analyses.head_roles import _candidates
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ("target_mass",)
SUPPORTS = {"hybrid"}
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
    k: Annotated[int, AtLeast(1)] = 1,
    least_score: Annotated[float, Between(0, 1)] = 0.2,
    least_change: Annotated[float, AtLeast(0)] = 0.05,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head as name mover and as copy suppressor, and ablate it.

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
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that are named or that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``to_answer`` and ``to_wrong`` (weight from the question to the answer and to the
    wrong ones), ``copying`` and ``suppression`` (share of answers), ``name_mover`` and
    ``copy_suppression`` (share of weight), ``lost`` (logits; the ablation), all over layer and head
    with 95 % intervals over prompts, and ``types`` (type; heads named). The coordinates
    ``head_type``, ``stage``, ``evidence``, ``method`` (layer, head) and ``type_stage``,
    ``type_placed_by`` (type) serve as filters.
    """
    require(capture, (*NEEDS, *KEEP), "vocabulary")
    if "evidence" not in capture["target"].values:
        raise NotApplicable(
            "capture: vocabulary needs target_mass of the rule 'evidence'; give targets"
        )
    scores = _candidates.measure(capture, model, task, k)
    answer = scores.to_answer * scores.suppresses
    wrong = scores.to_wrong * scores.suppresses_wrong
    moved = (scores.to_answer - scores.to_wrong) * scores.copies
    metric = "logit_difference"
    encoded = ablation.encode_task(model, task)
    clean = ablation.evaluate(model, encoded, (), metric)
    also = [
        head for scored in (moved, answer + wrong) for head in marked(scored.mean(0) >= least_score)
    ]
    screened = screen(model, encoded, metric, also=also, exhaustive=exhaustive, seed=seed)
    ablated = ablation.ablate_each_head(model, encoded, metric, heads=screened.heads)
    lost = clean[:, None, None] - ablated

    grid, count = ("layer", "head"), len(clean)
    prompts = f"{count} prompts of {task.name}"
    results = Results(capture, seed=seed)
    for name, title, units, samples, kind, convention in (
        ("to_answer", "Attention from the question to the answer", "share", scores.to_answer,
         "name-mover-like", "mass on the answer's tokens in the text"),
        ("to_wrong", "Attention from the question to wrong answers", "share", scores.to_wrong,
         "name-mover-like", "mass on all wrong answers in the text"),
        ("copying", "Copies the answer it could attend to", "share of prompts", scores.copies,
         "name-mover-like", f"answer among the {k} largest logits of v·W_O"),
        ("suppression", "Suppresses the answer it could attend to", "share of prompts",
         scores.suppresses, "copy-suppression", f"answer among the {k} smallest logits of v·W_O"),
        ("name_mover", "Name-mover-like score", "share", moved, "name-mover-like",
         "(weight on the answer − weight on wrong answers) × whether it is copied"),
        ("copy_suppression", "Copy-suppression score", "share", answer + wrong,
         "copy-suppression", "weight on answer and wrong answers × whether suppressed"),
    ):  # fmt: skip
        signed = name == "name_mover"
        results.add_mean(
            name, grid, samples, title, units, "diverging" if signed else "sequential",
            -1 if signed else 0, 1, convention=f"{convention}; {prompts}", source=COPIES,
            **taxonomy.attributes(kind, "scoring"),
        )  # fmt: skip
    results.add_mean(
        "lost", grid, lost, f"Lost on {task.name} without the head", "logits", "diverging",
        convention=f"logit difference, intact − set to zero, {screened.convention}; {prompts}",
        **taxonomy.attributes("name-mover-like", "ablation"),
    )  # fmt: skip

    signs = {
        "name_mover": np.ones((model.layers, model.heads)),
        "copy_suppression": np.sign((wrong - answer).mean(0)),
    }
    kinds = np.full((model.layers, model.heads), "", dtype="<U16")
    named: dict[str, list[str]] = {}
    verdicts = []
    for name, kind in KINDS.items():
        values, sign = results[name].values, signs[name]
        chosen = top(values, int((values >= least_score).sum()))
        named[kind] = [label(head) for head in chosen]
        for head in chosen:
            kinds[head] = kind
        over = [lost[:, *head] * sign[head] - least_change for head in chosen]
        verdicts.append(_verdict(kind, chosen, over))
    results.add(
        "types", ("type",), [len(heads) for heads in named.values()], "Heads named by type",
        "heads", "sequential", 0, convention=f"score ≥ {least_score:g}; other types: `head_types`, "
        "`classes`, `retrieval`", source="Attention Heads of Large Language Models: A Survey",
    )  # fmt: skip
    return results.dataset(
        {
            "type": list(named),
            "type_stage": ("type", [taxonomy.TERMS[kind].stage for kind in named]),
            "type_placed_by": ("type", [taxonomy.TERMS[kind].placed_by for kind in named]),
            **taxonomy.coordinates(kinds, "scoring"),
        },
        heads_by_type=named,
        verdict=verdicts[0] & verdicts[1],
    )


def _verdict(kind: str, chosen: list[Head], over: list[Array]) -> Verdict:
    """Conclude which named heads an ablation supports, from what each does too much (prompt,)."""
    if not chosen:
        return Verdict("not_supported", f"No head is {kind}.")
    names = ", ".join(map(label, chosen))
    samples = np.stack(over, axis=1)
    agreeing = [head for head, above in zip(chosen, exceeds_zero(samples), strict=True) if above]
    text = (
        f"{len(agreeing)} of {len(chosen)} {kind} heads ({names}) change the logit difference as "
        "their score says"
    )
    supported = f": {', '.join(map(label, agreeing))}" if agreeing else ""
    return causal_verdict(samples, text, supported)


def types_of(result: xr.Dataset, **filters: Any) -> list[tuple[int, int]]:
    """List the heads of a result whose coordinates have the wanted words.

    >>> grid = (("layer", "head"), [["broad", "recency"]])
    >>> types_of(xr.Dataset(coords={"layer": [0], "head": [0, 1], "head_type": grid}),
    ...          head_type="recency")
    [(0, 1)]
    """
    chosen = np.ones((result.sizes["layer"], result.sizes["head"]), dtype=bool)
    for name, word in filters.items():
        if name not in result.coords:
            raise InvalidInput(
                f"{name}: this result has no such coordinate; see `vocabulary`, `classes`"
            )
        chosen &= result[name].transpose("layer", "head").values == word
    return marked(chosen)
