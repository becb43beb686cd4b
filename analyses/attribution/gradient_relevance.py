"""Gradient relevance: attention weighed by the answer's gradient, per token and per head.

Two rule sets. ``gradient_attention``: ``R ← R + Ā R`` with ``Ā = mean_h (∇A ⊙ A)⁺``.
``transformer_attribution``: the same product over I + Ā with ``Ā = mean_h (∇A ⊙ R_A)⁺``, R_A the
LRP relevance of a weight. A head's relevance is what its links add to the sum of the answer's row;
the loss of the answer when the head is ablated is reported beside it. `of_pair` has the rules for
encoder and decoder.

Source: Chefer et al., Generic Attention-model Explainability (2103.15679) and Transformer
Interpretability Beyond Attention Visualization (2012.09838).
"""

from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._relevance import gradient_attention, transformer_attribution
from headscope.analyses._relevance._rows import Link, follow
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._runtime.options import AtLeast, OneOf, require_one_text
from headscope.analyses._runtime.results import GRID, Results, require, require_maps
from headscope.analyses.attribution import _pair_relevance, _relevance_heads
from headscope.kernels.errors import NotApplicable
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 12
SUPPORTS: set[str] = set()

SOURCE = "Chefer et al. 2103.15679, 2012.09838"
RULES = {
    "gradient_attention": "mean over heads of the positive part of attention × its gradient",
    "transformer_attribution": "mean over heads of the positive part of gradient × LRP relevance "
    "of attention",
}

of_pair = _pair_relevance.of_pair


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    rules: Annotated[str, OneOf(tuple(RULES))] = "gradient_attention",
    normalize: bool = False,
    start_layer: Annotated[int, AtLeast(0)] = 0,
    prompt: Annotated[int, AtLeast(0)] = 0,
    map_tokens: Annotated[int, AtLeast(0)] = 256,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Propagate attention × gradient from the answer to tokens, and compare heads with ablation.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose answers are followed, with the kept ``z``, whose means take the
        heads' place in the ablation.
    rules
        Which rule set the heads and the map follow; the tokens are shown by both.
    normalize
        Divide the rows of I + Ā by their sums, as the authors' code for BERT does; that for images
        does not.
    start_layer
        Lowest layer that takes part; the authors' code for BERT starts at 11.
    prompt
        Prompt whose tokens and map are shown.
    map_tokens
        Longest text whose whole map is shown; 0 leaves it out.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``gradient_attention`` and ``transformer_attribution`` (query; relevance of the
    tokens), ``relevance_map`` (query, key; what each position draws on, by the answer's gradient),
    ``head_relevance`` (layer, head; share of all that heads add), ``ablation_effect`` (layer,
    head) and ``relevance_vs_ablation`` (Spearman's ρ over heads), with 95 % intervals over prompts.
    A rule set that a model's parts do not allow is left out, and the note says why.
    """
    require(capture, KEEP, "gradient_relevance")
    require_one_text(capture.attrs.get("attention", "self"), "gradient_relevance")
    require_maps(capture, "gradient_relevance")
    encoded, targets = _relevance_heads.targets(model, task, prompt)
    variant: Any = {"normalize": normalize, "start": start_layer}
    added = []
    for target in targets:
        trace = Trace(model, target)
        added.append(follow(trace, _link(trace, rules), **variant)[1].numpy())
    sums = np.stack(added)
    shares = sums / sums.sum((1, 2), keepdims=True).clip(1e-30)

    how = (
        f"rows {'divided by their sums' if normalize else 'as they are'}, from layer {start_layer}"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=f"{RULES[rules]}; {how}")
    shown, note = Trace(model, targets[prompt]), ""
    for name, rule in RULES.items():
        try:
            row = follow(shown, _link(shown, name), **variant)[0][:, 0]
        except NotApplicable as error:
            note += f"No {name}: {error}. "
            continue
        title = f"Relevance by {name.replace('_', ' ')}"
        results.add(
            name, ("query",), row.double().numpy(), title, "relevance", "sequential", 0,
            convention=f"row of the answer's position, its own 1 included; {rule}; {how}",
        )  # fmt: skip
    coords = _relevance_heads.token_coords(model, targets[prompt])
    if len(targets[prompt].ids) <= map_tokens:
        whole = torch.eye(len(targets[prompt].ids))[None, None]
        rows = follow(shown, _link(shown, rules), whole, **variant)[0].T.double().numpy()
        results.add(
            "relevance_map", ("query", "key"), rows - np.eye(len(rows)), "Relevance of every pair",
            "relevance", "sequential", None, convention=f"R − I; {RULES[rules]}; {how}",
        )  # fmt: skip
        coords["key"] = coords["query"]
    results.add_mean(
        "head_relevance", GRID, shares, "Share of the relevance that a head's links add", "share",
        "sequential", 0, 1,
        convention=f"Σ_ij r_i Ā_ij of the head over all heads, r the answer's row; {how}",
    )  # fmt: skip
    verdict = _relevance_heads.add_ablation(
        results, capture, model, encoded, shares, "Gradient relevance", exhaustive=exhaustive,
        seed=seed,
    )  # fmt: skip
    note += f"Heads of most relevance: {_relevance_heads.largest(shares)}."
    return results.dataset(coords, verdict, note, prompt=prompt)


def _link(trace: Trace, rules: str) -> Link:
    if rules == "gradient_attention":
        return gradient_attention.link
    return transformer_attribution.link(trace)
