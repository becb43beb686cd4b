"""LRP: the answer's score propagated back through the layers, per token and per head, conserved.

The ε rule applies in linear layers; attention weights, the scales of norms and gates are constant;
activations pass relevance unchanged. Tokens, biases and what ε absorbs sum to the score, and the
rest is stated. The loss of the answer when a head is ablated is reported beside its relevance.
AttnLRP, which goes through the softmax as well, is the method ``attn_lrp``, by the optional package
lxt.

Source: Bach et al. 2015; Ali et al., XAI for Transformers: Better Explanations through Conservative
Propagation (2202.07304).
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._relevance._lrp_rules import LinearTrace
from headscope.analyses._runtime.options import AtLeast, require_one_text
from headscope.analyses._runtime.results import GRID, Results, require, require_maps
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.attribution import _relevance_heads
from headscope.kernels.api import push
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 12
SUPPORTS: set[str] = set()

SOURCE = "Bach et al. 2015; Ali et al. 2202.07304"
COMPONENTS = ("tokens", "biases", "taken by ε", "missing")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    epsilon: Annotated[float, AtLeast(0)] = 0.0,
    prompt: Annotated[int, AtLeast(0)] = 0,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Propagate the answer's score back to tokens and heads, and compare the heads with ablation.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose answers are followed, with the kept ``z``, whose means take the
        heads' place in the ablation.
    epsilon
        The ε of linear layers, in the units of their outputs: it takes relevance from outputs that
        are small, and so from noise. 0 takes nothing.
    prompt
        Prompt whose tokens are shown.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``token_relevance`` (query) and ``head_token_relevance`` (layer, head, query; what
    of a head's relevance goes to which token's values) of the shown prompt, ``head_relevance``
    (layer, head; what of the score passes through the head), ``component_relevance`` (component;
    what makes up the score), ``ablation_effect`` (layer, head) and ``relevance_vs_ablation``
    (Spearman's ρ over heads), with 95 % intervals over prompts.
    """
    require(capture, KEEP, "lrp")
    require_one_text(capture.attrs.get("attention", "self"), "lrp")
    require_maps(capture, "lrp")
    encoded, targets = _relevance_heads.targets(model, task, prompt)
    traces = [LinearTrace(model, target, epsilon) for target in targets]
    parts, heads = [], []
    for number, trace in enumerate(traces):
        tokens = trace.tokens
        gap, ledger = trace.gap(tokens), trace.ledger
        parts.append([tokens.sum(), ledger.bias, ledger.absorbed, gap])
        heads.append(trace.heads())
        if number == prompt:
            token_relevance, head_token_relevance = tokens, by_token(trace)
        trace.__dict__.pop("_backward", None)  # its activations are many
    units = (targets[prompt].units.replace("logit", "logits", 1).split()[0], "diverging")
    samples, scores = np.array(parts), np.stack(heads)
    gaps = float(np.abs(samples[:, -1]).max())

    convention = (
        f"relevance by the ε rule, ε = {epsilon:g}, of the {targets[prompt].units} of the answer"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_all(
        ("token_relevance", ("query",), token_relevance, "Relevance of the token", units),
        ("head_token_relevance", (*GRID, "query"), head_token_relevance,
         "Relevance that the head takes from the token", units,
         f"Σ_i A_ij v_j · g_i; {convention}"),
    )  # fmt: skip
    results.add_means(
        ("head_relevance", GRID, scores, "Relevance that passes through the head", units,
         f"Σ z · g over positions; {convention}"),
        ("component_relevance", ("component",), samples, "What the score consists of", units,
         f"sums to the score; missing: {amount(gaps)} at most; {convention}"),
    )  # fmt: skip
    verdict = _relevance_heads.add_ablation(
        results, capture, model, encoded, scores, "LRP", exhaustive=exhaustive, seed=seed
    )
    note = (
        f"Heads of most relevance: {_relevance_heads.largest(scores)}. Of the score, tokens and "
        f"biases miss {amount(gaps)} at most."
    )
    coords = {
        "component": list(COMPONENTS),
        **_relevance_heads.token_coords(model, targets[prompt]),
    }
    return results.dataset(coords, verdict, note, prompt=prompt, conservation_gap=gaps)


def by_token(trace: LinearTrace) -> Array:
    """Split what passes through every head over the tokens whose values it reads."""
    rows = np.full((trace.model.layers, trace.model.heads, len(trace.target.ids)), np.nan)
    for number, layer in trace.graded_layers.items():
        assert layer.dz is not None
        call = layer.call
        drawn = push(layer.dz.float(), call.query, call.key, layer.spec)
        value = call.value.repeat_interleave(drawn.shape[1] // call.value.shape[1], 1)
        rows[number] = (drawn.double() * value.double()).sum(-1)[0].cpu().numpy()
    return rows
