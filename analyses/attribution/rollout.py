"""Rollout and flow: attention multiplied through all layers, from output to input.

Rollout multiplies the head-averaged maps of all layers, the residual stream mixed in; flow is the
maximum flow through the same network. Both say how much of an input token could have reached an
output. The causal reference is the change of the prediction when the token is replaced, and the
gradient in its embedding, each rank-correlated with the last row of raw attention, rollout and
flow. The paper's claim is that both correlate better than raw attention; in a model whose heads put
their weight on the first token, products of many layers end there, so rollout without the first key
is computed too.

Sources: Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928); fusion and
discarding of rollout for vision transformers (jacobgil/vit-explain).
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._relevance import _attention_flow, perturbation
from headscope.analyses._relevance.target import predicted
from headscope.analyses._runtime.options import AtLeast, Between, OneOf, require_one_text
from headscope.analyses._runtime.results import SHARE, Results, require, require_maps
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.attribution import _input, _rollout_rows
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read

NEEDS = ("pattern",)
TASK = "ioi"
PROMPTS = 16
SUPPORTS: set[str] = set()
QUICK = {"substitutes": 1}

SOURCE = "Abnar & Zuidema 2005.00928"
ROWS = ("raw attention", "rollout", "flow", "rollout without the first token")
PRODUCT = "product of the Â of all layers"
# What the last rows are correlated with.
TRUTHS = {"ablation_correlation": "replaced tokens", "gradient_correlation": "input gradients"}


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    prompt: int = 0,
    flow_tokens: int = 48,
    substitutes: Annotated[int, AtLeast(1)] = 4,
    fusion: Annotated[str, OneOf(_attention_flow.FUSIONS)] = "mean",
    residual: bool = True,
    discard: Annotated[float, Between(0, 0.99)] = 0.0,
    seed: int = 0,
) -> xr.Dataset:
    """Multiply attention through the layers of one prompt, and compare it with replaced tokens.

    Parameters
    ----------
    capture, model
        Capture with ``pattern`` (prompt, layer, head, query, key) of short prompts.
    prompt
        Prompt whose maps are shown; the correlations use every prompt.
    flow_tokens
        Longest prompt for which flow is computed; one max-flow problem per pair of positions.
    substitutes
        Number of random tokens that replace each token in turn, drawn from the other tokens of the
        captured prompts.
    fusion
        How the heads of a layer become one map: their mean (Abnar & Zuidema), or the largest or
        smallest weight of each pair (vit-explain).
    residual
        Mix in the residual stream: rownorm(A + I). Without it the maps alone are multiplied.
    discard
        Share of the smallest weights of each layer's map that count as 0 (vit-explain: 0.9).
    seed
        Seed of the substitutes and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``rollout``, ``flow`` and ``raw_attention`` (query, key; share, rows sum to one),
    ``ablation_effect`` (query; nats) and ``input_gradient`` (query; nats per unit) of the shown
    prompt, ``ablation_correlation`` and ``gradient_correlation`` (condition; mean Spearman rank
    correlation over prompts, −1 to 1), and ``ablation_correlation_gain`` and
    ``gradient_correlation_gain`` (compared; paired differences to raw attention, by which the
    verdict judges the paper's claim), with 95 % intervals.
    """
    require(capture, NEEDS, "rollout")
    require_one_text(capture.attrs.get("attention", "self"), "rollout")
    require_maps(capture, "rollout")
    Between(0, capture.sizes["prompt"] - 1).check("prompt", prompt)
    longest = capture.sizes["query"]
    if longest > flow_tokens:
        raise NotApplicable(
            f"flow_tokens: a prompt has {longest} tokens and flow stops at {flow_tokens}; "
            "give shorter prompts, raise flow_tokens, or follow single rows with rollout.rows"
        )
    generator = np.random.default_rng(seed)
    texts = [_ids(capture, number) for number in range(capture.sizes["prompt"])]
    pool = [token for text in texts for token in text[1:]]
    mixing = {"fusion": fusion, "residual": residual, "discard": discard}
    prompts = []
    for number, ids in enumerate(texts):
        drawn = perturbation.draw_replacements(ids, pool, substitutes, generator).T
        prompts.append(_Prompt(capture, model, number, ids, drawn, mixing, number == prompt))
    shown = prompts[prompt]
    agreement = np.stack([text.agreement() for text in prompts])

    results = Results(capture, seed=seed, source=SOURCE)
    pair = ("query", "key")
    results.add_all(
        ("rollout", pair, shown.rollout, "Attention rollout", SHARE, PRODUCT),
        ("flow", pair, shown.flow, "Attention flow", SHARE,
         "max-flow with capacities Â, rows normalised"),
        ("raw_attention", pair, shown.raw, "Raw attention of the last layer", SHARE,
         "mean over heads"),
        ("input_gradient", ("query",), shown.gradient,
         "Gradient of the prediction in the token's embedding", ("nats per unit", "sequential", 0),
         "L2 norm over the embedding dimensions"),
    )  # fmt: skip
    results.add(
        "ablation_effect", ("query",), shown.effect,
        "Change of the prediction when the token is replaced", "nats", "sequential", 0,
        evidence="causal",
        convention=f"mean |Δ log p| of the predicted token over {substitutes} random substitutes",
    )  # fmt: skip
    over = f"last row, over the tokens of each of {len(prompts)} prompts"
    for index, (name, truth) in enumerate(TRUTHS.items()):
        results.add_mean(
            name, ("condition",), agreement[:, index], f"Agreement with {truth}", "Spearman ρ",
            "diverging", -1, 1, convention=over,
        )  # fmt: skip
        results.add_mean(
            f"{name}_gain", ("compared",), agreement[:, index, 1:] - agreement[:, index, :1],
            f"Agreement with {truth}, more than raw attention has", "Spearman ρ", "diverging",
            -2, 2, convention=f"paired differences over prompts; {over}",
        )  # fmt: skip
    size = np.arange(len(shown.ids))
    return results.dataset(
        {
            "condition": list(ROWS),
            "compared": list(ROWS[1:]),
            "query": size,
            "key": size,
            "token": ("query", shown.tokens),
        },
        _verdict(results, agreement),
        convention=f"{_convention(fusion, residual, discard)}; the last layer's row is the output",
        prompt=prompt,
        predicted=shown.answer,
    )


def replaced_passes(
    model: Model, prompts: Any, *, substitutes: int, **_: Any
) -> list[tuple[int, int]]:
    """List the tokens of every prompt that is run, and how often with one of them replaced."""
    return [(len(ids), substitutes * len(ids) + 1) for ids in read(model, prompts).ids]


def rows(
    capture: xr.Dataset,
    positions: Sequence[int] = (-1,),
    *,
    prompt: int = 0,
    without_first: bool = False,
    fusion: Annotated[str, OneOf(_attention_flow.FUSIONS)] = "mean",
    residual: bool = True,
    discard: Annotated[float, Between(0, 0.99)] = 0.0,
) -> xr.Dataset:
    """Follow attention from a few output positions to the input, at any length of the text.

    The rows of ``rollout`` at these positions, without any map: memory grows with the text, not its
    square.

    Parameters
    ----------
    capture
        Capture with ``keep=("q", "k")``.
    positions
        Output positions; negative ones count from the end of the prompt.
    without_first
        Leave the first key out of every layer, where attention sinks.
    fusion, residual, discard
        How maps are mixed, as in ``run``. Other than the defaults, they take all rows of every
        layer once, and with ``discard`` three times.

    Returns
    -------
    Dataset with ``rollout`` (query, key; share, rows sum to one); coordinates query, key, token
    (query) and key_token (key).

    Examples
    --------
    >>> from headscope.probes import capture, load_model
    >>> model = load_model("headscope/bundled")
    >>> result = rows(capture(model, [[0, 5, 6, 5]], stats=(), keep=("q", "k")))
    >>> result["rollout"].dims, round(float(result["rollout"].sum()), 5)
    (('query', 'key'), 1.0)
    """
    OneOf(_attention_flow.FUSIONS).check("fusion", fusion)
    Between(0, 0.99).check("discard", discard)
    _rollout_rows.check(capture)
    Between(0, capture.sizes["prompt"] - 1).check("prompt", prompt)
    length = int(capture["length"].values[prompt])
    if len(positions) == 0:
        raise InvalidInput("positions: none; give at least one, such as positions=(-1,)")
    for position in positions:
        Between(-length, length - 1).check("positions", position)
    queries = np.array([position % length for position in positions])
    tokens = capture["token"].transpose("prompt", "query").values[prompt, :length].astype(str)
    results = Results(capture, source=SOURCE)
    results.add(
        "rollout", ("query", "key"),
        _rollout_rows.follow(
            capture, prompt, queries.tolist(), fusion=fusion, residual=residual, discard=discard,
            first=not without_first,
        ),
        "Attention rollout", *SHARE,
        convention=f"{PRODUCT}{', the first key left out' if without_first else ''}; "
        + _convention(fusion, residual, discard),
    )  # fmt: skip
    coords = {
        "query": queries,
        "key": np.arange(length),
        "token": ("query", tokens[queries]),
        "key_token": ("key", tokens),
    }
    return results.dataset(coords, prompt=prompt)


class _Prompt:
    """The maps and the token effects of one prompt."""

    def __init__(
        self,
        capture: xr.Dataset,
        model: Model,
        number: int,
        ids: list[int],
        substitutes: NDArray[np.int64],
        mixing: dict[str, Any],
        full: bool,
    ) -> None:
        self.ids, size = ids, len(ids)
        order = ("layer", "head", "query", "key")
        maps = capture["pattern"].isel(prompt=number).transpose(*order).values[..., :size, :size]
        maps = np.nan_to_num(maps.astype(np.float64))
        mixed = _attention_flow.mix(maps, **mixing)
        self.raw = maps[-1].mean(0)
        self.rollout = _attention_flow.rollout(mixed)
        self.flow = _attention_flow.flow(mixed, None if full else [size - 1])
        kept = _attention_flow.mix(maps, **mixing, first=False)
        self.without_first = _attention_flow.rollout(kept)
        tokens = capture["token"].transpose("prompt", "query").values[number, :size]
        self.tokens = tokens.astype(str)
        (answer,) = predicted(model, ids).answer_ids
        self.answer = model.to_str_tokens([answer])[0]
        self.effect = _input.replacement_effect(model, ids, answer, substitutes)
        self.gradient = _input.input_gradient(model, ids, answer)

    def agreement(self) -> NDArray[np.float64]:
        """Return Spearman's ρ of the effect and the gradient with each row of ROWS (2, row)."""
        rows = (self.raw[-1], self.rollout[-1], self.flow[-1], self.without_first[-1])
        return np.array(
            [[ranked(row, truth) for row in rows] for truth in (self.effect, self.gradient)]
        )


def _convention(fusion: str, residual: bool, discard: float) -> str:
    """State how maps are mixed."""
    less = f", the smallest {percent(discard)} of it at 0" if discard else ""
    return f"Â = rownorm({fusion} over heads of A{less}{' + I' if residual else ''})"


def _ids(capture: xr.Dataset, number: int) -> list[int]:
    ids = capture["token_id"].transpose("prompt", "query").values[number]
    return [int(token) for token in ids if token >= 0]


def _verdict(results: Results, agreement: NDArray[np.float64]) -> Verdict:
    """Test the paper's claim by what each prompt says of the methods (prompt, truth, row)."""
    sentences, worse = [], []
    for index, (name, truth) in enumerate(TRUTHS.items()):
        values = results[name].values
        correlations = ", ".join(
            f"{row} {amount(value)}" for row, value in zip(ROWS, values, strict=True)
        )
        sentences.append(f"Rank correlation with {truth}: {correlations}.")
        better = agreement[:, index, 1:] - agreement[:, index, :1]
        above, below = exceeds_zero(better), exceeds_zero(-better)
        for at, row in enumerate(ROWS[1:3]):
            if below[at]:
                worse.append(f"{row} is worse than raw attention on {truth}")
            elif not above[at]:
                worse.append(f"{row} does not differ from raw attention on {truth}")
        if (above | below)[2]:
            comparative = "better" if above[2] else "worse"
            sentences.append(
                f"Without the first token rollout is {comparative} than raw attention."
            )
    text = " ".join(sentences)
    if len(agreement) < LEAST_PROMPTS:
        few = f"{len(agreement)} prompts are too few to test the paper's claim."
        return Verdict("too_few", f"{text} {few}")
    if not worse:
        return Verdict("supported", f"{text} Both correlate better than raw attention, as claimed.")
    return Verdict("disagreement", f"{text} Not as the paper has it: {'; '.join(worse)}.")
