import numpy as np
import pytest
import xarray as xr
from constructed import KEYS, SINK, WORDS

from headscope.analyses import sinks
from headscope.probes import capture

UNIFORM = sum(1 / i for i in range(1, 65)) / 64


def words(*given: str) -> list[int]:
    return [WORDS.index(word) for word in given]


@pytest.mark.requirement("A1")
def test_the_constructed_sink_head_is_found_and_a_uniform_head_has_the_closed_form(rotary_sink):
    prompts = [words("<bos>", *(list(np.roll(KEYS, turn)) * 7)[:63]) for turn in range(4)]
    result = sinks.run(capture(rotary_sink, prompts, stats=("received",)))
    np.testing.assert_allclose(result["sink"].values, [[1.0, UNIFORM]], atol=1e-3)
    assert round(UNIFORM, 4) == 0.0741
    assert float(result["sink_rate"]) == 50.0
    assert float(result["later_sink_rate"]) == 0.0
    assert "T = 64" in result.attrs["convention"]
    assert "'<bos>'" in result.attrs["convention"]


@pytest.mark.requirement("A1")
def test_the_sink_vanishes_where_every_token_is_the_same(rotary_sink):
    repeated = capture(rotary_sink, [words("<bos>") * 64, words("apple") * 64], stats=("received",))
    result = sinks.run(repeated)
    np.testing.assert_allclose(result["sink"].values, UNIFORM, atol=1e-3)
    assert float(result["sink_rate"]) == 0.0


@pytest.mark.requirement("A1")
def test_a_random_model_has_no_sinks(random_llama):
    ids = np.random.default_rng(0).integers(1, len(WORDS), size=(4, 64)).tolist()
    result = sinks.run(capture(random_llama, ids, stats=("received",)))
    assert float(result["sink_rate"]) == 0.0
    np.testing.assert_allclose(result["sink"].values, UNIFORM, atol=0.02)


@pytest.mark.requirement("A2")
def test_a_sink_in_the_middle_of_the_prompt_is_found(rotary_sink):
    ids = words("apple", "lemon", "grape", "<bos>", *KEYS, *KEYS)
    result = sinks.run(capture(rotary_sink, [ids, ids], stats=("received",)))
    assert float(result["sink"].sel(layer=0, head=0)) < 0.2
    assert float(result["later_sink"].sel(layer=0, head=0)) > 0.999
    assert float(result["later_sink"].sel(layer=0, head=1)) < 0.2
    # One of two heads has a hidden sink, none one at the first token.
    assert (float(result["sink_rate"]), float(result["later_sink_rate"])) == (0.0, 50.0)
    share = result["token_share"]
    assert str(share["token"].values[int(share.argmax("query"))]) == "<bos>"
    assert float(share.max()) == 0.5
    assert int(result["key_received"].argmax("key")) == 3
    assert result.attrs["sink_tokens"] == [{"token": "<bos>", "times": 2, "share_of_heads": 0.5}]
    assert result.attrs["heads_by_type"] == {"sink": [], "later_sink": ["L0H0"]}


def test_only_the_sink_heads_of_the_circuit_pass(circuit):
    # Without a repeated word L1H0 rests on <bos>, too; the previous-token head must not pass.
    ids = words("<bos>", *KEYS, "north", "south", "east", "west")
    scores = sinks.run(capture(circuit, [ids], stats=("received",)))["sink"]
    assert {(int(first), int(second)) for first, second in np.argwhere(scores.values > 0.3)} == {
        SINK,
        (1, 0),
    }


def received(alpha: np.ndarray, lengths: list[int]) -> xr.Dataset:
    coords = {"layer": np.arange(alpha.shape[1]), "head": np.arange(alpha.shape[2])}
    data = {"received": (("prompt", "layer", "head", "key"), alpha)}
    return xr.Dataset(data, {**coords, "length": ("prompt", lengths)})


def test_keys_that_few_queries_see_do_not_count():
    # A previous-token head: the last key but one gets 1/2 from the two queries that see it.
    alpha = np.full((1, 1, 1, 20), np.nan)
    alpha[0, 0, 0] = 1 / (20 - np.arange(20))
    alpha[..., -1] = 0
    strict = sinks.run(received(alpha, [20]), least_queries=8)
    assert float(strict["key_share"].max()) == 0
    assert np.isnan(strict["key_share"].values[13:]).all()
    assert float(sinks.run(received(alpha, [20]), least_queries=1)["key_share"].max()) == 1


def test_prompts_of_different_lengths_do_not_mix():
    alpha = np.full((2, 1, 1, 20), 0.5)
    alpha[1, ..., 10:] = np.nan
    result = sinks.run(received(alpha, [20, 10]), epsilon=0.4, least_queries=8)
    assert float(result["sink"].squeeze()) == 0.5
    assert result["key_share"].values[:13].tolist() == [1.0] * 13
    assert "T = 10 … 20" in result.attrs["convention"]
