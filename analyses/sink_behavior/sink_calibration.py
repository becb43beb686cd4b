"""Sink calibration: is the weight that a head parks on a sink helpful or harmful?

The weights of the sinks of one head are multiplied by γ and every row sums to 1 again, so the
ratios of all other weights stay and γ = 1 changes nothing. The causal number is the change of the
loss on the next token: a sink is helpful where less weight on it costs loss, harmful where less
weight saves some. Two sets of sinks stand side by side: the initial token alone (ZeroTuning), and
every key with mean weight above ε in that head, wherever it stands (ACT).

Sources: ZeroTuning (scaling of the initial token); Yu et al., Unveiling and Harnessing Hidden
Attention Sinks (ACT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements.received import steady_weight
from headscope.analyses._runtime import options
from headscope.analyses._runtime.progress import steps
from headscope.analyses._runtime.results import averaged, dataset, label, require, variable
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.probes.models.model import Model

NEEDS = ("received",)

SETS = ("first token", "all sinks")
SOURCES = ("ZeroTuning", "ACT (Yu et al.)")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    gammas: str = "0.5 2",
    epsilon: float = 0.3,
    least_queries: int = 16,
    least_change: float = 0.001,
    prompts: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Scale the weight that each head parks on its sinks, and measure what the loss does.

    Parameters
    ----------
    capture
        Capture with ``received``, which says where each head sinks.
    model
        Model that was captured; causal, so that it predicts the next token.
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
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``first_less``, ``first_more``, ``sinks_less``, ``sinks_more`` (layer, head; change
    of the loss in nats a token with the smallest and the largest γ on the first token, and on all
    sinks of the head), ``sweep`` (scaled, gamma; all heads scaled together), each with
    95 % intervals over prompts, ``best_gamma`` (layer, head; the γ of least loss on the first
    token, 1 where none is better) and ``verdict`` (layer, head; 1 where the interval says that the
    sinks of the head are helpful, -1 harmful, 0 neither).

    Raises
    ------
    NotApplicable
        When the capture lacks ``received``, an option is out of range, or the model is not causal.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("sink_calibration", model, [[0, 5, 6, 7]])
    >>> result["first_less"].dims
    ('layer', 'head')
    """
    from headscope.analyses._interventions.next_token_loss import predicts, tokens

    options.between("epsilon", epsilon, 0, 1)
    options.at_least("least_queries", least_queries, 1)
    options.at_least("least_change", least_change, 0)
    options.at_least("prompts", prompts, 1)
    require(capture, NEEDS, "sink_calibration")
    options.one_text(capture.attrs.get("attention", "self"), "sink_calibration")
    if not predicts(capture):
        raise NotApplicable(
            "model: sink_calibration measures the loss on the next token, which a model without "
            "causal order does not predict; see sink_topology"
        )
    factors = _parse(gammas)

    ids = tokens(capture)[:prompts]
    marked = steady_weight(capture, least_queries)[: len(ids)] > epsilon
    sweeps = [
        _Sweep(model, one, mask[..., : len(one)]) for one, mask in zip(ids, marked, strict=True)
    ]
    changes = []
    with steps(len(sweeps)) as step:
        for sweep in sweeps:
            changes.append(sweep.run(factors))
            step()
    # prompt, set of keys, gamma, layer, head; and with all heads together
    single, joint = (np.stack(each) for each in zip(*changes, strict=True))
    grid = ("layer", "head")
    said = (
        "loss with the weight on {} times γ = {:g}, rows normalised again, minus the loss as it "
        f"is; {len(ids)} prompts; positive: worse"
    )
    variables: dict[str, xr.Variable] = {}
    for at, (name, keys) in enumerate((("first", "the first token"), ("sinks", "all its sinks"))):
        for end, place in (("less", int(np.argmin(factors))), ("more", int(np.argmax(factors)))):
            variables |= averaged(
                f"{name}_{end}", grid, single[:, at, place],
                f"Loss change with {end} weight on {keys}", "nats a token", "diverging", seed=seed,
                convention=said.format(keys, factors[place]), source=SOURCES[at],
                evidence="causal",
            )  # fmt: skip
    variables |= averaged(
        "sweep", ("scaled", "gamma"), joint, "Loss change with the sinks of all heads scaled",
        "nats a token", "diverging", seed=seed, source="; ".join(SOURCES), evidence="causal",
        convention="all heads at once; positive: worse",
    )  # fmt: skip
    mean = single[:, 0].mean(0)
    best = np.where(mean.min(0) < -least_change, np.asarray(factors)[mean.argmin(0)], 1.0)
    variables["best_gamma"] = variable(
        grid, best, "Factor of least loss on the first token", "γ", "sequential", 0,
        convention=f"of {gammas} and 1, mean over {len(ids)} prompts; one head at a time",
        source=SOURCES[0], evidence="causal",
    )  # fmt: skip
    change, lower, upper = (
        variables[f"sinks_less{end}"].values for end in ("", "_lower", "_upper")
    )
    verdict = np.where((lower > 0) & (change > least_change), 1, 0)
    verdict = np.where((upper < 0) & (change < -least_change), -1, verdict)
    sinking = marked.any((0, -1))
    variables["verdict"] = variable(
        grid, np.where(np.isnan(single[0, 0, 0]), np.nan, verdict), "Sinks helpful or harmful",
        "-1 harmful, 1 helpful", "diverging", -1, 1, evidence="causal", source=SOURCES[1],
        convention="sign of sinks_less where its 95 % interval leaves out 0 and it is larger than "
        f"{least_change:g} nats, else 0; every head is a test of its own",
    )  # fmt: skip
    named = {
        name: [label((int(layer), int(head))) for layer, head in np.argwhere(verdict == sign)]
        for name, sign in (("helpful sinks", 1), ("harmful sinks", -1))
    }
    said = "; ".join(f"{name}: {', '.join(each) or 'none'}" for name, each in named.items())
    return dataset(
        capture,
        variables,
        {"scaled": list(SETS), "gamma": factors},
        heads_by_type=named,
        note=f"{int(sinking.sum())} heads have a sink. {said}"
        + ("." if len(ids) > 1 else "; one prompt has no interval, so no verdict."),
    )


def _parse(gammas: str) -> list[float]:
    """Read the factors; one below 1 and one above must be there."""
    try:
        found = sorted({float(one) for one in gammas.split()})
    except ValueError:
        found = []
    if not found or not 0 < found[0] < 1 < found[-1] < np.inf:
        raise InvalidInput(
            f"gammas: {gammas!r}; give numbers above 0 with spaces between, one below 1 and one "
            "above, such as '0.5 2'"
        )
    return found


class _Sweep:
    """The sweep of one prompt."""

    def __init__(self, model: Model, ids: list[int], marked: NDArray[np.bool_]) -> None:
        import torch

        self.model, self.ids, self.size = model, ids, len(ids)
        first = np.zeros_like(marked)
        first[:, :, 0] = True
        self.sets = (torch.from_numpy(first), torch.from_numpy(marked))

    def run(self, gammas: list[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the change of loss (keys, gamma, layer, head), and of all heads (keys, gamma)."""
        import torch

        from headscope.analyses._interventions.batched_edits import RowScale
        from headscope.analyses._interventions.next_token_loss import mean_loss, sweep_losses

        attending, heads = self.model.geometry.attending, self.model.heads
        single = np.full((len(SETS), len(gammas), self.model.layers, heads), np.nan)
        joint = np.zeros((len(SETS), len(gammas)))
        clean = mean_loss(self.model, self.ids)
        jobs: list[tuple[int, int, int, int]] = []
        for at, keys in enumerate(self.sets):
            # A head without sinks is left as it is: its change is 0 and costs no run.
            single[at][:, attending] = 0.0
            chosen = [(int(one), int(two)) for one, two in keys.any(-1).nonzero().tolist()]
            for number in range(len(gammas)):
                jobs += [(at, number, layer, head) for layer, head in chosen if layer in attending]
                jobs += [(at, number, -1, -1)] if chosen else []
        starts = torch.tensor([max(0, layer) for _, _, layer, _ in jobs], dtype=torch.long)

        def edit(some: Any, prompts: list[int]) -> RowScale:
            rows = [self._factors(*jobs[number], gammas=gammas) for number in some.tolist()]
            return RowScale(torch.stack(rows))

        values = sweep_losses(self.model, [self.ids], starts, edit)[0]
        for (at, number, layer, head), value in zip(jobs, values - clean, strict=True):
            if layer < 0:
                joint[at, number] = value
            else:
                single[at, number, layer, head] = value
        return single, joint

    def _factors(
        self, at: int, number: int, layer: int, head: int, *, gammas: list[float]
    ) -> Tensor:
        """Return the factor of every layer, head and key; layer -1 stands for all heads."""
        import torch

        keys = self.sets[at]
        if layer >= 0:
            chosen = torch.zeros_like(keys)
            chosen[layer, head] = keys[layer, head]
            keys = chosen
        return torch.where(keys, gammas[number], 1.0)
