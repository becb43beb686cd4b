"""Sink controls: do heads still park on the first token of random and of repeated tokens?

The run's own prompts stand beside two controls of the same definition: prompts of random tokens,
where nothing is worth attending to, and prompts of one token said again and again, where all keys
hold the same content. In a model with rotary positions and no other position signal the sink needs
content: it vanishes on repeated tokens.

Source: Gu et al., When Attention Sink Emerges in Language Models (2410.10781), table of natural,
random and repeated tokens; T = 64 there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import dataset, interval, label, require, top
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ("received",)

SOURCE = "Gu et al. 2410.10781"
ENDS = ("", "_lower", "_upper")
CONDITIONS = ("the run's prompts", "random tokens", "repeated token")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    epsilon: float = 0.3,
    tokens: int = 64,
    prompts: int = 32,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by the weight it parks on the first of random and of repeated tokens.

    Parameters
    ----------
    capture
        Capture of the run's prompts with ``received``.
    model
        Model that was captured; the controls are captured here.
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

    Raises
    ------
    NotApplicable
        When the capture lacks ``received``, an option is out of range, or T exceeds the context.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("sink_controls", model, [[0, 5, 6, 7]], options={"prompts": 2})
    >>> result["rate"].dims
    ('condition',)
    """
    from headscope.analyses import sinks
    from headscope.probes import capture as capture_prompts

    options.between("epsilon", epsilon, 0.0, 1.0)
    options.at_least("tokens", tokens, 9)
    options.at_least("prompts", prompts, 2)
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
    drawn = np.random.default_rng(seed).choice(_ordinary(model), size=(prompts, tokens))
    first, last = _ends(model)
    random = drawn.copy()
    if first is not None:
        random[:, 0] = first
    if last is not None:
        random[:, -1] = last
    repeated = np.repeat(drawn[:, :1], tokens, axis=1)
    results = [sinks.run(capture, epsilon=epsilon, seed=seed)] + [
        sinks.run(capture_prompts(model, ids.tolist(), stats=NEEDS), epsilon=epsilon, seed=seed)
        for ids in (random, repeated)
    ]
    opening = "no BOS"
    if first is not None:
        opening = "with BOS first" if last is None else "with [CLS] first and [SEP] last"
    said = (
        f"share of heads with α_1 > ε = {epsilon:g}; controls: {prompts} prompts of T = {tokens}, "
        f"random {opening}, repeated without"
    )
    variables: dict[str, xr.Variable] = {}
    for name, result, title in (
        ("sink_random", results[1], "Weight parked on the first of random tokens"),
        ("sink_repeated", results[2], "Weight parked on the first of repeated tokens"),
    ):
        mean, lower, upper = (result[f"sink{end}"].values for end in ENDS)
        variables |= interval(
            name, ("layer", "head"), mean, lower, upper, title, "share", "sequential", 0, 1,
            convention=said, source=SOURCE,
        )  # fmt: skip
    mean, lower, upper = (
        np.array([float(one[f"sink_rate{end}"]) for one in results]) for end in ENDS
    )
    variables |= interval(
        "rate", ("condition",), mean, lower, upper, "Sink rate by kind of token", "%",
        "sequential", 0, 100, convention=said, source=SOURCE,
    )  # fmt: skip
    parked = variables["sink_random"].values
    sinking = [label(head) for head in top(parked, int((parked > epsilon).sum()))]
    shares = ", ".join(
        f"{name} {value:.1f} %"
        for name, value in zip(CONDITIONS, variables["rate"].values, strict=True)
    )
    return dataset(
        capture,
        variables,
        {"condition": list(CONDITIONS)},
        convention=said,
        sink_heads=sinking,
        note=f"Sink rate: {shares}. Sink heads on random tokens: {', '.join(sinking) or 'none'}.",
    )


def _ends(model: Model) -> tuple[int | None, int | None]:
    """Name the tokens around any text: BOS, or an encoder's [CLS] and [SEP]."""
    cls, sep, bos = (
        getattr(model.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos")
    )
    return (bos, None) if cls is None or sep is None else (cls, sep)


def _ordinary(model: Model) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """List the token ids that stand for text."""
    special = getattr(model.tokenizer, "all_special_ids", None) or []
    return np.setdiff1d(np.arange(model.vocabulary), np.asarray(special, dtype=np.int64))
