"""Task vectors: can the heads' outputs on few-shot prompts replace the shots?

The outputs of every head at the last token of few-shot prompts are averaged over prompts. Added to
the head's output at the last token of a prompt without shots, each times a weight of its own, they
are the task vector. The weights are learned on one half of the prompts, the model itself stays as
it is; on the other half the vector is compared with no shots, with the shots themselves, and with
the same weights given to other heads.

Source: Saglam et al., Learning Task Representations from In-Context Learning (weighted sums of head
outputs, learned); added head by head, each in its own layer.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions.ablation import encode_task, evaluate, kept_z
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import GRID, ZERO_TO_ONE, Results, label, top
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import exceeds_zero
from headscope.analyses.head_importance import _tuned
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes import capture
from headscope.probes.interventions import Edit
from headscope.probes.models.model import Model
from headscope.probes.prompts.few_shot import few_shot
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ()
TASK = "ioi"
PROMPTS = 32
SUPPORTS = {"hybrid"}
QUICK = {"steps": 2, "shots": 1, "draws": 1}

SOURCE = "Saglam et al., Learning Task Representations from In-Context Learning"
CONDITIONS = ("no shots", "shots", "task vector", "weights given to other heads")


@dataclass(frozen=True)
class AddLast(Edit):
    """Add a vector to the output of every head at the last position, ``values``."""

    values: Float[Tensor, "layer head size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Add the vectors of one layer."""
        last = z[:, :, -1:] + self.values[layer].to(z)[:, None]
        return torch.cat([z[:, :, :-1], last], dim=2)


def run(
    model: Model,
    task: Task,
    *,
    shots: Annotated[int, AtLeast(1)] = 4,
    steps: Annotated[int, AtLeast(1)] = 20,
    rate: Annotated[float, AtLeast(1e-6)] = 0.1,
    penalty: Annotated[float, AtLeast(0)] = 1.0,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Learn a weight for every head's output on few-shot prompts, and add them without shots.

    Parameters
    ----------
    model, task
        Task of text whose prompts end in a question; every other prompt, of which there are more
        than the shots, is learned from and gives the shots, the rest are measured.
    shots
        Solved prompts before each few-shot prompt.
    steps, rate
        Number and size of the steps of Adam, from weights of 0.
    penalty
        Nats that a mean size of 1 of the weights costs while they are learned.
    draws
        Ways to give the weights to other heads of any layer.
    seed
        Seed of the shots, of these draws and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``weight`` (layer, head; learned once), ``log_probability`` and ``accuracy``
    (condition; of the answers, on prompts that nothing was learned from) and ``gain`` (the task
    vector's log-probability minus that without shots), with 95 % intervals over prompts.
    """
    model.check_predicts()
    halves = [replace(task, prompts=task.prompts[start::2]) for start in (0, 1)]
    if len(halves[0]) <= shots or not len(halves[1].prompts):
        raise NotApplicable(
            f"shots: {shots} before each of {len(halves[0])} prompts to learn from; give "
            f"{2 * shots + 2} prompts or more, or ask for fewer shots"
        )
    learned_from, unseen = (_at_end(model, half) for half in halves)
    solved, with_shots = (
        _at_end(model, few_shot(half, shots, halves[0], seed=seed)) for half in halves
    )
    outputs = last_outputs(model, solved)
    weight = _tuned.vector_weights(
        model, learned_from, lambda change: AddLast(change[:, :, None] * outputs),
        steps=steps, rate=rate, penalty=penalty,
    )  # fmt: skip
    weights = torch.from_numpy(np.nan_to_num(weight)).float()
    generator = np.random.default_rng(seed)
    attending = list(model.geometry.attending)
    permuted = []
    for _ in range(draws):
        flat = weights[attending].flatten()[generator.permutation(len(attending) * model.heads)]
        factors = torch.zeros_like(weights)
        factors[attending] = flat.reshape(len(attending), -1)
        permuted.append(factors)

    def scores(metric: str) -> Array:
        def added(values: Tensor) -> Array:
            return evaluate(model, unseen, (AddLast(values[:, :, None] * outputs),), metric)

        return np.stack(
            [
                evaluate(model, unseen, (), metric),
                evaluate(model, with_shots, (), metric),
                added(weights),
                np.mean([added(factors) for factors in permuted], axis=0),
            ],
            axis=1,
        )

    chance, right = scores("log_probability"), scores("accuracy")
    convention = (
        f"{shots} shots; learned from {len(learned_from)} prompts of {task.name} in {steps} steps, "
        f"measured on {len(unseen)} others; added at the last token"
    )
    results = Results(
        capture(model, unseen.ids[:1], stats=("lse",)), seed=seed, source=SOURCE,
        convention=convention,
    )  # fmt: skip
    results.add(
        "weight", GRID, weight, "Weight of the head in the task vector", "factor", "diverging",
        convention=f"of its mean output on few-shot prompts; penalty {penalty:g}; {convention}",
    )  # fmt: skip
    nats = ("nats", "diverging")
    gain = chance[:, 2] - chance[:, 0]
    results.add_means(
        ("log_probability", ("condition",), chance, "Log-probability of the answers", nats),
        ("accuracy", ("condition",), right, "Accuracy", ("share of answers", *ZERO_TO_ONE)),
        ("gain", (), gain, "Log-probability that the task vector adds", nats),
        evidence="causal",
    )
    size = np.abs(np.nan_to_num(weight))
    chosen = [head for head in top(size, 5) if size[head]]
    return results.dataset(
        {"condition": list(CONDITIONS)},
        _verdict(chance, right),
        heads_by_type={"task vector": [label(head) for head in chosen]},
    )


def last_outputs(model: Model, task: EncodedTask) -> Float[Tensor, "layer head size"]:
    """Return each head's mean output at the last token of the prompts; 0 where it has none."""
    total = torch.zeros(model.layers, model.heads, model.geometry.value_size)
    for ids in task.ids:
        total += torch.nan_to_num(kept_z(capture(model, [ids], stats=(), keep=("z",)))[0, :, :, -1])
    return total / len(task)


def _at_end(model: Model, task: Task) -> EncodedTask:
    """Encode a task whose prompts end in their only question."""
    encoded = encode_task(model, task)
    for ids, positions in zip(encoded.ids, encoded.question_positions, strict=True):
        if positions != (len(ids) - 1,):
            raise NotApplicable(
                f"task: a prompt of {task.name} does not end in its only question, and a task "
                "vector is added at the last token; use another task"
            )
    return encoded


def _verdict(chance: Array, right: Array) -> Verdict:
    """Conclude whether the vector does what shots do, and by which heads."""
    mean: Any = chance.mean(0)
    accuracy = right.mean(0)
    text = "; ".join(
        f"{name}: {amount(nats, '+')} nats, accuracy {amount(share)}"
        for name, nats, share in zip(CONDITIONS, mean, accuracy, strict=True)
    )
    over = chance[:, [2]] - chance[:, [0, 3]]
    gained, _ = exceeds_zero(over)
    reason = "other heads do as well" if gained else "the vector does no better than no shots"
    return causal_verdict(over, text, f"; {reason}")
