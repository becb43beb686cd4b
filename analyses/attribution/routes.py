"""Information flow routes: the heads and tokens through which information reaches the answer.

From one forward pass, top down: each sum is divided among what heads write from every key, what the
MLP writes and the stream itself, by how much nearer they bring it, in L1 distance. Shares up to a
threshold are dropped, the rest renormalised, and the importance of the answer's position is
propagated along them. Over prompts this says how much each head is used; the loss without the head
is reported beside it.

Source: Ferrando & Voita, Information Flow Routes (2403.00824).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._relevance import _routes
from headscope.analyses._relevance.routes import THRESHOLD
from headscope.analyses._relevance.target import of_task
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    Results,
    label,
    require,
    require_maps,
    top,
)
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.analyses.attribution._relevance_heads import mean_ablation
from headscope.kernels.errors import InvalidInput
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 16
SUPPORTS: set[str] = set()

# With no threshold every pair of tokens is an edge of every head.
LEAST = 1e-3
SOURCE = "Ferrando & Voita 2403.00824"
# What an edge goes through, besides heads.
WAYS = {_routes.RESIDUAL: "residual stream", _routes.MLP: "MLP"}


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    threshold: Annotated[float, Between(LEAST, 0.5)] = THRESHOLD,
    prompt: Annotated[int, AtLeast(0)] = 0,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Trace the answers of a task back to the tokens, through the heads that carried them.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose last questions are traced, with the kept ``z``, whose means take
        the heads' place in the ablation.
    threshold
        Share of a sum that a part must exceed to stay in the graph. At most 1 / threshold parts of
        a sum stay, so edges grow with the text and not with its square.
    prompt
        Prompt whose graph is shown.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that are used most or that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``route`` (edge; importance, of the shown prompt, with the ends of each edge, and
    what it goes through in ``way`` and ``edge_head``: −1 the residual stream, −2 the MLP),
    ``token_importance`` (query; share, of the shown prompt), ``head_usage`` (layer, head;
    importance that goes through the head), ``head_used`` (layer, head; share of prompts in whose
    graph the head is), ``mlp_usage``, ``residual_usage`` and ``bias_share`` (layer; importance that
    goes through the MLP, past the attention, and ends in its biases) and ``usage_vs_ablation``
    (Spearman rank correlation over heads with the drop under mean ablation), with 95 % intervals
    over prompts.

    Models whose heads do not write straight into the residual stream are refused: there, what they
    write is no part of a sum.
    """
    require_maps(capture, "routes")
    require(capture, KEEP, "routes")
    encoded = ablation.encode_task(model, task)
    targets = of_task(encoded)
    if prompt >= len(targets):
        raise InvalidInput(f"prompt: {prompt}, but the task has {len(targets)}; the first is 0")
    blocks = _routes.Blocks.of(model)
    routes = []
    for target in targets:
        streams = _routes.read(model, target.ids, blocks)
        routes.append(_routes.trace(streams, blocks, target.at, threshold))
    usage = np.stack([route.heads for route in routes])
    lost = mean_ablation(capture, model, encoded, usage, exhaustive=exhaustive, seed=seed)

    shown, text = routes[prompt], targets[prompt]
    over = (
        f"from the last question of {len(routes)} prompts of {task.name}, threshold {threshold:g}"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=over)
    importance = ("share of the importance", "sequential", 0, 1)
    results.add_all(
        ("route", ("edge",), [edge[-1] for edge in shown.edges], "Routes to the answer", importance,
         f"prompt {prompt}, the largest first; threshold {threshold:g}"),
        ("token_importance", ("query",), shown.tokens, "Importance that reaches the token", SHARE,
         f"prompt {prompt}; biases take what is missing to 1"),
    )  # fmt: skip
    results.add_means(
        ("head_usage", GRID, usage, "Importance through the head", importance),
        ("head_used", GRID, (usage > 0).astype(float), "Prompts that use the head",
         ("share of prompts", "sequential", 0, 1)),
        ("mlp_usage", ("layer",), np.stack([route.mlp for route in routes]),
         "Importance through the MLP", importance),
        ("residual_usage", ("layer",), np.stack([route.residual for route in routes]),
         "Importance past the attention", importance),
        ("bias_share", ("layer",), np.stack([route.bias for route in routes]),
         "Importance that ends in biases of the attention", importance,
         "from no token; the importance of all tokens and these sum to 1"),
    )  # fmt: skip
    results.add_mean(
        "usage_ablation", GRID, lost.values, f"{lost.metric.replace('_', ' ').capitalize()} lost",
        lost.units, "diverging", evidence="causal", convention=f"mean ablation, {lost.heads}",
    )  # fmt: skip
    ends = agreement(usage, lost.values, seed)
    results.add_interval(
        "usage_vs_ablation", (), ends, "Usage against mean ablation", "Spearman ρ", "diverging",
        -1, 1, convention=f"{OVER_HEADS}; ablation of {lost.heads}",
    )  # fmt: skip
    tokens = [f"{at} {token}" for at, token in enumerate(model.to_str_tokens(list(text.ids)))]
    heads = results["head_usage"].values
    return results.dataset(
        {**_ends(shown, tokens), "query": np.arange(len(tokens)), "token": ("query", tokens)},
        _verdict(ends, most_different(heads, results["usage_ablation"].values)),
        prompt=prompt,
        top_heads=[label(head) for head in top(heads, 5)],
    )


def _ends(shown: _routes.Routes, tokens: list[str]) -> dict[str, Any]:
    """Return the ends of every edge, and what it passes through."""
    layer, head, source, target = np.array([edge[:4] for edge in shown.edges]).reshape(-1, 4).T
    carriers = [
        WAYS.get(int(way), label((int(at), int(way)))) for at, way in zip(layer, head, strict=True)
    ]
    # Streams before a layer have its number; an MLP works in the middle of a block.
    return {
        "source_layer": ("edge", layer),
        "target_layer": ("edge", layer + 1),
        "source": ("edge", [tokens[at] for at in source]),
        "target": ("edge", [tokens[at] for at in target]),
        "source_position": ("edge", source),
        "target_position": ("edge", target),
        "way": ("edge", carriers),
        "edge_head": ("edge", head),
    }


def _verdict(ends: tuple[float, float, float], furthest: list[str]) -> Verdict:
    rho, lower, _ = ends
    differing = f"(Spearman ρ {amount(rho)}); they part most at {', '.join(furthest)}."
    return interval_verdict(
        lower,
        f"Heads that the routes use more cost more to ablate {differing}",
        f"Heads that the routes use more do not cost more to ablate {differing}",
        f"One prompt has no interval for the rank correlation {differing}",
    )
