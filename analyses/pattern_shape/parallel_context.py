"""Parallel context: entropy and loss when blocks of the context cannot attend to each other.

The context of each prompt is cut into blocks that are encoded in parallel: a block sees itself
alone, and only the end of the prompt, the question, sees everything. Every block then begins like a
text of its own, with a sink of its own, and the question spreads its attention over all of them:
its entropy rises, and so does the loss of the model. A shared prefix that every block sees gives
one sink to all and takes the rise back. Positions stay as they are in the text, or start anew in
each block (``restart``), as in the paper: then the blocks are encoded as texts of their own, all
after the prefix where there is one, and the question stands after the longest. The sinks are what
is compared, so entropy is that of whole rows: without the first token it would lose the one sink of
the whole text, and one of several of the blocks.

Source: Zhang et al., Attention Entropy is a Key Factor.
"""

from typing import Annotated

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions.next_token_loss import observed, predicts, tokens
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, Results, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.analyses._stats.length_trend import Array, mean
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.interventions.block_mask import Blocks
from headscope.probes.models.model import Model

NEEDS = ()
QUICK = {"blocks": 3, "prompts": 2}
SUPPORTS = {"hybrid"}

SOURCE = "Attention Entropy is a Key Factor (Zhang et al.)"
CONDITIONS = ("whole context", "parallel blocks", "parallel blocks, shared prefix")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    blocks: Annotated[int, AtLeast(2)] = 4,
    prefix: Annotated[int, AtLeast(1)] = 1,
    question: Annotated[float, Between(0.05, 0.9)] = 0.25,
    restart: bool = False,
    prompts: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the question's entropy and loss with the context whole, in blocks, and with a prefix.

    Parameters
    ----------
    capture, model
        Capture of the prompts, whose tokens are run again, whole and in blocks, and the
        causal model behind it.
    blocks
        Number of blocks that the context is cut into.
    prefix
        Tokens at the start that every block sees in the third condition.
    question
        Share of the prompt, at its end, that sees everything and whose rows count.
    restart
        Let positions start anew in each block; else they stay as in the text.
    prompts
        Prompts that are run again, from the first on.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``entropy_rise`` (layer, head; parallel blocks minus whole context, nats),
    ``prefix_effect`` (layer, head; with the shared prefix minus without, nats),
    ``question_entropy`` (condition; mean over heads, nats) and ``question_loss`` (condition; nats
    a token, the causal number), each with 95 % intervals over prompts.
    """
    require(capture, NEEDS, "parallel_context", ("self",))
    if not predicts(capture):
        raise NotApplicable("model: blocks before a question need causal order in every layer")
    if restart and "alibi_slope" in capture.coords:
        raise NotApplicable("restart: distances of ALiBi are those of the text; leave it out")

    ids = tokens(capture)[:prompts]
    entropy, loss = _measured(model, ids, blocks, prefix, question, restart)
    spread = mean(entropy.reshape(*entropy.shape[:2], -1))
    rise, effect = entropy[:, 1] - entropy[:, 0], entropy[:, 2] - entropy[:, 1]
    convention = (
        f"{blocks} blocks, prefix of {prefix} token(s); rows of the last {percent(question)} of "
        f"{len(ids)} prompts; positions {'anew in each block' if restart else 'as in the text'}"
    )
    results = Results(capture, seed=seed, source=SOURCE)
    results.add_means(
        ("entropy_rise", GRID, rise, "Entropy that parallel blocks add", ("nats", "diverging"),
         f"blocks − whole; {convention}"),
        ("prefix_effect", GRID, effect, "Entropy that a shared prefix adds", ("nats", "diverging"),
         f"with − without prefix; {convention}"),
        ("question_entropy", ("condition",), spread, "Entropy of the question's rows",
         ("nats", "sequential", 0), f"mean over heads; {convention}"),
    )  # fmt: skip
    results.add_mean(
        "question_loss", ("condition",), loss, "Loss on the question", "nats", "sequential", 0,
        convention=f"−log p of its tokens; {convention}", evidence="causal",
    )  # fmt: skip
    verdict = _verdict(spread, loss)
    return results.dataset({"condition": list(CONDITIONS)}, verdict, convention=convention)


def _measured(
    model: Model, ids: list[list[int]], blocks: int, prefix: int, question: float, restart: bool
) -> tuple[Array, Array]:
    """Return entropy (prompt, condition, layer, head) and loss (prompt, condition)."""
    entropies, costs = [], []
    for number, prompt in enumerate(ids):
        start = len(prompt) - max(1, round(question * len(prompt)))
        members = _members(len(prompt), start, blocks, prefix, number)
        passes = [observed(model, prompt, (), ("entropy",))]
        for shared in (False, True):
            edit = _edit(model, members, blocks, shared)
            positions = _positions(members, shared) if restart else None
            passes.append(observed(model, prompt, (edit,), ("entropy",), positions))
        entropies.append([mean(stats["entropy"][..., start:]) for _, stats in passes])
        costs.append([float(loss[start - 1 :].mean()) for loss, _ in passes])
    return np.array(entropies), np.array(costs)


def _members(length: int, start: int, blocks: int, prefix: int, number: int) -> tuple[int, ...]:
    """Return the block of every position: 0 the prefix, 1 … blocks the context, last the question.

    >>> _members(8, 7, 2, 1, 0)
    (0, 1, 1, 1, 2, 2, 2, 3)
    """
    if start - prefix < 2 * blocks:
        raise NotApplicable(
            f"blocks: prompt {number + 1} has {max(start - prefix, 0)} tokens between prefix and "
            f"question; give {2 * blocks} or more, or fewer blocks"
        )
    edges = np.linspace(prefix, start, blocks + 1).round()
    context = np.searchsorted(edges, np.arange(prefix, start), side="right")
    members = [*np.zeros(prefix, int), *context, *np.full(length - start, blocks + 1)]
    return tuple(map(int, members))


def _positions(members: tuple[int, ...], shared: bool) -> list[int]:
    """Return the position of every token in its block; the question follows the longest.

    A shared prefix stands before every block, else before the first alone.

    >>> _positions((0, 1, 1, 1, 2, 2, 3, 3), True), _positions((0, 1, 1, 1, 2, 2, 3, 3), False)
    ([0, 1, 2, 3, 1, 2, 4, 5], [0, 1, 2, 3, 0, 1, 4, 5])
    """
    last, prefix = max(members), members.count(0)
    ends = {block: prefix if shared or block < 2 else 0 for block in range(last)} | {0: 0}
    positions = []
    for block in members:
        start = ends.get(block, max(ends.values()))
        positions.append(start)
        ends[block] = start + 1
    return positions


def _edit(model: Model, members: tuple[int, ...], blocks: int, shared: bool) -> Blocks:
    sees = torch.eye(blocks + 2, dtype=torch.bool)
    sees[-1] = True
    # Without a shared prefix it is the start of the first block, as of any text.
    sees[1:, 0] = True
    if not shared:
        sees[2:-1, 0] = False
    return Blocks(members, sees.expand(model.layers, model.heads, -1, -1))


def _verdict(spread: Array, cost: Array) -> Verdict:
    """Conclude whether entropy and loss rise together, prompt by prompt."""
    entropy, loss = spread.mean(0), cost.mean(0)
    text = (
        f"entropy of the question is {amount(entropy[0])} nats with the whole context, "
        f"{amount(entropy[1] - entropy[0], '+')} in parallel blocks, "
        f"{amount(entropy[2] - entropy[0], '+')} with a shared prefix; loss {amount(loss[0])} "
        f"nats, {amount(loss[1] - loss[0], '+')} and {amount(loss[2] - loss[0], '+')}"
    )
    rises = np.stack([values[:, 1] - values[:, 0] for values in (spread, cost)], axis=1)
    raised = exceeds_zero(rises)
    if len(rises) >= LEAST_PROMPTS and not raised.any():
        return Verdict("not_supported", f"Parallel blocks raise neither: {text}.")
    alone = "entropy" if raised[0] else "loss"
    remark = f"; blocks raise the {alone} alone, so entropy does not predict what the model loses"
    return causal_verdict(rises, text, remark)
