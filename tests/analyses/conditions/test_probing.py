import random

import numpy as np
import pytest
import torch
from architectures import eager_maps
from constructed import ENCODER_WORDS, INDUCTION, encoder, encoder_tokenizer, repeated
from refusals import check_refusal
from word_prompts import Asked, word_prompt

from headscope.analyses._runtime.runner import execute
from headscope.analyses.conditions import _linked_pairs
from headscope.analyses.conditions._link_probe import LinkProbe, shuffled
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.writing import split

DEPENDENTS, GOVERNORS = KINDS["adjectives"][:12], KINDS["things"][:12]


def sentences(n: int = 12, asked: str = "dependent") -> Task:
    """Three adjectives and the thing that each belongs to, among names, in any order."""
    rng = random.Random(0)
    prompts = []
    for _ in range(n):
        pairs = rng.sample(range(len(DEPENDENTS)), 3)
        words = [*(DEPENDENTS[pair] for pair in pairs), *(GOVERNORS[pair] for pair in pairs)]
        words += rng.sample(KINDS["names"], 10)
        rng.shuffle(words)
        questions = []
        for pair in pairs:
            places = words.index(DEPENDENTS[pair]), words.index(GOVERNORS[pair])
            at, to = places if asked == "dependent" else places[::-1]
            questions.append(Asked(at, ("apple",), ("rice",), (to,)))
        prompts.append(word_prompt(words, words, questions))
    return Task("sentences", tuple(prompts), "accuracy", 0, "Which thing has which property.")


@pytest.fixture(scope="module")
def parser():
    """An encoder whose L0H2 looks from an adjective to the thing that it belongs to."""
    module = encoder()
    first, size = module.bert.encoder.layer[0].attention.self, 256
    with torch.no_grad():
        for row, words in enumerate(zip(DEPENDENTS, GOVERNORS, strict=True)):
            dependent, governor = (ENCODER_WORDS.index(word) for word in words)
            first.query.weight[2 * size + row, dependent] = 1.5
            first.key.weight[2 * size + row, governor] = 1.0
    return load_model(module, tokenizer=encoder_tokenizer())


@pytest.mark.requirement("A11")
@pytest.mark.parametrize(("asked", "direction"), [("dependent", 0), ("governor", 1)])
def test_the_probe_of_an_encoder_finds_the_relation_in_either_direction(parser, asked, direction):
    result = execute("probing", parser, task=sentences(asked=asked))
    accuracy = dict(zip(result["probe"].values.tolist(), result["accuracy"].values, strict=True))
    assert accuracy["all heads"] == 1.0
    assert accuracy["best single head"] == 1.0
    for baseline in ("fixed distance", "shuffled links", "random weights", "chance"):
        assert accuracy[baseline] < 0.4, baseline
    place = np.unravel_index(result["coefficient"].values.argmax(), (2, 2, 4))
    assert place == (direction, 0, 2)
    assert float(result["head_accuracy"].values[place]) == 1.0
    assert result.attrs["heads_by_type"]["probe, evidence"][0] == "L0H2"
    # Nothing reads what this encoder's heads write.
    assert result.attrs["verdict"] == "too_few"


@pytest.mark.requirement("A11")
def test_weights_between_two_tokens_are_those_of_the_models_own_maps(parser, bundled):
    for model, task in (
        (parser, sentences(2)),
        (bundled, tasks.make("recall", bundled.tokenizer, 2, pairs=3)),
    ):
        given = read(model, task)
        both_ways = not model.geometry.causal
        links = _linked_pairs.find(given, "evidence", 3, both_ways=both_ways, seed=0)
        cap = capture(model, task, stats=("lse",), keep=("q", "k"))
        result = _linked_pairs.weights(cap, links, both_ways=both_ways)
        for link, each in zip(links, result, strict=True):
            whole = eager_maps(model.module, given.ids[link.prompt]).numpy()
            assert given.encoded.questions[link.prompt]
            there = whole[:, :, link.query, link.candidates].transpose(2, 0, 1)
            np.testing.assert_allclose(each[:, 0], there, atol=1e-4)
            if both_ways:
                back = whole[:, :, link.candidates, link.query].transpose(2, 0, 1)
                np.testing.assert_allclose(each[:, 1], back, atol=1e-4)


@pytest.mark.requirement("A11")
def test_the_links_of_recall_are_in_the_copying_heads_and_cutting_them_there_matters(bundled):
    result = execute("probing", bundled, n=32, options={"shuffles": 2})
    accuracy = dict(zip(result["probe"].values.tolist(), result["accuracy"].values, strict=True))
    assert accuracy["all heads"] > 0.95
    assert max(accuracy[name] for name in list(accuracy)[2:]) < 0.4
    copying = {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}
    assert set(result.attrs["heads_by_type"]["probe, evidence"]) <= copying
    cut, other = result["moved"].values
    assert cut > 1.0
    assert other < 0.01
    assert result.attrs["verdict"] == "supported"


def test_a_decoder_has_one_direction(circuit):
    options = {"untrained": False}
    result = execute("probing", circuit, task=repeated(n=6, length=8), options=options)
    assert result["coefficient"].dims == ("layer", "head")
    assert float(result["head_accuracy"].values[INDUCTION]) == 1.0
    assert float(result["accuracy"].sel(probe="all heads")) == 1.0
    # Every evidence of repeated words stands at one distance, which needs no attention.
    assert float(result["accuracy"].sel(probe="fixed distance")) == 1.0
    assert result.attrs["verdict"] == "disagreement"
    assert result.attrs["note"].startswith("No better than a baseline")


def test_copies_of_a_token_are_links_too(circuit):
    options = {"relation": "duplicate", "untrained": False}
    result = execute("probing", circuit, task=repeated(n=6, length=8), options=options)
    assert float(result["head_accuracy"].values[0, 3]) == 1.0


def test_a_probe_of_noise_finds_nothing_and_one_planted_head_is_found():
    generator = np.random.default_rng(0)
    features = [generator.random((10, 1, 2, 3)) for _ in range(200)]
    right = shuffled([np.arange(10) == 0] * 200, 1)
    probe = LinkProbe(features[:100], right[:100], 5, 0)
    assert probe.hits(features[100:], right[100:]).mean() == pytest.approx(0.1, abs=0.08)
    for feature, flags in zip(features, right, strict=True):
        feature[flags, 0, 1, 2] += 0.9
    probe = LinkProbe(features[:100], right[:100], 5, 0)
    assert probe.hits(features[100:], right[100:]).mean() > 0.9
    assert np.unravel_index(probe.coefficients.argmax(), (1, 2, 3)) == (0, 1, 2)


def test_a_long_prompt_has_a_limited_number_of_candidates(bundled):
    given = read(bundled, tasks.make("needle", bundled.tokenizer, 2, length=400))
    links = _linked_pairs.find(given, "evidence", 4, both_ways=False, seed=0)
    assert [len(link.candidates) for link in links] == [_linked_pairs.CANDIDATES] * 2
    for link in links:
        evidence = given.encoded.questions[link.prompt][0].evidence
        assert set(link.candidates[link.right]) == set(evidence)
        assert link.candidates.max() < link.query


def test_bad_input_is_refused(bundled):
    check_refusal("n", execute, "probing", bundled, n=3)
    silent = sentences(4)
    bare = tuple(
        word_prompt(split(prompt.clean), split(prompt.clean), [Asked(1, ("apple",))])
        for prompt in silent.prompts
    )
    with pytest.raises(HeadscopeError, match="whose questions name evidence"):
        execute("probing", bundled, task=Task("silent", bare, "accuracy", 0, "No evidence."))
