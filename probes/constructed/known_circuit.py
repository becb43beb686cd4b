"""A circuit that is known: a model, a task, and the heads and edges that do it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from headscope.probes import constructed
from headscope.probes.prompts import tasks

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

EMBEDDING, LOGITS = "embedding", "logits"


class Edge(NamedTuple):
    """An edge from one node to an input of another.

    Attributes
    ----------
    source, target
        Nodes: ``embedding``, heads such as ``L0H1``, ``L0.mlp``, and as target ``logits``.
    input
        Of a head, which of its inputs reads: ``q``, ``k`` or ``v``; else "".
    """

    source: str
    target: str
    input: str = ""


@dataclass(frozen=True)
class KnownCircuit:
    """A model with a task and its true circuit.

    The circuit is what the corrupted prompts of the task bring out: the heads and edges whose value
    on the corrupted prompt, put in place of their own, changes the metric.

    Parameters
    ----------
    model, task
        The model and prompts of its task.
    heads
        The true heads, (layer, head).
    edges
        The true edges, those from the embeddings, through MLPs and into the logits among them.
    """

    model: Model
    task: Task
    heads: tuple[tuple[int, int], ...]
    edges: tuple[Edge, ...]


def edges(sources: Iterable[str] | str, targets: Iterable[str] | str, inputs: str) -> list[Edge]:
    """Return the edges from each source to each target, through each input.

    >>> edges("embedding", ("L0H0", "L0H1"), "v")[1]
    Edge(source='embedding', target='L0H1', input='v')
    """
    starts, ends = (
        [nodes] if isinstance(nodes, str) else list(nodes) for nodes in (sources, targets)
    )
    return [
        Edge(source, target, name)
        for source in starts
        for target in ends
        for name in (inputs or [""])
    ]


def load(name: str, n: int = 32, seed: int = 0) -> KnownCircuit:
    """Load a constructed model with prompts of its task and its true heads and edges.

    Parameters
    ----------
    name
        One of `headscope.probes.constructed.names`.
    n, seed
        Number of prompts, and the seed of their draw.

    Examples
    --------
    >>> circuit = load("headscope/constructed-induction", n=2)
    >>> circuit.heads[0], circuit.edges[0]
    ((0, 0), Edge(source='embedding', target='L0H0', input='v'))
    """
    from headscope.probes.models.loading import load_model

    definition, model = constructed.module(name), load_model(name)
    task = tasks.make(definition.TASK, model.tokenizer, n, seed, **definition.OPTIONS)
    return KnownCircuit(
        model, replace(task, metric=definition.METRIC), definition.HEADS, definition.EDGES
    )


def linked_heads(name: str, task: str) -> frozenset[tuple[str, str]] | None:
    """Return which heads of a constructed model read which on its task; None of other models.

    >>> ("L0H0", "L1H0") in linked_heads("headscope/constructed-induction", "induction")
    True
    """
    if name not in constructed.names() or task != constructed.module(name).TASK:
        return None
    true = constructed.module(name).EDGES
    return frozenset((edge.source, edge.target) for edge in true if _are_heads(edge))


def _are_heads(edge: Edge) -> bool:
    return "H" in edge.source and "H" in edge.target
