"""Mean ablation of every head: headscope against the same sweep with TransformerLens hooks.

python -P benchmarks/ablation.py            measure, and keep the result beside the others
python -P benchmarks/ablation.py --rounds 3 fewer rounds

Both sweeps take the bundled model, the same prompts, the same mean vectors and the same questions,
in turn, round by round, in one process. TransformerLens gets what it is good at: prompts of one
length in one batch, no gradients, its own hook on ``hook_z``. Before anything is timed the two sets
of numbers must agree; otherwise nothing is reported. Beside the ratio stands how it depends on the
number of tokens in one pass.
"""

import argparse
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.metrics import score
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.prompt_batch import batches
from headscope.probes.prompts.task import Task
from headscope_benchmarks import machine, terminal
from headscope_benchmarks.tables import ablation_tables
from headscope_benchmarks.timing import interleave

METRIC = "logit_difference"
# Share of the largest effect by which the two may differ.
TOLERANCE = 1e-4
ROOMS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
Array = NDArray[np.float64]


def bridge_of(model: Model) -> Any:
    """Boot TransformerLens around the weights of a model."""
    import copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns about its own dependencies
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            "bundled",
            hf_model=copy.deepcopy(model.module),
            tokenizer=model.tokenizer,
            dtype=torch.float32,
        )


def hooked(bridge: Any, model: Model, task: Task, means: torch.Tensor) -> Array:
    """Sweep with TransformerLens: a hook on one head at a time, prompts of one length together."""
    encoded = ablation.encode_task(model, task)
    ids, questions = encoded.ids, encoded.questions
    effects = np.full((len(ids), model.layers, model.heads), np.nan)
    for rows in batches(ids, ablation.SWEEP_TOKENS):
        batch = torch.tensor([ids[row] for row in rows])
        answers = [questions[row] for row in rows]
        for layer in range(model.layers):
            for head in range(model.heads):

                def put(z: torch.Tensor, hook: Any, head: int = head, at: int = layer) -> Any:
                    # hook_z is (batch, position, heads · size) in the bridge.
                    size = means.shape[-1]
                    changed = z.clone()
                    if z.ndim == 4:
                        changed[:, :, head] = means[at, head]
                    else:
                        changed[..., head * size : (head + 1) * size] = means[at, head]
                    return changed

                with torch.no_grad():
                    output = bridge.run_with_hooks(
                        batch, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)]
                    )
                scores = score(output, answers, METRIC)
                effects[rows, layer, head] = scores.double().numpy()
    return effects


def compare(count: int, rounds: int) -> dict[str, Any]:
    """Check that both sweeps give the same numbers, then time them in turn."""
    model = load_model("headscope/bundled", device="cpu")
    task = tasks.make("ioi", tokenizer=model.tokenizer, n=count, seed=0)
    means = ablation.mean_z(capture(model, task, stats=(), keep=("z",)))
    bridge = bridge_of(model)

    def ours() -> Array:
        return ablation.ablate_each_head(model, task, METRIC, means)

    def theirs() -> Array:
        return hooked(bridge, model, task, means)

    left, right = ours(), theirs()
    effect = float(np.abs(left - ablation.evaluate(model, task, (), METRIC)[:, None, None]).max())
    off = float(np.abs(left - right).max())
    if not off <= TOLERANCE * effect:
        raise HeadscopeError(
            f"numbers: the sweeps differ by {off:.3g} of {effect:.3g}; nothing is reported"
        )
    return {
        "prompts": count,
        "heads": model.layers * model.heads,
        "difference": off,
        "largest_effect": round(effect, 3),
        "timing": interleave({"headscope": ours, "TransformerLens": theirs}, rounds),
    }


def rooms(count: int, rounds: int) -> dict[str, Any]:
    """Time the sweep with different numbers of tokens in one pass, in turn."""
    model = load_model("headscope/bundled", device="cpu")
    task = tasks.make("ioi", tokenizer=model.tokenizer, n=count, seed=0)
    means = ablation.mean_z(capture(model, task, stats=(), keep=("z",)))

    def of(room: int) -> Any:
        def sweep() -> Array:
            ablation.SWEEP_TOKENS = room
            return ablation.ablate_each_head(model, task, METRIC, means)

        return sweep

    usual = ablation.SWEEP_TOKENS
    try:
        names = {str(room): of(room) for room in sorted(ROOMS, key=lambda room: room != usual)}
        return {"prompts": count, "tokens_in_a_pass": interleave(names, rounds)}
    finally:
        ablation.SWEEP_TOKENS = usual


def main() -> int:
    """Measure, write the result, and print its tables."""
    parser = argparse.ArgumentParser(description="sweep ablations beside TransformerLens hooks")
    parser.add_argument("--rounds", type=int, default=7, help="sweeps that count")
    rounds = parser.parse_args().rounds
    before = machine.load()
    result: dict[str, Any] = {
        "machine": {
            **machine.describe(),
            "transformer_lens": version("transformer-lens"),
            "load_before": before,
        },
        "task": f"ioi, {METRIC}, mean ablation of every head of headscope/bundled",
        "sweeps": [compare(count, rounds) for count in (1, 8, 32)],
        "rooms": [rooms(count, max(rounds // 2, 1)) for count in (1, 32)],
    }
    result["machine"]["load_after"] = machine.load()
    machine.save(result, f"ablation-{machine.slug(result['machine']).removeprefix('cpu-')}")
    for table in ablation_tables(result):
        print(f"\n{table}")
    return 0


if __name__ == "__main__":
    terminal.run(main)
