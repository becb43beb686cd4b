"""Sink calibration: is the weight that a head parks on a sink helpful or harmful?

The weights of the sinks of one head are multiplied by γ and every row sums to 1 again, so the
ratios of all other weights stay and γ = 1 changes nothing. The causal number is the change of the
loss on the next token: a sink is helpful where less weight on it costs loss, harmful where less
weight saves some. Two sets of sinks are measured: the initial token alone (ZeroTuning), and
every key with mean weight above ε in that head, wherever it stands (ACT).

Sources: ZeroTuning (scaling of the initial token); Yu et al., Unveiling and Harnessing Hidden
Attention Sinks (ACT).
"""

from typing import Annotated

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions import next_token_loss, screening
from headscope.analyses._interventions.batched_edits import RowScale
from headscope.analyses._interventions.next_token_loss import every_next_token
from headscope.analyses._measurements.received import steady_weight
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, Results, first_few, labels, require
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, differs_from_zero
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.models.model import Model

NEEDS = ("received",)
QUICK = {"prompts": 2}
SUPPORTS = {"hybrid"}

SETS = ("first token", "all sinks", "hidden sinks")
ACT = "ACT (Yu et al.)"
SOURCES = ("ZeroTuning", ACT, ACT)


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    gammas: str = "0.5 2",
    epsilon: Annotated[float, Between(0, 1)] = 0.3,
    least_queries: Annotated[int, AtLeast(1)] = 16,
    least_change: Annotated[float, AtLeast(0)] = 0.001,
    prompts: Annotated[int, AtLeast(1)] = 16,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Scale the weight of each head on its sinks, and measure the change of the loss.

    Parameters
    ----------
    capture, model
        Capture with ``received``, which says where each head sinks, and the causal model behind it.
    gammas
        Factors of the sweep, above 0, separated by spaces; one below 1 and one above at least.
    epsilon
        Mean weight above which a key counts as a sink of a head, 0 to 1.
    least_queries
        Keys seen by fewer queries than this do not count as sinks (the first always counts).
    least_change
        Change of the loss, in nats a token, below which a head is called neither helpful nor
        harmful and its best γ is 1.
    prompts
        Number of prompts in the sweep, the first ones; each is run once a head and factor.
    exhaustive
        Scale every head alone, whatever their number. Without it, in a model of more than 64 heads:
        those that the gradient of the loss ranks first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``first_less``, ``first_more``, ``sinks_less``, ``sinks_more``, ``hidden_less``,
    ``hidden_more`` (layer, head; change of the loss in nats a token with the smallest and the
    largest γ on the first token, on all sinks of the head, and on its sinks after the first token),
    ``sweep`` (scaled, gamma; all heads scaled together), each with 95 % intervals over prompts,
    ``best_gamma`` (layer, head; the γ of least loss on the first
    token, 1 where none is better) and ``verdict`` (layer, head; 1 where the interval says that the
    sinks of the head are helpful, -1 harmful, 0 neither).
    """
    require(capture, NEEDS, "sink_calibration", ("self",))
    if not next_token_loss.predicts(capture):
        raise NotApplicable(
            "model: sink_calibration measures the loss on the next token, which a model without "
            "causal order does not predict; see sink_topology"
        )
    factors = _parse(gammas)
    ids = next_token_loss.tokens(capture)[:prompts]
    sinks = steady_weight(capture, least_queries)[: len(ids)] > epsilon
    chosen = screening.screen(
        model, every_next_token(ids), "log_probability", exhaustive=exhaustive, seed=seed
    )
    single, joint = _sweep(model, ids, sinks, factors, chosen.heads)

    results = Results(capture, seed=seed, evidence="causal")
    keys_of = {
        "first": "the first token",
        "sinks": "all its sinks",
        "hidden": "its sinks after the first token",
    }
    for number, (name, keys) in enumerate(keys_of.items()):
        for end, index in (("less", int(np.argmin(factors))), ("more", int(np.argmax(factors)))):
            results.add_mean(
                f"{name}_{end}", GRID, single[:, number, index],
                f"Loss change with {end} weight on {keys}", "nats a token", "diverging",
                convention=f"loss with the weight on {keys} times γ = {factors[index]:g}, rows "
                f"normalised again, minus the loss as it is; {chosen.convention}; {len(ids)} "
                "prompts; positive: worse",
                source=SOURCES[number],
            )  # fmt: skip
    results.add_mean(
        "sweep", ("scaled", "gamma"), joint, "Loss change with the sinks of all heads scaled",
        "nats a token", "diverging", source="; ".join(SOURCES[:2]),
        convention="all heads at once; positive: worse",
    )  # fmt: skip
    mean = single[:, 0].mean(0)
    best = np.where(mean.min(0) < -least_change, np.asarray(factors)[mean.argmin(0)], 1.0)
    best[np.isnan(mean[0])] = np.nan
    results.add(
        "best_gamma", GRID, best, "Factor of least loss on the first token", "γ",
        "sequential", 0, source=SOURCES[0],
        convention=f"of {gammas} and 1, mean over {len(ids)} prompts; one head at a time",
    )  # fmt: skip
    changes = single[:, 1, int(np.argmin(factors))]
    change, enough = changes.mean(0), len(ids) >= LEAST_PROMPTS
    signs = np.sign(change) * (differs_from_zero(changes) & (np.abs(change) > least_change))
    results.add(
        "verdict", GRID, np.where(np.isnan(single[0, 0, 0]) | ~np.array(enough), np.nan, signs),
        "Sinks helpful or harmful", "-1 harmful, 1 helpful", "diverging", -1, 1,
        source=SOURCES[1],
        convention="sign of sinks_less where it differs from 0 among all heads and is larger than "
        f"{least_change:g} nats, else 0; missing with fewer than {LEAST_PROMPTS} prompts",
    )  # fmt: skip
    named = {
        name: labels((signs == sign) & enough)
        for name, sign in (("helpful sinks", 1), ("harmful sinks", -1))
    }
    missed = chosen.missed(signs != 0, f"{least_change:g} nats")
    listed = "; ".join(f"{name}: {first_few(heads) or 'none'}" for name, heads in named.items())
    few = f"Too few prompts ({len(ids)} of {LEAST_PROMPTS}) to call a sink helpful or harmful."
    return results.dataset(
        {"scaled": list(SETS), "gamma": factors},
        verdict=None if enough else Verdict("too_few", few),
        heads_by_type=named,
        note=f"{int(sinks.any((0, -1)).sum())} heads have a sink, "
        f"{int(sinks[..., 1:].any((0, -1)).sum())} one after the first token."
        + (f" {listed[0].upper()}{listed[1:]}." if enough else "")
        + (f" {missed}" if enough and missed else ""),
    )


def _parse(gammas: str) -> list[float]:
    """Read the factors; one below 1 and one above must be there."""
    try:
        factors = sorted({float(number) for number in gammas.split()})
    except ValueError:
        factors = []
    if not factors or not 0 < factors[0] < 1 < factors[-1] < np.inf:
        raise InvalidInput(
            f"gammas: {gammas!r}; give numbers above 0 with spaces between, one below 1 and one "
            "above, such as '0.5 2'"
        )
    return factors


def _sweep(
    model: Model,
    ids: list[list[int]],
    sinks: NDArray[np.bool_],
    gammas: list[float],
    chosen: Tensor,
) -> tuple[Array, Array]:
    """Return the change of loss (prompt, keys, gamma, layer, head), and of all heads together."""
    changes = []
    for prompt, keys in zip(ids, sinks, strict=True):
        changes.append(_sweep_prompt(model, prompt, keys[..., : len(prompt)], gammas, chosen))
    single, joint = zip(*changes, strict=True)
    return np.stack(single), np.stack(joint)


def _sweep_prompt(
    model: Model,
    prompt: list[int],
    sinks: NDArray[np.bool_],
    gammas: list[float],
    chosen: Tensor,
) -> tuple[Array, Array]:
    """Return the change of loss (keys, gamma, layer, head), and of all heads (keys, gamma)."""
    first = np.zeros_like(sinks)
    first[:, :, 0] = True
    sets = tuple(map(torch.from_numpy, (first, sinks, sinks & ~first)))
    single = np.full((len(SETS), len(gammas), model.layers, model.heads), np.nan)
    joint = np.zeros((len(SETS), len(gammas)))
    jobs: list[tuple[int, int, int, int]] = []
    for number, keys in enumerate(sets):
        # A head without sinks is left as it is: its change is 0 and costs no run.
        single[number][:, chosen.numpy()] = 0.0
        scaled = keys.any(-1) & chosen
        heads = [(int(layer), int(head)) for layer, head in scaled.nonzero().tolist()]
        for gamma in range(len(gammas)):
            jobs += [(number, gamma, layer, head) for layer, head in heads]
            jobs += [(number, gamma, -1, -1)] if bool(keys.any()) else []
    starts = torch.tensor([max(0, layer) for _, _, layer, _ in jobs], dtype=torch.long)

    def edit(numbers: Tensor, prompts: list[int]) -> RowScale:
        rows = []
        for job in numbers.tolist():
            number, gamma, layer, head = jobs[job]
            rows.append(_factors(sets[number], gammas[gamma], layer, head))
        return RowScale(torch.stack(rows))

    changes = next_token_loss.sweep_losses(model, [prompt], starts, edit)[
        0
    ] - next_token_loss.mean_loss(model, prompt)
    for (number, gamma, layer, head), change in zip(jobs, changes, strict=True):
        if layer < 0:
            joint[number, gamma] = change
        else:
            single[number, gamma, layer, head] = change
    return single, joint


def _factors(keys: Tensor, gamma: float, layer: int, head: int) -> Tensor:
    """Return the factor of every layer, head and key; layer -1 stands for all heads."""
    if layer >= 0:
        chosen = torch.zeros_like(keys)
        chosen[layer, head] = keys[layer, head]
        keys = chosen
    return torch.where(keys, gamma, 1.0)
