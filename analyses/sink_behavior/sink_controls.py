"""Sink controls: do heads still park on the first token of random and of repeated tokens?

The run's own prompts are compared with two controls of the same definition: prompts of random
tokens, where nothing is worth attending to, and prompts of one token repeated throughout, where
all keys hold the same content. In a model with rotary positions and no other position signal the
sink needs content: it vanishes on repeated tokens.

Source: Gu et al., When Attention Sink Emerges in Language Models (2410.10781), table of natural,
random and repeated tokens; T = 64 there.
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._measurements.received import rule
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import SHARE, Results, first_few, named, require
from headscope.analyses.sink_behavior import sinks
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes import capture as capture_prompts
from headscope.probes.models.model import Model

NEEDS = ("received",)
QUICK = {"prompts": 2, "tokens": 24}
SUPPORTS = {"encoder", "hybrid", "sigmoid"}

SOURCE = "Gu et al. 2410.10781"
ENDS = ("", "_lower", "_upper")
CONDITIONS = ("the run's prompts", "random tokens", "repeated token")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    epsilon: Annotated[float, Between(0, 1)] = 0.3,
    tokens: Annotated[int, AtLeast(9)] = 64,
    prompts: Annotated[int, AtLeast(2)] = 32,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by the weight it parks on the first of random and of repeated tokens.

    Parameters
    ----------
    capture, model
        Capture of the run's prompts with ``received``, and the model, with which the controls are
        captured.
    epsilon
        Mean weight above which a key counts as a sink of a head, 0 to 1.
    tokens
        Tokens in a control prompt (T).
    prompts
        Prompts of each control.
    seed
        Seed of the tokens and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``sink_random`` and ``sink_repeated`` (layer, head; mean α_1, share of weight) and
    ``rate`` (condition; sink rate in percent of heads and prompts), each with 95 % intervals.
    """
    require(capture, NEEDS, "sink_controls")
    if model.attention in ("decoder", "cross"):
        raise NotApplicable(
            f"model: sink_controls draws single texts, and the {model.attention} attention of "
            f"{model.name} reads pairs; see sinks"
        )
    if model.reads == "images":
        raise NotApplicable(
            f"model: sink_controls draws tokens, and {model.architecture} reads images; see sinks"
        )
    drawn_ids = np.random.default_rng(seed).choice(_ordinary(model), size=(prompts, tokens))
    first, last = _ends(model)
    random = drawn_ids.copy()
    if first is not None:
        random[:, 0] = first
    if last is not None:
        random[:, -1] = last
    repeated = np.repeat(drawn_ids[:, :1], tokens, axis=1)
    stats = (*NEEDS, *("received_share",) * model.geometry.sigmoid)
    controls = [capture_prompts(model, ids.tolist(), stats=stats) for ids in (random, repeated)]
    on_prompts, on_random, on_repeated = (
        sinks.run(data, epsilon=epsilon, seed=seed) for data in (capture, *controls)
    )
    opening = "no BOS"
    if first is not None:
        opening = "with BOS first" if last is None else "with [CLS] first and [SEP] last"
    convention = (
        f"share of heads with α_1 > ε = {epsilon:g}; controls: {prompts} prompts of T = {tokens}, "
        f"random {opening}, repeated without{rule(capture)}"
    )
    results = Results(capture, seed=seed, convention=convention, source=SOURCE)
    for name, result, title in (
        ("sink_random", on_random, "Weight parked on the first of random tokens"),
        ("sink_repeated", on_repeated, "Weight parked on the first of repeated tokens"),
    ):
        ends = [result[f"sink{end}"].values for end in ENDS]
        results.add_interval(name, ("layer", "head"), ends, title, *SHARE)
    by_kind = (on_prompts, on_random, on_repeated)
    rates = [[float(result[f"sink_rate{end}"]) for result in by_kind] for end in ENDS]
    results.add_interval(
        "rate", ("condition",), rates, "Sink rate by kind of token", "%", "sequential", 0, 100
    )
    parked = results["sink_random"].values
    sinking = named(parked, parked > epsilon)
    shares = ", ".join(
        f"{name} {amount(value)} %" for name, value in zip(CONDITIONS, rates[0], strict=True)
    )
    return results.dataset(
        {"condition": list(CONDITIONS)},
        sink_heads=sinking,
        note=f"Sink rate: {shares}. Sink heads on random tokens: {first_few(sinking) or 'none'}.",
    )


def _ends(model: Model) -> tuple[int | None, int | None]:
    """Return the tokens around any text: BOS, or an encoder's [CLS] and [SEP]."""
    cls, sep, bos = (
        getattr(model.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos")
    )
    return (bos, None) if cls is None or sep is None else (cls, sep)


def _ordinary(model: Model) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """List the token ids that stand for text."""
    special = getattr(model.tokenizer, "all_special_ids", None) or []
    return np.setdiff1d(np.arange(model.vocabulary), np.asarray(special, dtype=np.int64))
