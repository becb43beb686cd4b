"""Tiny models with random weights, and statistics recomputed in numpy from Hugging Face's maps."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers_of_text import word_level

Array = np.ndarray[Any, Any]

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
WINDOWED = {**GROUPED, "head_dim": 8, "sliding_window": 7}
WIDE = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt2": WIDE,
    "mistral": {**GROUPED, "sliding_window": 7},
    "gemma2": {**WINDOWED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5},
    "gpt_neox": SHAPE,
    "gpt_oss": {
        **WINDOWED, "num_local_experts": 2, "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default"},
    },
    "gptj": {**WIDE, "rotary_dim": 8},
    "llama4_text": {
        **GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
        "attention_chunk_size": 8, "pad_token_id": 0,
    },
}  # fmt: skip


def _build(family: str, **more: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], **more})
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    # The initial weights are small, so that attention is all but uniform; make it say something.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and any(part in name for part in ("attn", "attention")):
                weight.mul_(12.0)
            if name.endswith("sinks"):
                weight.copy_(torch.linspace(-1.0, 2.0, len(weight)))
    return model


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Build a tiny model of a family; the same weights every time."""
    return _build


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of 64 words, <bos> first, loaded from a folder."""
    vocabulary = ["<bos>", "<unk>", *(f"w{at}" for at in range(62))]
    folder = tmp_path_factory.mktemp("words")
    made = word_level(vocabulary, "<bos> $A", bos_token="<bos>", unk_token="<unk>")
    made.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def folder(tiny: Callable[..., Any], words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with its tokenizer, saved as any user would."""
    place = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(place)
    words.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def ids() -> Callable[..., list[int]]:
    """Draw token ids with repetitions, so that duplicates and induction occur."""

    def draw(length: int, seed: int = 0, vocabulary: int = 64) -> list[int]:
        return [
            int(number) for number in np.random.default_rng(seed).integers(0, vocabulary, length)
        ]

    return draw


def _eager(module: Any, prompt: list[int]) -> tuple[list[Array], list[Array], list[Array]]:
    """Run Hugging Face's own eager attention: weights, inputs of the output projection, stream."""
    before = module.config._attn_implementation
    mixed: list[Array] = []

    def keep(part: Any, given: Any) -> None:
        mixed.append(given[0][0].double().numpy())

    handles = [
        part.register_forward_pre_hook(keep)
        for name, part in module.named_modules()
        if name.endswith(("o_proj", "attn.c_proj", "attention.dense"))
    ]
    module.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            given = {"output_attentions": True, "output_hidden_states": True}
            result = module(torch.tensor([prompt]), **given)
    finally:
        module.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    weights = [layer[0].double().numpy() for layer in result.attentions]
    return weights, mixed, [layer[0].double().numpy() for layer in result.hidden_states]


@pytest.fixture(scope="session")
def eager() -> Callable[..., tuple[list[Array], list[Array], list[Array]]]:
    """Run a Hugging Face model with output_attentions=True, attn_implementation='eager'."""
    return _eager


def _recompute(
    weights: Array,
    name: str,
    prompt: list[int],
    window: int | None,
    *,
    first: int,
    offsets: tuple[int, ...],
    tile: int,
    clip: int | None,
    recent: int,
    share: float,
    k: int,
    horizon: tuple[int, int],
    last: int,
    spans: dict[str, Any],
) -> Array:
    """Compute one statistic from a map (head, query, key), query by query, in float64."""
    heads, length, _ = weights.shape
    at = np.arange(length)
    distance = at[:, None] - at[None, :]
    seen = (distance >= 0) & (distance < (window or length))
    assert np.all(weights[:, ~seen] == 0)
    if name == "pattern":
        return weights
    if name == "entropy":
        # What the keys lack to 1 is the share of a learned sink, one more outcome.
        rest = 1.0 - weights.sum(-1, keepdims=True)
        shares = np.concatenate((weights, np.where(rest > 1e-6, rest, 0.0)), axis=-1)
        return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)
    if name == "max_weight":
        return weights.max(-1)
    if name == "first_mass":
        return weights[:, :, :first].sum(-1)
    if name == "offset_mass":
        result = np.full((heads, length, len(offsets)), np.nan)  # no such key: missing
        for column, offset in enumerate(offsets):
            for query in range(offset, length):
                result[:, query, column] = weights[:, query, query - offset]
        return result
    if name == "learned_sink_mass":
        return 1.0 - weights.sum(-1)
    counted = {
        "received": seen,
        "received_share": seen,
        "received_later": seen & (distance >= horizon[0]) & (distance <= horizon[1]),
        "received_last": seen & (at[:, None] >= length - last),
    }
    if name == "received_share":
        # A learned sink takes a part of a row; the rest is shared out.
        weights = weights / weights.sum(-1, keepdims=True)
    if name in counted:
        columns = [(weights[:, rows, key], rows.any()) for key, rows in enumerate(counted[name].T)]
        means = [rows.mean(-1) if some else [np.nan] * heads for rows, some in columns]
        return np.stack(means, axis=-1)
    if name == "recent_mass":
        return (weights * (distance < recent)).sum(-1)
    if name == "span_mass":
        masses = [
            weights[:, :, list(at)].sum(-1) + (0.0 if at else np.nan) for at in spans.values()
        ]
        return np.stack(masses, axis=-1)
    if name == "received_max":
        return weights.max(axis=1)
    if name == "column_norm":
        return (weights**2).sum(axis=1)
    if name == "topk":
        best = np.full((heads, length, k), np.nan)
        for query in at:
            row = weights[:, query, seen[query]]
            best[:, query, : row.shape[-1]] = -np.sort(-row)[:, :k]
        return best
    if name == "distance_hist":
        edges = [0, *(2**power for power in range(64) if 2**power < length), length]
        parts = [(distance >= low) & (distance < high) for low, high in pairwise(edges)]
        return np.stack([(weights * part).sum(-1) for part in parts], axis=-1)
    clipped = np.minimum(distance, clip or length) * seen
    if name == "distance":
        return (weights * clipped).sum(-1)
    if name == "distance_variance":
        mean = (weights * clipped).sum(-1)
        return (weights * (clipped - mean[..., None]) ** 2).sum(-1)
    if name in ("pooled_mean", "pooled_max"):
        tiles = -(-length // tile)
        result = np.zeros((heads, tiles, tiles))
        for row in range(tiles):
            for column in range(tiles):
                rows, columns = (slice(at * tile, (at + 1) * tile) for at in (row, column))
                part = weights[:, rows, columns]
                pooled = part.max((1, 2)) if name == "pooled_max" else part.sum(-1).mean(-1)
                result[:, row, column] = pooled
        return result
    assert name == "target_mass"
    result = np.full((heads, length, 2), np.nan)
    for query in at:
        earlier = [key for key in range(query) if prompt[key] == prompt[query]][-8:]
        after = [key + 1 for key in range(query - 1) if prompt[key] == prompt[query]][-8:]
        for column, keys in enumerate((earlier, after)):
            if keys:
                result[:, query, column] = weights[:, query, keys].sum(-1)
    return result


@pytest.fixture(scope="session")
def recompute() -> Callable[..., Array]:
    """Compute a statistic by its definition from Hugging Face's weights."""
    return _recompute


CHOSEN = ("topk_key", "effective_span", "span_without_first", "value_mass")


def _choose(one: Any, name: str, weights: Array, share: float) -> None:
    """Check, by its definition, what hangs on the last bit of a weight or needs the values."""
    result = one[name].values
    if name == "value_mass":
        values = one["v"].values.astype(float)[one["kv_group"].values]
        norms = np.sqrt((values**2).sum(-1))
        np.testing.assert_allclose(result, (weights @ norms[..., None])[..., 0], rtol=0, atol=5e-5)
    elif name == "topk_key":
        assert np.array_equal(np.isnan(result), np.isnan(one["topk"].values))
        there = np.take_along_axis(weights, np.nan_to_num(result).astype(int), axis=-1)
        there[np.isnan(result)] = np.nan
        np.testing.assert_allclose(one["topk"].values, there, rtol=0, atol=5e-5)
    else:
        if name == "span_without_first":
            weights = weights.copy()
            weights[..., : int(one.attrs["first"])] = 0
            assert np.array_equal(np.isnan(result), weights.sum(-1) < 1e-20)
        at = np.arange(weights.shape[1])
        distance = at[:, None] - at[None, :]
        held = [
            np.where(distance < result[..., None] - less, weights, 0).sum(-1) for less in (0, 1)
        ]
        known = ~np.isnan(result)
        assert (held[0] >= share * weights.sum(-1) - 5e-5)[known].all()
        assert (held[1] <= share * weights.sum(-1) + 5e-5)[known].all()


@pytest.fixture(scope="session")
def choose() -> dict[str, Callable[..., None]]:
    """Check a statistic whose value is a choice, by name."""
    return {name: partial(_choose, name=name) for name in CHOSEN}
