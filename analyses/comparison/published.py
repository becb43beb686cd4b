"""Circuits and scores of papers, as data with their sources."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headscope.analyses._runtime.results import parse_head
from headscope.kernels.errors import InvalidInput
from headscope.probes.constructed.known_circuit import EMBEDDING, LOGITS, Edge

FILE = Path(__file__).with_name("published.json")
MLP = ".mlp"


@dataclass(frozen=True)
class PublishedCircuit:
    """A circuit that a paper names, and the numbers that papers give for it.

    Attributes
    ----------
    name, about
        Name of the record, and what it is of, one line.
    model, needs
        The model on the hub, and how to come by it where that is not enough.
    task, options, metric
        The task with its options, and the metric.
    sources, note
        Citations, and what to know of the lists.
    groups
        Role to nodes: heads such as ``L9H9``, ``L0.mlp``, ``embedding``, ``logits``.
    connections
        Role of the source, role of the target, and the inputs of the target that read it.
    published
        Numbers, each with ``row``, ``value`` and ``source``.
    """

    name: str
    about: str
    model: str
    task: str
    options: Mapping[str, Any]
    metric: str
    sources: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    connections: tuple[tuple[str, str, str], ...]
    published: tuple[Mapping[str, Any], ...] = ()
    needs: str = ""
    note: str = ""

    @cached_property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """Heads by role."""
        heads = {
            role: tuple(node for node in nodes if "H" in node)
            for role, nodes in self.groups.items()
        }
        return {role: members for role, members in heads.items() if members}

    @cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """All heads, as (layer, head)."""
        nodes = {node for heads in self.roles.values() for node in heads}
        return tuple(sorted(_indices(node)[:2] for node in nodes))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges: of each connection, from every source to every target that comes after it."""
        edges = {
            Edge(source, target, input_name)
            for sources, targets, inputs in self.connections
            for source in self.groups[sources]
            for target in self.groups[targets]
            if _order(source) < _order(target)
            for input_name in (inputs or [""])
        }
        return tuple(sorted(edges))


def names() -> list[str]:
    """Names of the records that ship with headscope."""
    return list(_records())


def scores(name: str) -> dict[str, Any]:
    """Return a record that is no circuit, as it is stored."""
    return dict(_records()[name])


def circuit(source: str | os.PathLike[str]) -> PublishedCircuit:
    """Return a circuit by the name of its record, or from a JSON file that holds one like it.

    Examples
    --------
    >>> len(circuit("ioi").heads), circuit("ioi").roles["name mover"][0]
    (26, 'L9H9')
    """
    name, record = os.fspath(source), _records().get(os.fspath(source))
    if record is None:
        name, record = Path(source).stem, _read(Path(source))
    try:
        groups = {role: tuple(nodes) for role, nodes in record["groups"].items()}
        connections = tuple((str(a), str(b), str(c)) for a, b, c in record["connections"])
        fields = {key: record[key] for key in ("about", "model", "task", "options", "metric")}
        result = PublishedCircuit(
            name, **fields, groups=groups, connections=connections,
            sources=tuple(record["sources"]), published=tuple(record.get("published", ())),
            needs=record.get("needs", ""), note=record.get("note", ""),
        )  # fmt: skip
        unknown = {end for ends in connections for end in ends[:2]} - groups.keys()
        if unknown:
            raise InvalidInput(f"connections: no group {min(unknown)!r}; name it in groups")
        for nodes in groups.values():
            for node in nodes:
                _order(node)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"circuit: {name} is no record of a circuit ({type(error).__name__}: {error}); "
            f"see headscope.analyses.comparison.published"
        ) from error
    return result


def _records() -> dict[str, Any]:
    return _read(FILE)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"circuit: {path.name} cannot be read; give one of the shipped names, or a JSON file"
        ) from error
    return dict(record)


def _indices(node: str) -> tuple[int, int]:
    """Return layer and head of a head, layer and -1 of an MLP."""
    if node.endswith(MLP):
        return int(node[1 : -len(MLP)]), -1
    return parse_head(node)


def _order(node: str) -> tuple[float, int]:
    """Return where a node stands: heads of a layer side by side, its MLP behind them."""
    if node in (EMBEDDING, LOGITS):
        return (-1.0, 0) if node == EMBEDDING else (float("inf"), 0)
    layer, head = _indices(node)
    return float(layer), int(head < 0)
