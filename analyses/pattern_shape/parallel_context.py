"""Parallel context: what becomes of entropy and loss when blocks of context do not see each other.

The context of each prompt is cut into blocks that are encoded side by side: a block sees itself
alone, and only the end of the prompt, the question, sees everything. Every block then begins like a
text of its own, with a sink of its own, and the question spreads its attention over all of them:
its entropy rises, and so does the loss of the model. A shared prefix that every block sees gives
one sink to all and takes the rise back. Positions stay as they are in the text.

Source: Zhang et al., Attention Entropy is a Key Factor (there positions start anew in each block).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import observed, predicts, tokens
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, require
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses._stats.length_trend import mean
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.interventions.block_mask import Blocks
    from headscope.probes.models.model import Model

NEEDS = ()

SOURCE = "Attention Entropy is a Key Factor (Zhang et al.)"
CONDITIONS = ("whole context", "parallel blocks", "parallel blocks, shared prefix")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    blocks: int = 4,
    prefix: int = 1,
    question: float = 0.25,
    prompts: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compare the question's entropy and loss with the context whole, in blocks, and with a prefix.

    Parameters
    ----------
    capture
        Capture of the prompts; their tokens are run again, whole and in blocks.
    model
        Model that was captured.
    blocks
        Number of blocks that the context is cut into.
    prefix
        Tokens at the start that every block sees in the third condition.
    question
        Share of the prompt, at its end, that sees everything and whose rows count.
    prompts
        Prompts that are run again, from the first on.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) prompts.

    Returns
    -------
    Dataset with ``entropy_rise`` (layer, head; parallel blocks minus whole context, nats),
    ``prefix_effect`` (layer, head; with the shared prefix minus without, nats),
    ``question_entropy`` (condition; mean over heads, nats) and ``question_loss`` (condition; nats
    a token, the causal number), each with 95 % intervals over prompts.

    Raises
    ------
    NotApplicable
        When the model is not causal, a prompt is too short for the blocks, or an option is out of
        range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(40)), list(range(2, 42))]
    >>> execute("parallel_context", model, given)["question_loss"].sizes["condition"]
    3
    """
    options.at_least("blocks", blocks, 2)
    options.at_least("prefix", prefix, 1)
    options.between("question", question, 0.05, 0.9)
    options.at_least("prompts", prompts, 1)
    require(capture, NEEDS, "parallel_context")
    options.one_text(capture.attrs.get("attention", "self"), "parallel_context")
    if not predicts(capture):
        raise NotApplicable("model: blocks before a question need causal order in every layer")

    ids = tokens(capture)[:prompts]
    entropies, nats = [], []
    for number, one in enumerate(ids):
        start = len(one) - max(1, round(question * len(one)))
        members = _members(len(one), start, blocks, prefix, number)
        rows, costs = [], []
        for edits in ((), *((_edit(model, members, blocks, each),) for each in (False, True))):
            loss, seen = observed(model, one, edits, ("entropy",))
            rows.append(mean(seen["entropy"][..., start:]))
            costs.append(float(loss[start - 1 :].mean()))
        entropies.append(rows)
        nats.append(costs)
        if progress is not None:
            progress(number + 1, len(ids))
    found, paid = np.stack(entropies), np.array(nats)
    spread = mean(found.reshape(*found.shape[:2], -1))

    convention = (
        f"{blocks} blocks, prefix of {prefix} token(s); rows of the last {question:.0%} of "
        f"{len(ids)} prompts; positions as in the text"
    )
    rise, back = found[:, 1] - found[:, 0], found[:, 2] - found[:, 1]
    variables = {
        **averaged(
            "entropy_rise", ("layer", "head"), rise, "Entropy that parallel blocks add", "nats",
            "diverging", seed=seed, convention=f"blocks − whole; {convention}", source=SOURCE,
        ),
        **averaged(
            "prefix_effect", ("layer", "head"), back, "Entropy that a shared prefix adds", "nats",
            "diverging", seed=seed, convention=f"with − without prefix; {convention}",
            source=SOURCE,
        ),
        **averaged(
            "question_entropy", ("condition",), spread,
            "Entropy of the question's rows", "nats", "sequential", 0, seed=seed,
            convention=f"mean over heads; {convention}", source=SOURCE,
        ),
        **averaged(
            "question_loss", ("condition",), paid, "Loss on the question", "nats", "sequential", 0,
            seed=seed, convention=f"−log p of its tokens; {convention}", source=SOURCE,
            evidence="causal",
        ),
    }  # fmt: skip
    return dataset(
        capture,
        variables,
        {"condition": list(CONDITIONS)},
        convention=convention,
        note=_note(spread, paid, seed),
    )


def _members(length: int, start: int, blocks: int, prefix: int, number: int) -> tuple[int, ...]:
    """Give every position its block: 0 the prefix, 1 … blocks the context, the last the question.

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
    return tuple(int(one) for one in members)


def _edit(model: Model, members: tuple[int, ...], blocks: int, shared: bool) -> Blocks:
    import torch

    from headscope.probes.interventions.block_mask import Blocks

    seen = torch.eye(blocks + 2, dtype=torch.bool)
    seen[-1] = True
    # Without a shared prefix it is the start of the first block, as of any text.
    seen[1:, 0] = True
    if not shared:
        seen[2:-1, 0] = False
    return Blocks(members, seen.expand(model.layers, model.heads, -1, -1))


def _note(spread: NDArray[np.float64], paid: NDArray[np.float64], seed: int) -> str:
    """Say whether entropy and loss rise together, prompt by prompt."""
    entropy, loss = spread.mean(0), paid.mean(0)
    told = (
        f"Entropy of the question: {entropy[0]:.3f} nats with the whole context, {entropy[1]:.3f} "
        f"in parallel blocks, {entropy[2]:.3f} with a shared prefix; loss {loss[0]:.2f}, "
        f"{loss[1]:.2f} and {loss[2]:.2f} nats. "
    )
    if len(spread) < 2:
        return told + "INCONCLUSIVE: one prompt has no interval."
    rises, costs = (
        float(bootstrap(each[:, 1] - each[:, 0], seed=seed)[1]) > 0 for each in (spread, paid)
    )
    if rises and costs:
        return told + "Parallel blocks raise both, as in the paper."
    if not rises and not costs:
        return told + "Parallel blocks raise neither."
    return told + (
        f"DISAGREEMENT: blocks raise the {'entropy' if rises else 'loss'} alone, so here entropy "
        "does not tell what the model loses."
    )
