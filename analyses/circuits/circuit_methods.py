"""Circuit methods: which methods find the true circuit, on this model and on constructed ones.

Each method ranks the heads of a task's circuit, and the edges between heads; the ROC AUC compares
its ranking with the true ones. On constructed models these are known; on this model a head or edge
is true when patching it moves a share of the task's metric. Methods that read only what heads write
on clean and corrupted prompts (the discrete SAE and its baselines, the difference of means, a
linear probe) are compared with those that follow the metric (attribution, EAP, EAP-IG) and, where
the truth is not itself found by patching, with patching and ACDC. An AUC of .5 is chance.

A method that reads only what heads write counts a head that the metric does not use like one that
it does, and misses heads whose outputs are distributed alike on both sides. The linear probe says
how far that goes: it scores a head by how well its outputs alone separate the two sides.

Sources: O'Neill & Bui (2405.12522) for the discrete SAE and the table; Syed et al. (2310.10348);
Hanna et al. (2403.17806); Conmy et al. (2304.14997).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import ZERO_TO_ONE, Results, require, require_maps
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array, t_interval
from headscope.analyses.circuits import _circuit_methods as methods
from headscope.analyses.circuits._circuit_truth import (
    Truth,
    constructed_truth,
    patched_truth,
)
from headscope.analyses.circuits._code_trials import auc
from headscope.kernels.errors import NotApplicable, UnsupportedModel
from headscope.kernels.formatting import amount
from headscope.probes import constructed
from headscope.probes.constructed import known_circuit
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ()
TASK = "ioi"
PROMPTS = 256
SUPPORTS: set[str] = set()
QUICK = {"known": False, "trials": 2, "truth_prompts": 2}

SOURCE = "O'Neill & Bui 2405.12522; Syed et al. 2310.10348; Hanna et al. 2403.17806"
# Prompts of a trial by default.
BEST = 48
# The method of the source, and those it has to beat.
OWN, SIMPLER = "trained SAE, scaled", ("shuffled labels, scaled", "mean difference", "no SAE")


@dataclass(frozen=True)
class Measured:
    """AUC of every method on a case (trial, heads or edges), and methods that refused it."""

    truth: Truth
    trials: Mapping[str, Array]
    refused: Mapping[str, str]

    def beats(self, method: str, rival: str) -> bool:
        """Return whether a method finds heads better than a rival, trial by trial."""
        differences = self.trials[method][:, 0] - self.trials[rival][:, 0]
        return bool(t_interval(differences, low=-1)[1] > 0)


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    known: bool = True,
    trials: Annotated[int, AtLeast(2)] = 5,
    truth_prompts: Annotated[int, AtLeast(2)] = 16,
    threshold: Annotated[float, Between(0, 1)] = 0.05,
    edge_threshold: Annotated[float, Between(0, 1)] = 0.02,
    seed: int = 0,
) -> xr.Dataset:
    """Compare every method that finds circuits with the true heads and edges.

    Parameters
    ----------
    capture, model, task
        Model and task whose circuit is searched. Of the capture only the provenance is used. The
        first prompts are patched for the truth; the others are divided among the trials.
    known
        Measure the constructed models too, whose circuits are known.
    trials
        Parts of the prompts, each with a dictionary of its own, that intervals are over.
    truth_prompts
        Prompts that are patched for the truth of this model.
    threshold, edge_threshold
        Share of the intact metric that a true head, and a true edge between heads, loses.
    seed
        Seed of dictionaries, of shuffled labels and of the sample of heads that are patched.

    Returns
    -------
    Dataset with ``node_auc`` and ``edge_auc`` (case, method; 0 to 1, 0.5 is chance, mean over
    trials with a 95 % t interval; NaN where a method ranks no edges, or none or all are true), and
    ``true_heads`` and ``true_edges`` (case; counts, NaN where none was patched). A case is a model
    with its task; ``refused`` says which methods a model does not allow, and why.
    """
    require(capture, NEEDS, "circuit_methods")
    require_maps(capture, "circuit_methods")
    model.check_predicts()
    prompts_left = len(task) - truth_prompts
    if prompts_left < trials:
        raise NotApplicable(
            f"task: {len(task)} prompts, of which {truth_prompts} are patched; {trials} trials "
            f"need {truth_prompts + trials} or more, better {truth_prompts + BEST * trials}"
        )
    encoded = ablation.encode_task(model, task)
    truth = patched_truth(
        model, encoded.part(range(truth_prompts)), threshold, edge_threshold, seed
    )
    rest = encoded.part(range(truth_prompts, len(task)))
    cases = {f"{model.name}: {task.name}": measure(model, rest, truth, trials, seed)}
    if known:
        cases |= measure_known(prompts_left, trials, seed)

    names = list(dict.fromkeys(name for case in cases.values() for name in case.trials))
    table = np.full((trials, len(cases), len(names), 2), np.nan)
    for at, case in enumerate(cases.values()):
        for column, name in enumerate(names):
            if name in case.trials:
                table[:, at, column] = case.trials[name]
    convention = (
        f"mean over {trials} trials of {prompts_left // trials} clean and as many corrupted prompts"
    )
    true = f"true: {truth.criterion}; constructed models: by construction"
    results = Results(capture, seed=seed, source=SOURCE, evidence="causal")
    for at, (name, nodes) in enumerate((("node_auc", "heads"), ("edge_auc", "edges"))):
        results.add_interval(
            name, ("case", "method"), t_interval(table[..., at]),
            f"AUC for the {nodes} of the circuit", "ROC AUC", *ZERO_TO_ONE,
            convention=f"{true}; {convention}",
        )  # fmt: skip
    counts = np.array([case.truth.counts() for case in cases.values()])
    for nodes, column in zip(("heads", "edges"), counts.T, strict=True):
        results.add(
            f"true_{nodes}", ("case",), column, f"True {nodes} of the circuit", nodes,
            "sequential", 0, convention=true,
        )  # fmt: skip
    return results.dataset(
        {"case": list(cases), "method": names},
        _verdict(cases),
        refused={name: dict(case.refused) for name, case in cases.items() if case.refused},
    )


def measure_known(n: int, trials: int, seed: int) -> dict[str, Measured]:
    """Measure every constructed model on as many prompts of its task."""
    return {
        name.removeprefix("headscope/"): measure_constructed(name, n, trials, seed)
        for name in constructed.names()
    }


def measure_constructed(name: str, n: int, trials: int, seed: int) -> Measured:
    """Measure one constructed model on prompts of its task."""
    circuit = known_circuit.load(name, n, seed)
    task = ablation.encode_task(circuit.model, circuit.task)
    return measure(circuit.model, task, constructed_truth(circuit), trials, seed)


def measure(model: Model, task: EncodedTask, truth: Truth, trials: int, seed: int) -> Measured:
    """Measure every method on parts of a task's prompts."""
    scores: dict[str, list[list[float]]] = {}
    refused: dict[str, str] = {}
    for number in range(trials):
        part = task.part(range(number, len(task) // trials * trials, trials))
        draw = methods.prepare(model, part, truth, seed * 1000 + number)
        for method in methods.METHODS:
            try:
                for name, (node, link) in method(draw):
                    of_heads = auc(truth.heads.ravel(), node, truth.weights.ravel())
                    of_edges = (
                        np.nan if link is None else auc(truth.edges, link, truth.edge_weights)
                    )
                    scores.setdefault(name, []).append([of_heads, of_edges])
            except (NotApplicable, UnsupportedModel) as refusal:
                refused[method.__name__.removeprefix("score_by_")] = str(refusal)
    return Measured(truth, {name: np.array(areas) for name, areas in scores.items()}, refused)


def _verdict(cases: Mapping[str, Measured]) -> Verdict:
    """Judge which methods find the heads, and whether the discrete SAE beats simpler methods."""
    judged = {
        name: case for name, case in cases.items() if np.isfinite(case.trials[OWN][:, 0]).all()
    }
    if not judged:
        return Verdict(
            "too_few",
            "All heads or none are true on this model and task, so there is no AUC; move the "
            "threshold, or take a task that the model does.",
        )
    sentences = [_sentence(name, case) for name, case in judged.items()]
    won = [
        name for name, case in judged.items() if all(case.beats(OWN, other) for other in SIMPLER)
    ]
    text = " ".join(sentences) + (
        f" The trained SAE beats shuffled labels, the difference of means and no SAE on {len(won)} "
        f"of {len(judged)}{': ' * bool(won)}{', '.join(won)}."
    )
    return Verdict("supported" if len(won) > 1 else "not_supported", text)


def _sentence(name: str, case: Measured) -> str:
    means = {method: float(values[:, 0].mean()) for method, values in case.trials.items()}
    best = sorted(means, key=lambda method: -means[method])[:3]
    listed = ", ".join(f"{method} {amount(means[method])}" for method in best)
    return f"{name}: heads are found best by {listed}; trained SAE {amount(means[OWN])}."
