"""Linked pairs: queries whose right key is known, and every head's weight between the two."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.results import attending
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import logits
from headscope.probes.capturing import targets
from headscope.probes.interventions import KnockOut
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import Prompts

# The right key of a query is found among so many at most: all of a short prompt.
CANDIDATES = 256
RELATIONS = ("evidence", "duplicate")


@dataclass(frozen=True)
class Link:
    """A query, the keys that it might be linked to, and which of them it is.

    ``candidates`` are positions of keys, in order; ``right`` tells which are linked (candidate,).
    """

    prompt: int
    query: int
    candidates: NDArray[np.int64]
    right: NDArray[np.bool_]


def find(prompts: Prompts, relation: str, most: int, *, both_ways: bool, seed: int) -> list[Link]:
    """Find the links of every prompt, ``most`` of each, evenly over it.

    ``evidence`` goes from where a task asks to the tokens that hold the answer, ``duplicate`` from
    a token to its earlier copies. With ``both_ways`` later keys are candidates, too; ``seed`` draws
    candidates where a prompt has more than 256 tokens.
    """
    rng = np.random.default_rng(seed)
    encoded = prompts.encoded
    questions: Sequence[Any] = encoded.questions if encoded else [()] * len(prompts.ids)
    links: list[Link] = []
    for prompt, (ids, prompt_questions) in enumerate(zip(prompts.ids, questions, strict=True)):
        linked = {}
        for query, named in enumerate(targets.find(relation, ids, prompt_questions)):
            if right := [key for key in named if _is_candidate(query, key, both_ways)]:
                linked[query] = right
        picked = np.linspace(0, len(linked) - 1, min(most, len(linked))).round().astype(int)
        for query in (list(linked)[at] for at in picked):
            right = linked[query]
            visible = [key for key in range(len(ids)) if _is_candidate(query, key, both_ways)]
            others = [key for key in visible if key not in right]
            if len(right) + len(others) > CANDIDATES:
                others = rng.choice(others, CANDIDATES - len(right), replace=False).tolist()
            keys = np.asarray(sorted([*right, *others]), dtype=np.int64)
            if others:
                links.append(Link(prompt, query, keys, np.isin(keys, right)))
    if not links:
        raise NotApplicable(
            f"relation: no prompt has a link of the kind {relation!r}; choose another, or a task "
            "whose questions name their evidence"
        )
    return links


def _is_candidate(query: int, key: int, both_ways: bool) -> bool:
    return key != query if both_ways else key < query


def weights(capture: xr.Dataset, links: Sequence[Link], *, both_ways: bool) -> list[Array]:
    """Return the weights between query and candidates (candidate, direction, layer, head).

    Direction 0 is from the query to the candidate; with ``both_ways`` 1 is from the candidate to
    the query. Exact, from kept ``q``, ``k`` and ``lse``; memory grows with the links times 256, not
    with the square of the prompt. NaN in layers without an attention map.
    """
    shape = (2 if both_ways else 1, capture.sizes["layer"], capture.sizes["head"])
    between = [np.full((len(link.candidates), *shape), np.nan) for link in links]
    for prompt in sorted({link.prompt for link in links}):
        own = [at for at, link in enumerate(links) if link.prompt == prompt]
        queries = np.unique([links[at].query for at in own])
        every = np.unique(np.concatenate([links[at].candidates for at in own]))
        for layer in np.flatnonzero(attending(capture)):
            forth = qk_rows.rows(capture, prompt, int(layer), queries).weights()
            back = _columns(capture, prompt, int(layer), every, queries) if both_ways else None
            for at in own:
                link = links[at]
                query = int(np.searchsorted(queries, link.query))
                between[at][:, 0, layer] = forth[:, query, link.candidates].T
                if back is not None:
                    rows = np.searchsorted(every, link.candidates)
                    between[at][:, 1, layer] = back[:, rows, query].T
    return between


def _columns(
    capture: xr.Dataset,
    prompt: int,
    layer: int,
    positions: NDArray[np.int64],
    keys: NDArray[np.int64],
) -> Array:
    """Return the weights of some queries on some keys alone (head, query, key)."""
    rows = qk_rows.rows(capture, prompt, layer, positions)
    narrow = replace(
        rows,
        keys=rows.keys[:, keys],
        visible=rows.visible[:, keys],
        bias=rows.bias[..., keys] if rows.bias.shape[-1] > 1 else rows.bias,
    )
    return narrow.weights()


def cut(
    model: Model,
    ids: Sequence[Sequence[int]],
    links: Sequence[Link],
    groups: Sequence[Sequence[tuple[int, int]]],
    *,
    both_ways: bool,
) -> Array:
    """Return how far the output at the query moves when a link is cut (link, group), in nats.

    The weight from the query to its right keys, and back with ``both_ways``, is hidden in one group
    of heads after the other. Kullback-Leibler divergence from the clean distribution.
    """
    moved = []
    for link in links:
        prompt = torch.tensor([list(ids[link.prompt])])
        keys, query = tuple(link.candidates[link.right].tolist()), (link.query,)
        edits: list[list[KnockOut]] = [[]]
        for group in groups:
            hidden = [KnockOut(heads=tuple(group), keys=keys, queries=query)]
            if both_ways:
                hidden.append(KnockOut(heads=tuple(group), keys=query, queries=keys))
            edits.append(hidden)
        with torch.no_grad():
            clean, *without = (
                logits(model, prompt, edit)[0, link.query].double().log_softmax(-1)
                for edit in edits
            )
        moved.append([float((clean.exp() * (clean - other)).sum()) for other in without])
    return np.asarray(moved)
