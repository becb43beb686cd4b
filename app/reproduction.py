"""Reproduced tables of papers: published numbers beside those of a local model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headscope.analyses._interventions import ablation, head_sets
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.analyses._runtime.results import label, parse_head
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses.comparison import published
from headscope.kernels.errors import InvalidInput
from headscope.probes import capture
from headscope.probes.prompts import tasks

if TYPE_CHECKING:
    from headscope.analyses._interventions.ablation import Array
    from headscope.analyses.comparison.published import PublishedCircuit
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NAMES = ("ioi", "greater_than", "docstring", "retrieval", "sinks")
SAE = "{} AUC, discrete SAE"


class Row(NamedTuple):
    """A number of a paper, and ours with its 95 % interval; NaN where there is none."""

    title: str
    published: float
    measured: float
    lower: float
    upper: float
    source: str = ""


def of_circuit(
    circuit: PublishedCircuit, model: Model, n: int = 64, seed: int = 0, sae_prompts: int = 250
) -> list[Row]:
    """Measure a published circuit on a model.

    Rows are the intact metric; that of the circuit alone, all other heads resampled from the
    corrupted prompt; that without the circuit, and without the heads of each role; and how well the
    discrete SAE ranks heads and edges of the circuit (ROC AUC of its mean scores). Published rows
    that are not measured here follow.
    """
    for layer, head in circuit.heads:
        if layer >= model.layers or head >= model.heads:
            raise InvalidInput(
                f"model: {model.name} has no L{layer}H{head}; {circuit.name} is a circuit of "
                f"{circuit.model}"
            )

    def draw(count: int) -> Task:
        drawn = tasks.make(circuit.task, model.tokenizer, count, seed, **circuit.options)
        return replace(drawn, metric=circuit.metric)

    encoded = ablation.encode_task(model, draw(n))
    others = ablation.kept_z(ablation.capture_corrupted(model, encoded))
    inside = head_sets.masks(model, [circuit.heads])
    roles = [[parse_head(name) for name in heads] for heads in circuit.roles.values()]
    attending = head_sets.every_head(model).any(0)
    sets = head_sets.masks(model, [(), (), circuit.heads, *roles])
    sets[1] = attending & ~inside[0]
    measures = [AnswerMetric(circuit.metric, encoded.questions)]
    values = ablation.ablate_sets(model, encoded, measures, sets, others)[0]
    titles = ["intact", "circuit alone", "without the circuit"]
    titles += [f"without {role}" for role in circuit.roles]
    measured = {title: _mean(values[:, number], seed) for number, title in enumerate(titles)}
    measured |= _sae_auc(circuit, model, draw(sae_prompts), seed)
    of_paper = {row["row"]: (float(row["value"]), str(row["source"])) for row in circuit.published}
    missing = (float("nan"),) * 3
    return [
        Row(title, value, *measured.get(title, missing), source)
        for title in dict.fromkeys((*measured, *of_paper))
        for value, source in [of_paper.get(title, (float("nan"), ""))]
    ]


def of_retrieval(model: Model, n: int = 16, seed: int = 0) -> list[Row]:
    """Measure the share of retrieval heads, and how many of the strongest published are ours."""
    from headscope.analyses.retrieval_heads import retrieval

    record = published.scores("retrieval")
    task = tasks.make("needle", model.tokenizer, n, seed)
    result = retrieval.run(capture(model, task, stats=()), model, task)
    share, missing = float(result["retrieval_share"]), float("nan")
    rows = []
    for name in dict.fromkeys((*record["shares"], model.name)):
        is_published = name in record["shares"]
        rows.append(
            Row(
                f"{name}: heads above 0.1, %",
                record["shares"][name] if is_published else missing,
                share if name == model.name else missing,
                missing,
                missing,
                record["sources"][0] if is_published else "",
            )
        )
    best = record["heads"].get(model.name, ())
    if best:
        score = result["retrieval_set"].values.ravel()
        strongest = {label(divmod(int(at), model.heads)) for at in np.argsort(-score)[: len(best)]}
        count = len(strongest & set(best))
        rows.append(Row(f"of the {len(best)} strongest", len(best), count, missing, missing))
    return rows


def of_sinks(model: Model, texts: Sequence[str], seed: int = 0) -> list[Row]:
    """Measure the sink rate of natural, random and repeated tokens, 64 in a prompt."""
    from headscope.analyses.sink_behavior import sink_controls

    record = published.scores("sinks")
    captured = capture(model, list(texts), stats=("received",))
    result = sink_controls.run(captured, model, seed=seed)
    ends = [result[f"rate{end}"].values for end in ("", "_lower", "_upper")]
    kinds = ("natural", "random", "repeated")
    missing = float("nan")
    rows = []
    for name in dict.fromkeys((*record["rates"], model.name)):
        values = record["rates"].get(name, [missing] * len(kinds))
        source = record["sources"][0] if name in record["rates"] else ""
        for number, kind in enumerate(kinds):
            measured, lower, upper = (
                float(end[number]) if name == model.name else missing for end in ends
            )
            title = f"{name}: {kind} tokens, %"
            rows.append(Row(title, values[number], measured, lower, upper, source))
    return rows


def _sae_auc(
    circuit: PublishedCircuit, model: Model, task: Task, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Rank heads, and pairs of heads, by the discrete SAE against the published circuit."""
    from sklearn.metrics import roc_auc_score

    from headscope.analyses.circuits import sae_circuits

    total = (model.layers * model.heads) ** 2
    captured = capture(model, task, stats=(), keep=("z",))
    result = sae_circuits.run(captured, model, task, edges=total, seed=seed)
    in_circuit = np.zeros((model.layers, model.heads), dtype=bool)
    for head in circuit.heads:
        in_circuit[head] = True
    score = result["unique_codes"].values
    present = ~np.isnan(score)
    node = float(roc_auc_score(in_circuit[present], score[present]))
    linked = {(edge.source, edge.target) for edge in circuit.edges}
    columns = ("source_layer", "source_head", "target_layer", "target_head")
    columns_of = np.stack([result[name].values for name in columns], axis=1).tolist()
    true = [(label((a, b)), label((c, d))) in linked for a, b, c, d in columns_of]
    edge = float("nan")
    if any(true) and not all(true):
        edge = float(roc_auc_score(true, result["edge_score"].values))
    missing = float("nan"), float("nan")
    return {SAE.format("node"): (node, *missing), SAE.format("edge"): (edge, *missing)}


def _mean(values: Array, seed: int) -> tuple[float, float, float]:
    mean, lower, upper = bootstrap(values, seed=seed)
    return float(mean), float(lower), float(upper)
