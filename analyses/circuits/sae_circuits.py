"""Discrete-SAE circuits: heads and edges found from codes that occur only on the task.

A small sparse autoencoder is trained on the heads' outputs of ten prompts; the code of a head on a
prompt is its strongest feature. A head belongs to the circuit when it shows codes on the task's
prompts that it never shows on corrupted ones, an edge when two heads' codes co-occur only there.
The ground truth is causal: heads whose output on the corrupted prompt, put in place of their own,
moves the task's metric; it removes just what the codes are read for. In a model of many heads those
that gradients rank first are patched, and a random sample of the others, which stands for all of
them. The baselines are the dictionary before training, codes without one (the largest coordinate),
the trained codes with shuffled labels, their information on the label above chance, the difference
of mean outputs, and attribution (gradient × difference).

What limits the method, measured on constructed models and SmolLM2 (page of benchmarks; AUC for
heads): it finds circuits (IOI .97, greater-than .87, IOI of SmolLM2 .88, docstring .72 and .65) and
beats shuffled labels on IOI, yet the same directions before training do as well (.99, .87, .89,
.75, .78): ten examples teach little. λ is in units of the outputs, so that small outputs leave few
features that fire (IOI: .75 on outputs as they are). The count of unique codes grows by chance with
the number of codes a head shows, so that with repeated random words shuffled labels reach .87.
Codes cannot tell heads whose outputs are distributed alike on both sides, such as previous-token
heads of random words, nor heads that vary with the task and are not read. More examples, more
features or another λ change none of this. Attribution, which knows the metric, finds all of these
circuits (.98 and more); `circuit_methods` compares all methods on your model.

Source: O'Neill & Bui, Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in
Language Models (2405.12522).
"""

from itertools import combinations
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import softmax

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._measurements import head_outputs
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    ZERO_TO_ONE,
    Results,
    attending,
    heads,
    label,
    require,
    top,
)
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import t_interval
from headscope.analyses.circuits._circuit_truth import patch_heads
from headscope.analyses.circuits._code_trials import (
    EPOCHS,
    EXAMPLES,
    FEATURES,
    METHODS,
    RATE,
    SHUFFLED,
    SPARSITY,
    TRAINED,
    Trials,
    auc,
)
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.constructed.known_circuit import linked_heads
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 250
QUICK = {"epochs": 3, "trials": 2, "truth_prompts": 2}
SUPPORTS = {"hybrid"}

SOURCE = "O'Neill & Bui 2405.12522"


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    features: Annotated[int, AtLeast(2)] = FEATURES,
    examples: Annotated[int, AtLeast(1)] = EXAMPLES,
    epochs: Annotated[int, AtLeast(1)] = EPOCHS,
    rate: Annotated[float, AtLeast(0)] = RATE,
    sparsity: Annotated[float, AtLeast(0)] = SPARSITY,
    scaled: bool = True,
    per_union: bool = False,
    trials: Annotated[int, AtLeast(2)] = 5,
    truth_prompts: Annotated[int, AtLeast(2)] = 16,
    threshold: Annotated[float, AtLeast(0)] = 0.05,
    edges: Annotated[int, AtLeast(1)] = 40,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Score heads and edges by the codes that occur only on the task.

    Parameters
    ----------
    capture, model, task
        Capture of the task's clean prompts (the positives) with the kept ``z``; the corrupted ones
        (the negatives) are captured here.
    features
        Features of the dictionary.
    examples
        Prompts that the dictionary is trained on, drawn anew in every trial.
    epochs
        Training steps, with all head outputs of the examples in each, or 512 drawn from them.
    rate
        Learning rate of Adam.
    sparsity
        Weight λ of the mean activation in the loss.
    scaled
        Divide all outputs by their root mean square, so that λ means the same in every model; the
        paper's code does not, and small outputs then leave few features that fire.
    per_union
        Divide a head's unique codes by the number of codes it shows on either set.
    trials
        Number of trials; each draws the examples and the initial weights anew.
    truth_prompts
        Prompts of the ablations behind the ground truth.
    threshold
        A head is in the ground truth when the effect of resampling it differs from 0 among all
        heads and is more than this share of the intact metric, which must lie above 0 itself.
    edges
        Number of best edges that are returned.
    exhaustive
        Patch every head for the ground truth, whatever their number. Without it, in a model of more
        than 64 heads: those that gradients rank first, and a random sample of the others.
    seed
        Seed of the trials, and of the sample of heads.

    Returns
    -------
    Dataset with ``node`` (layer, head; softmax over heads of the unique codes, mean over trials),
    ``unique_codes`` (layer, head), ``edge_score`` (edge; softmax over edges), ``ablation`` (layer,
    head; the causal number), ``ground_truth`` (layer, head; 0 or 1), ``node_auc``, ``edge_auc``
    (condition; mean over trials with a 95 % t interval), ``node_auc_sae`` and ``edge_auc_sae``.
    Edges have a ground truth only where the circuit is known, which is that of constructed models;
    elsewhere their AUC is missing.
    """
    require(capture, KEEP, "sae_circuits")

    if len(model.geometry.attending) < 2:
        raise NotApplicable(
            f"model: {model.name} has one layer with an attention map; an edge needs heads of two"
        )
    encoded = ablation.encode_task(model, task)
    negatives = ablation.capture_corrupted(model, encoded)
    truth_task = encoded.part(range(len(task))[:truth_prompts])
    # Of these prompts alone, as `importance` has them, so that their effects are the same.
    patched = patch_heads(model, truth_task, threshold, exhaustive=exhaustive, seed=seed)
    screened, truth, moved = patched.screened, patched.true, patched.effect
    clean_metric = float(patched.intact.mean())

    names = heads(capture)
    attending_heads = np.zeros(truth.shape, dtype=bool)
    attending_heads[attending(capture)] = True

    def on_grid(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Arrange one value a head in the grid (layer, head); NaN where there is no map."""
        grid = np.full(truth.shape, np.nan)
        grid[attending_heads] = values
        return grid

    weights = head_outputs.output_weights(model)
    clean, corrupted = (
        head_outputs.mean_outputs(side, weights)[:, np.flatnonzero(attending_heads)]
        for side in (capture, negatives)
    )
    pairs = [
        (source, target)
        for source, target in combinations(range(len(names)), 2)
        if names[source][0] < names[target][0]
    ]
    settings = {"features": features, "epochs": epochs, "rate": rate, "sparsity": sparsity}
    metric = differentiable(task.metric)
    gradient = head_gradients.patch_gradient(model, truth_task, metric, patched.corrupted)
    attribution = np.abs(gradient.mean(0))[attending_heads]
    trial = Trials(clean, corrupted, attribution, pairs, per_union, examples, settings, scaled)
    scores = []
    for number in range(trials):
        scores.append(trial.score(torch.Generator().manual_seed(seed * 1000 + number)))
    nodes, links = map(np.stack, zip(*scores, strict=True))
    # A head that was not patched is in no truth, and what is drawn stands for the others.
    wanted_nodes, stands_for = truth[attending_heads], screened.weights[attending_heads]
    wanted_links = _true_edges(model, task, truth, [(names[a], names[b]) for a, b in pairs])

    convention = (
        f"{len(clean)} clean and {len(corrupted)} corrupted prompts of {task.name}; SAE of "
        f"{features} features on {examples} examples{' of mean square 1' * scaled}, "
        f"λ = {sparsity:g}; {trials} trials"
    )
    criterion = (
        f"|resample ablation| differs from 0 and is > {percent(threshold)} of the intact "
        f"{task.metric} ({amount(clean_metric)}), {len(truth_task)} prompts, {screened.convention}"
    )
    edge_score = np.mean([softmax(codes) for codes in links[:, 0]], axis=0)
    best = np.argsort(-edge_score, kind="stable")[:edges]
    node = on_grid(np.mean([softmax(codes) for codes in nodes[:, 0]], axis=0))
    results = Results(capture, source=SOURCE, convention=convention)
    results.add_all(
        ("node", GRID, node, "Circuit score of the head", SHARE,
         f"softmax over heads of the unique codes; {convention}"),
        ("unique_codes", GRID, on_grid(nodes[:, 0].mean(0)), "Codes seen only with the task",
         ("share of codes" if per_union else "codes", "sequential", 0)),
        ("edge_score", ("edge",), edge_score[best], "Circuit score of the edge", SHARE,
         f"softmax over {len(pairs)} edges; {convention}"),
    )  # fmt: skip
    results.add_all(
        ("ablation", GRID, moved, f"Effect on {task.name} of its output on the corrupted prompt",
         (task.metric.replace("_", " "), "diverging"),
         f"intact − patched, {screened.convention}; {len(truth_task)} prompts of {task.name}"),
        ("ground_truth", GRID, np.where(np.isnan(moved), np.nan, truth),
         "Head of the circuit by ablation", ("indicator", *ZERO_TO_ONE),
         f"1 where {criterion}, else 0"),
        evidence="causal",
    )  # fmt: skip
    against = f"against {criterion}"
    if not screened.complete:
        against += "; a drawn head counts for all that it stands for"
    node_aucs = _aucs(nodes, wanted_nodes, stands_for)
    edge_aucs = _aucs(links, wanted_links, np.ones(len(pairs)))
    _add_aucs(results, "node_auc", node_aucs, "heads", against)
    _add_aucs(results, "edge_auc", edge_aucs, "edges", against)

    placed = np.array([[*names[pairs[edge][0]], *names[pairs[edge][1]]] for edge in best])
    columns = ("source_layer", "source_head", "target_layer", "target_head")
    edge_ends = {name: ("edge", placed[:, at]) for at, name in enumerate(columns)}
    circuit = [names[at] for at in np.flatnonzero(wanted_nodes)]
    return results.dataset(
        {"condition": list(METHODS), **edge_ends},
        _verdict(node_aucs, len(circuit), int(screened.heads.sum()), patched.solved),
        screened.missed(truth, "the threshold"),
        circuit=[label(head) for head in circuit],
        top_heads=[label(head) for head in top(results["unique_codes"].values, 5)],
    )


def _aucs(
    trials: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the ROC AUC of every method in every trial (trial, method)."""
    return np.array([[auc(labels, scores, weights) for scores in trial] for trial in trials])


def _add_aucs(
    results: Results, name: str, values: NDArray[np.float64], kind: str, against: str
) -> None:
    """Add the AUC of all methods, and that of the trained SAE, which is the first of them."""
    ends = t_interval(values)
    results.add_interval(
        name, ("condition",), ends, f"AUC for the {kind} of the circuit", "ROC AUC",
        *ZERO_TO_ONE, convention=f"{against}; t interval over {len(values)} trials",
    )  # fmt: skip
    results.add_interval(
        f"{name}_sae", (), [end[0] for end in ends], f"AUC for the {kind}, trained SAE",
        "ROC AUC", *ZERO_TO_ONE, convention=against,
    )  # fmt: skip


def _true_edges(
    model: Model,
    task: Task,
    truth: NDArray[np.bool_],
    pairs: list[tuple[tuple[int, int], tuple[int, int]]],
) -> NDArray[np.bool_]:
    """Return the true edges: those that are known, where ablation finds all of their heads."""
    linked = linked_heads(model.name, task.name)
    true_heads = {label((int(layer), int(head))) for layer, head in np.argwhere(truth)}
    if linked is None or not {end for ends in linked for end in ends} <= true_heads:
        return np.zeros(len(pairs), dtype=bool)
    return np.array([(label(source), label(target)) in linked for source, target in pairs])


def _verdict(scores: NDArray[np.float64], circuit: int, total: int, solved: bool) -> Verdict:
    """Compare the trained dictionary with shuffled labels, trial by trial; (trial, method)."""
    if not solved:
        text = "The intact metric is not shown to lie above 0, so no head moves a share of it."
        return Verdict("too_few", text)
    if circuit in (0, total):
        return Verdict(
            "too_few",
            f"{circuit} of {total} heads pass the ablation threshold, so there is no AUC; "
            f"move the threshold.",
        )
    mean = scores.mean(0)
    numbers = ", ".join(
        f"{name} {amount(value)}" for name, value in zip(METHODS, mean, strict=True)
    )
    _, lower, _ = t_interval(scores[:, TRAINED] - scores[:, SHUFFLED], low=-1)
    simpler = [
        name
        for number, name in enumerate(METHODS)
        if number not in (TRAINED, SHUFFLED) and mean[number] >= mean[TRAINED]
    ]
    more = f" No better than the simpler {' and '.join(simpler)}." if simpler else ""
    if lower > 0:
        return Verdict(
            "supported",
            f"The codes find the {circuit} heads that ablation finds (AUC: {numbers}).{more}",
        )
    return Verdict(
        "disagreement",
        f"The codes are not shown to find the {circuit} heads that ablation finds better than "
        f"shuffled labels do (AUC: {numbers}).{more}",
    )
