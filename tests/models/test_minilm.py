"""all-MiniLM-L6-v2, an encoder with WordPiece, against maps of its own eager attention."""

import numpy as np
import pytest
from eager_oracles import STATISTICS, check_statistics, eager_outputs
from model_packages import minilm

from headscope.analyses._runtime.runner import execute
from headscope.kernels.errors import NotApplicable
from headscope.probes import capture, load_model

pytestmark = pytest.mark.models
TEXTS = ("When Mary went to the store, John gave", "The unbelievably slow train left")


@pytest.fixture(scope="module")
def model():
    return load_model(minilm())


@pytest.fixture(scope="module")
def eager(model):
    """Maps (1, layer, head, query, key) of each text; the lengths differ."""
    return [eager_outputs(model, [model.encode(text)])[0] for text in TEXTS]


def test_a_text_has_the_tokens_of_its_tokenizer(model):
    ids = model.encode("Mary went unbelievably")
    assert ids == model.tokenizer("Mary went unbelievably")["input_ids"]
    words = ["[CLS]", "mary", "went", "un", "##bel", "##ie", "##va", "##bly", "[SEP]"]
    assert model.to_str_tokens(ids) == words


def test_statistics_are_those_of_eager_attention(model, eager):
    for text, maps in zip(TEXTS, eager, strict=True):
        check_statistics(capture(model, [text], stats=STATISTICS), maps)


def test_analyses_that_read_encoders_agree_with_eager_attention(model, eager):
    sinks, entropy = (execute(name, model, list(TEXTS)) for name in ("sinks", "entropy"))
    parked = np.mean([maps[0, ..., 0].mean(-1) for maps in eager], 0)
    np.testing.assert_allclose(sinks["sink"].values, parked, atol=2e-5)
    rows = [-(maps[0] * np.log(maps[0])).sum(-1).mean(-1) for maps in eager]
    np.testing.assert_allclose(entropy["entropy"].values, np.mean(rows, 0), atol=2e-4)


@pytest.mark.parametrize("name", ["importance", "retrieval", "patching"])
def test_what_predicts_is_refused(name, model):
    with pytest.raises(NotApplicable, match="predicts no next token"):
        execute(name, model)
