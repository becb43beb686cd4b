"""Which methods find the heads and edges of a circuit: ROC AUC against a ground truth.

python -P benchmarks/circuits.py            the constructed models and the bundled one
python -P benchmarks/circuits.py --models   SmolLM2 too, which has to be there
python -P benchmarks/circuits.py CASE...    those cases alone, the others as they were
... --variants                              the discrete SAE with one thing changed, instead

A case is MODEL:TASK. Results go to ``benchmarks/results/circuits.json``, case by case. The analysis
`circuit_methods` measures the same on any model and task.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._stats.bootstrap import t_interval
from headscope.analyses.circuits import _circuit_methods as methods
from headscope.analyses.circuits._circuit_truth import Truth, constructed_truth, patched_truth
from headscope.analyses.circuits._code_trials import METHODS as CODES
from headscope.analyses.circuits._code_trials import auc
from headscope.analyses.circuits.circuit_methods import measure
from headscope.probes import constructed, load_model, tasks
from headscope.probes.constructed import known_circuit
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedTask

FILE = Path(__file__).parent / "results" / "circuits.json"
PROMPTS, TRIALS, FEW = 100, 5, 3
TRUTH_PROMPTS, THRESHOLD, EDGE_THRESHOLD = 16, 0.05, 0.02
BUNDLED = ("ioi", "recall")
SMOLLM2 = ("ioi", "docstring")
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("nothing", {}),
    ("outputs as they are (the paper's code)", {"scaled": False}),
    ("outputs at the last position", {"last": True}),
    ("50 features", {"features": 50}),
    ("1000 features", {"features": 1000}),
    ("λ = 0", {"sparsity": 0.0}),
    ("λ = 1", {"sparsity": 1.0}),
    ("100 examples", {"examples": 100}),
]


def cases() -> dict[str, tuple[str, str]]:
    """Return every case: its name, model and task."""
    listed = [(name, constructed.module(name).TASK) for name in constructed.names()]
    listed += [("headscope/bundled", task) for task in BUNDLED]
    listed += [("headscope/smollm2", task) for task in SMOLLM2]
    return {f"{model}:{task}": (model, task) for model, task in listed}


def load(name: str, task: str) -> tuple[Model, EncodedTask, Truth]:
    """Return a model, prompts for all trials, and which of its heads and edges are true."""
    count = PROMPTS * TRIALS
    if name in constructed.names():
        circuit = known_circuit.load(name, count)
        return circuit.model, encode_task(circuit.model, circuit.task), constructed_truth(circuit)
    model = load_model(name)
    encoded = encode_task(model, tasks.make(task, model.tokenizer, TRUTH_PROMPTS + count))
    first = encoded.part(range(TRUTH_PROMPTS))
    truth = patched_truth(model, first, THRESHOLD, EDGE_THRESHOLD)
    return model, encoded.part(range(TRUTH_PROMPTS, len(encoded))), truth


def rows(model: Model, task: EncodedTask, truth: Truth) -> list[dict[str, Any]]:
    """Measure every method: mean AUC over parts of the prompts, with 95 % t intervals."""
    measured = measure(model, task, truth, TRIALS, 0)
    return [
        {"model": model.name, "task": task.name, "method": name,
         "node": interval(values[:, 0]), "edge": interval(values[:, 1])}
        for name, values in measured.trials.items()
    ]  # fmt: skip


def interval(values: Any) -> list[float] | None:
    """Return mean, lower and upper end; None where there is no truth."""
    ends = np.array(t_interval(values))
    return None if np.isnan(ends).any() else ends.round(4).tolist()


def variants(model: Model, task: EncodedTask, truth: Truth) -> list[dict[str, Any]]:
    """Measure the trained SAE and what stands beside it with one thing changed."""
    heads, weights = truth.heads.ravel(), truth.weights.ravel()
    result = []
    for title, settings in CHANGES:
        change = dict(settings)
        last, scaled = change.pop("last", False), change.pop("scaled", True)
        values = []
        for number in range(FEW):
            part = task.part(range(number, len(task), TRIALS))
            draw = methods.prepare(model, part, truth, number, last)
            generator = torch.Generator().manual_seed(number)
            nodes, _ = methods.codes(draw, scaled=scaled, **change).score(generator)
            values.append([auc(heads, node, weights) for node in nodes[:5]])
        columns = np.array(values).T
        result.append({
            "model": model.name, "task": task.name, "changed": title,
            **{name: interval(column) for name, column in zip(CODES, columns, strict=False)},
        })  # fmt: skip
    return result


def main(arguments: list[str]) -> None:
    """Measure cases, and keep each as soon as it is there."""
    torch.set_num_threads(1)
    by_name = cases()
    names = [argument for argument in arguments if not argument.startswith("--")] or [
        name for name in by_name if "--models" in arguments or "smollm2" not in name
    ]
    for name in names:
        model, task, truth = load(*by_name[name])
        if "--variants" in arguments:
            result = {"variants": variants(model, task, truth)}
        else:
            result = {
                "truth": {
                    "heads": int(truth.heads.sum()), "of": int((~np.isnan(truth.weights)).sum()),
                    "how": truth.criterion,
                    "edges": int(truth.edges.sum()),
                    "of_pairs": int((~np.isnan(truth.edge_weights)).sum()),
                },
                "prompts": PROMPTS, "trials": TRIALS, "rows": rows(model, task, truth),
            }  # fmt: skip
        results = json.loads(FILE.read_text()) if FILE.is_file() else {}
        results[name] = results.get(name, {}) | result
        FILE.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
        for row in result.get("rows", result.get("variants")):
            print(name, row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
