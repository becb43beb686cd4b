import architectures
import numpy as np
import pytest
import torch
from constructed import KEYS, NAMES, PREVIOUS, SINK, UNIFORM, VALUES, WORDS
from refusals import check_refusal

from headscope.analyses import span
from headscope.analyses._runtime.runner import execute
from headscope.analyses._stats.length_trend import by_octave, octaves, slope, visible
from headscope.probes import Model, capture, load_model
from headscope.probes.prompts import tasks

STATS = span.NEEDS


def words(seed: int, count: int) -> list[int]:
    drawn = np.random.default_rng(seed).permutation([*KEYS, *NAMES, *VALUES])[:count]
    return [WORDS.index(word) for word in ("<bos>", *drawn)]


def closed_form() -> tuple[list[float], list[float]]:
    octaves = [np.arange(low, high) for low, high in ((4, 8), (8, 16), (16, 32))]
    return [octave.mean() for octave in octaves], [
        np.ceil(0.9 * octave).mean() for octave in octaves
    ]


@pytest.fixture(scope="module")
def result(circuit):
    # No word twice, so only the places matter.
    prompts = [words(seed, 30) for seed in range(3)]
    return span.run(capture(circuit, prompts, stats=STATS), circuit, causal_prompts=0)


@pytest.mark.requirement("A9")
def test_a_previous_token_head_is_fixed_and_a_uniform_head_elastic(result):
    growth, rate = result["growth"].values, result["elastic_rate"].values
    np.testing.assert_allclose(growth[PREVIOUS], 0, atol=1e-6)
    np.testing.assert_allclose(result["span"].values[PREVIOUS], 2)
    np.testing.assert_allclose(rate[PREVIOUS], 0, atol=1e-6)
    # ⌈0.9 n⌉ of n keys; the first token stands at a distance of n − 1, so its span is n.
    tokens, spans = closed_form()
    np.testing.assert_allclose(result["span_by_length"].values[UNIFORM], spans, rtol=1e-6)
    np.testing.assert_allclose(growth[UNIFORM], np.polyfit(np.log(tokens), np.log(spans), 1)[0])
    np.testing.assert_allclose(rate[UNIFORM], np.polyfit(tokens, spans, 1)[0])
    assert 0.9 < growth[UNIFORM] < 1
    np.testing.assert_allclose([growth[SINK], rate[SINK], result["span_share"].values[SINK]], 1)
    kinds = result.attrs["heads_by_type"]
    assert "L0H0" in kinds["fixed"]
    assert {"L0H1", "L0H2"} <= set(kinds["elastic"])


@pytest.mark.requirement("A9")
def test_fixed_heads_lose_nothing_beyond_their_span_and_elastic_ones_do(bundled):
    task = tasks.make("needle", tokenizer=bundled.tokenizer, n=16, seed=2, length=120)
    result = execute("span", bundled, task)
    intact, fixed, elastic = result["span_loss"].values
    assert fixed - intact < 0.1
    assert elastic - intact > 4 * (fixed - intact)
    assert elastic - intact > 0.2
    assert result.attrs["verdict"] == "supported"
    # The heads that find the needle must reach back as far as it is; L1H3 attends to what is near.
    assert set(result.attrs["heads_by_type"]["elastic"]) & {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}


def uniform(family: str) -> Model:
    """Every head looks everywhere alike, in the window of 8 that Mistral has."""
    module = architectures.build(family, num_hidden_layers=1)
    for name, weight in module.named_parameters():
        if "query" in name or "q_proj" in name:
            torch.nn.init.zeros_(weight)
    return load_model(module)


def test_a_window_stops_the_growth():
    model = uniform("mistral")
    ids = np.random.default_rng(0).integers(1, 60, size=(2, 64)).tolist()
    captured = capture(model, ids, stats=STATS)
    assert np.nanmax(visible(captured)) == 8
    result = span.run(captured, model, causal_prompts=0)
    np.testing.assert_allclose(result["span_by_length"].values[..., 1:], 8)
    assert np.all(np.abs(result["growth"].values) < 0.25)
    assert len(result.attrs["heads_by_type"]["fixed"]) == 4


def test_a_bidirectional_model_is_captured_at_shorter_lengths():
    model = uniform("bert")
    ids = np.random.default_rng(0).integers(1, 60, size=(2, 64)).tolist()
    result = span.run(capture(model, ids, stats=STATS), model)
    assert result["length"].values.tolist() == [f"text of {n} tokens" for n in (4, 8, 16, 32, 64)]
    reach = [
        np.mean([np.sort(abs(np.arange(n) - i))[int(np.ceil(0.9 * n)) - 1] + 1 for i in range(n)])
        for n in (4, 8, 16, 32, 64)
    ]
    np.testing.assert_allclose(result["span_by_length"].values[0, 0], reach, rtol=1e-6)
    assert np.all(np.abs(result["growth"].values - 1) < 0.15)
    assert "Not causal" in result.attrs["note"]
    assert "span_loss" not in result


def test_octaves_slopes_and_missing_values():
    seen = np.arange(1.0, 65.0)[None, None]
    values = np.where(seen < 32, seen**0.5, np.nan)[:, :, None]
    bins = octaves(seen, 4)
    assert bins == [(4, 8), (8, 16), (16, 32), (32, 65)]
    counts, means = by_octave(values, seen, bins)
    assert np.isnan(means[..., -1]).all()
    assert abs(float(slope(np.log(counts)[:, :, None], np.log(means)).squeeze()) - 0.5) < 0.01


def test_bad_input_is_refused(circuit):
    check_refusal("prompts", span.run, capture(circuit, [words(0, 4)], stats=STATS), circuit)
