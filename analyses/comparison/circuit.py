"""Circuits: sets of heads and edges as values, with their scores and where they came from."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.ablation import Array
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._interventions.metrics import METRICS, UNITS
from headscope.analyses._runtime.options import OneOf
from headscope.analyses._runtime.results import label, parse_head, top
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.storage.dataset_file import write_text

FORMAT = "headscope-circuit-2"
# Before circuits had edges.
WITHOUT_EDGES = "headscope-circuit-1"
# What of a result says where its scores come from.
KEPT = (
    "model", "revision", "dtype", "task", "prompts_sha256", "n_prompts", "seed", "headscope",
    "analysis", "options", "edges",
)  # fmt: skip

HEAD = re.compile(r"L\d+H\d+")
EDGE = re.compile(
    r"(?P<source>embedding|L\d+H\d+|L\d+\.mlp)->"
    r"((?P<head>L\d+H\d+)\.(?P<input>[qkv])|(?P<other>L\d+\.mlp|logits))"
)


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of heads of one model, or of edges, with the scores that chose them.

    Attributes
    ----------
    heads
        The heads, best first, as (layer, head) pairs.
    scores
        Score of every head of the model, dims layer, head; NaN where there is none.
    provenance
        Where the scores come from, as JSON: model, task, prompts, score, rule.
    samples
        The scores prompt by prompt (prompt, layer, head), or None; with them overlaps of circuits
        have intervals over prompts.
    edges
        Signed score of every edge, by its name, such as ``L0H1->L2H0.q`` or ``embedding->L0.mlp``;
        none where the circuit was found head by head. The heads are then those that edges connect.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(((0, 1),), np.array([[0.1, 0.9]]), edges={"L0H1->logits": -0.9})
    >>> circuit.labels, circuit.nodes
    (['L0H1'], ['L0H1', 'logits'])
    """

    heads: tuple[Head, ...]
    scores: Array
    provenance: Mapping[str, Any] = field(default_factory=dict)
    samples: Array | None = None
    edges: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.heads and not self.edges:
            raise InvalidInput("heads: a circuit has one or more, or edges")
        if len(set(self.heads)) < len(self.heads):
            raise InvalidInput("heads: one is named twice")
        if self.scores.ndim != 2:
            raise InvalidInput(f"scores: {self.scores.ndim} dims; give (layer, head)")
        for layer, head in self.heads:
            inside = 0 <= layer < self.scores.shape[0] and 0 <= head < self.scores.shape[1]
            if not inside or np.isnan(self.scores[layer, head]):
                raise InvalidInput(f"heads: L{layer}H{head} has no score")
        if self.samples is not None and self.samples.shape[1:] != self.scores.shape:
            raise InvalidInput(
                f"samples: shape {self.samples.shape}; give (prompt, layer, head) of the scores' "
                f"{self.scores.shape}"
            )
        ends = {node for source, target, _ in self.ends for node in (source, target)}
        connected = {node for node in ends if HEAD.fullmatch(node)}
        if self.edges and connected != set(self.labels):
            raise InvalidInput("heads: give those that the edges connect, and no other")

    @property
    def labels(self) -> list[str]:
        """Names of the heads."""
        return [label(head) for head in self.heads]

    @property
    def ends(self) -> list[tuple[str, str, str]]:
        """Source, target and input (q, k, v or empty) of every edge."""
        edges = []
        for name in self.edges:
            parts = EDGE.fullmatch(name)
            if parts is None:
                raise InvalidInput(f"edges: {name!r} is no edge; write 'L0H1->L2H0.q'")
            target = parts["head"] or parts["other"]
            edges.append((parts["source"], target, parts["input"] or ""))
        return edges

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes: the heads, and what else edges connect."""
        others = (node for source, target, _ in self.ends for node in (source, target))
        return list(dict.fromkeys([*self.labels, *others]))


def from_result(result: xr.Dataset, variable: str, count: int) -> Circuit:
    """Make a circuit of the heads, or of the edges, with the highest scores of a result.

    Parameters
    ----------
    result
        Result of an analysis, or `removed`.
    variable
        Name of a score with the dims layer, head, or prompt, layer, head; or with the dim edge, as
        in ``circuit_score`` of `edge_circuits`, whose absolute values count.
    count
        Number of heads, or of edges.

    Examples
    --------
    >>> import xarray as xr
    >>> scores = xr.Dataset({"score": (("layer", "head"), [[0.1, 0.9], [0.5, 0.2]])})
    >>> from_result(scores, "score", 2).labels
    ['L0H1', 'L1H0']
    """
    if variable not in result.data_vars:
        raise InvalidInput(f"variable: no {variable!r}; there are {', '.join(map(str, result))}")
    array = result[variable]
    if array.dims == ("edge",):
        return _from_edges(result, array, count)
    if set(array.dims) - {"prompt"} != {"layer", "head"}:
        raise InvalidInput(f"variable: {variable} has the dims {array.dims}; give a score of heads")
    samples = None
    if "prompt" in array.dims:
        samples = array.transpose("prompt", "layer", "head").values.astype(np.float64)
        array = array.mean("prompt")
    scores = array.transpose("layer", "head").values.astype(np.float64)
    measured = int((~np.isnan(scores)).sum())
    if not 1 <= count <= measured:
        raise InvalidInput(f"count: {count}; {measured} heads have a score")
    rule = f"the {count} highest scores"
    return Circuit(tuple(top(scores, count)), scores, _provenance(result, variable, rule), samples)


def _from_edges(result: xr.Dataset, array: xr.DataArray, count: int) -> Circuit:
    measured = np.flatnonzero(np.isfinite(array.values))
    if not 1 <= count <= len(measured):
        raise InvalidInput(f"count: {count}; {len(measured)} edges have a score")
    order = measured[np.argsort(-np.abs(array.values[measured]), kind="stable")][:count]
    columns = [array[name].values[order] for name in ("source", "target", "input")]
    edges: dict[str, float] = {}
    scores = np.zeros((result.sizes["layer"], result.sizes["head"]))
    for source, target, into, score in zip(*columns, array.values[order], strict=True):
        edges[f"{source}->{target}{'.' if into else ''}{into}"] = float(score)
        for node in {str(source), str(target)}:
            if HEAD.fullmatch(node):
                scores[parse_head(node)] += abs(float(score))
    heads = tuple(top(scores, int((scores > 0).sum())))
    rule = f"the {count} edges of the highest absolute scores; of a head, the sum of its edges"
    provenance = _provenance(result, str(array.name), rule)
    return Circuit(heads, scores, provenance, edges=edges)


def _provenance(result: xr.Dataset, variable: str, rule: str) -> dict[str, Any]:
    meaning = result[variable].attrs
    return {
        **{name: result.attrs[name] for name in KEPT if name in result.attrs},
        "variable": variable,
        "rule": rule,
        **{name: meaning[name] for name in ("long_name", "units", "convention") if name in meaning},
    }


def find(model: Model, task: Task, count: int, *, metric: str = "task", seed: int = 0) -> Circuit:
    """Find the ``count`` heads that a task loses most without, one at a time, as in `removed`."""
    return from_result(removed(model, task, metric=metric, seed=seed), "lost", count)


def removed(model: Model, task: Task, *, metric: str = "task", seed: int = 0) -> xr.Dataset:
    """Measure what a task loses without each head, prompt by prompt.

    Parameters
    ----------
    model, task
        The model, and the task whose metric is followed.
    metric
        ``task`` (its own), ``logit_difference``, ``probability_difference``, ``log_probability`` or
        ``accuracy``.
    seed
        Kept as provenance, for the bootstrap of whoever averages the prompts.

    Returns
    -------
    Dataset with ``lost`` (prompt, layer, head): intact − with the head's output set to zero.

    Examples
    --------
    >>> from headscope.probes import load_model, tasks
    >>> model = load_model("headscope/bundled")
    >>> removed(model, tasks.make("ioi", model.tokenizer, n=2))["lost"].shape
    (2, 4, 8)
    """
    OneOf(METRICS).check("metric", metric)
    name = task.metric if metric == "task" else metric
    encoded = ablation.encode_task(model, task)
    clean = ablation.evaluate(model, encoded, (), name)
    lost = clean[:, None, None] - ablation.ablate_each_head(model, encoded, name)
    meaning = {
        "long_name": f"Lost on {task.name} without the head (set to zero)", "units": UNITS[name],
        "scale": "diverging", "evidence": "causal",
        "convention": f"intact − ablated; {name.replace('_', ' ')} of {task.name}",
    }  # fmt: skip
    return xr.Dataset(
        {"lost": (("prompt", "layer", "head"), lost, meaning)},
        coords={"layer": np.arange(model.layers), "head": np.arange(model.heads)},
        attrs={
            "model": model.name, "revision": model.revision, "dtype": str(model.dtype),
            "task": task.name, "prompts_sha256": read(model, task).digest(),
            "n_prompts": len(task), "seed": seed, "headscope": version("headscope"),
        },
    )  # fmt: skip


def save(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write a circuit as JSON, whole or not at all.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Circuit(((0, 1),), np.array([[0.1, 0.9]])), f"{folder}/circuit.json")
    ...     load(f"{folder}/circuit.json").heads
    ((0, 1),)
    """
    write_text(path, to_json(circuit))


def to_json(circuit: Circuit) -> str:
    """Return what `save` writes."""
    record = {
        "format": FORMAT,
        "heads": [list(head) for head in circuit.heads],
        "labels": circuit.labels,
        "edges": dict(circuit.edges),
        "provenance": dict(circuit.provenance),
        "scores": _plain(circuit.scores),
        "samples": None if circuit.samples is None else _plain(circuit.samples),
    }
    return json.dumps(record, indent=1) + "\n"


def load(path: str | os.PathLike[str]) -> Circuit:
    """Read a circuit that `save` has written."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["format"] not in (FORMAT, WITHOUT_EDGES):
            raise InvalidInput(f"path: {path} holds no circuit of this version of headscope")
        heads = tuple((int(layer), int(head)) for layer, head in record["heads"])
        scores, samples = np.asarray(record["scores"], np.float64), record["samples"]
        samples = None if samples is None else np.asarray(samples, np.float64)
        edges = {} if record["format"] == WITHOUT_EDGES else record["edges"]
        return Circuit(heads, scores, record["provenance"], samples, edges)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, HeadscopeError):
            raise
        raise InvalidInput(f"path: {path} is no circuit that can be read ({error})") from error


def _plain(values: Array) -> Any:
    """List numbers as JSON knows them, which has no NaN."""
    listed = values.astype(object)
    listed[np.isnan(values)] = None
    return listed.tolist()
