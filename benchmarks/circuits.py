"""Which methods find the heads and edges of a circuit: ROC AUC against a ground truth.

python -P benchmarks/circuits.py            the constructed models and the bundled one
python -P benchmarks/circuits.py --models   SmolLM2 too, which has to be there
python -P benchmarks/circuits.py CASE...    those cases alone, the others as they were
... --variants                              the discrete SAE with one thing changed, instead

A case is MODEL:TASK. Results go to ``benchmarks/results/circuits.json``, case by case.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from headscope.probes import constructed
from headscope_benchmarks.circuit_methods import (
    Case,
    constructed_case,
    patched_case,
    rows,
    variants,
)

FILE = Path(__file__).parent / "results" / "circuits.json"
PROMPTS, TRIALS, FEW = 100, 5, 3
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
    """Name every case: its model and task."""
    listed = [(name, constructed.module(name).TASK) for name in constructed.names()]
    listed += [("headscope/bundled", task) for task in BUNDLED]
    listed += [("headscope/smollm2", task) for task in SMOLLM2]
    return {f"{model}:{task}": (model, task) for model, task in listed}


def measure(model: str, task: str, varied: bool) -> dict[str, Any]:
    """Measure one case: all methods, or the variants of one."""
    made = model in constructed.names()
    case: Case = constructed_case(model, PROMPTS) if made else patched_case(model, task, PROMPTS)
    if varied:
        return {"variants": variants(case, FEW, CHANGES)}
    return {
        "truth": {
            "heads": int(case.heads.sum()), "of": int((~np.isnan(case.weights)).sum()),
            "how": case.convention, "edges": None if case.edges is None else len(case.edges),
        },
        "prompts": PROMPTS,
        "trials": TRIALS,
        "rows": rows(case, TRIALS),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure cases, and keep each as soon as it is there."""
    torch.set_num_threads(1)
    known = cases()
    wanted = [each for each in arguments if not each.startswith("--")] or [
        name for name in known if "--models" in arguments or "smollm2" not in name
    ]
    for name in wanted:
        result = measure(*known[name], "--variants" in arguments)
        kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
        kept[name] = kept.get(name, {}) | result
        FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        for row in result.get("rows", result.get("variants")):
            print(name, row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
