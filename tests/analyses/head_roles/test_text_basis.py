"""Words that span what heads write: planted words in their order, against dense projections."""

import numpy as np
import pytest
import torch
from constructed import KEYS, NAMES, WORDS, silent_gpt2, tokenizer
from refusals import check_refusal

from headscope.analyses import text_basis
from headscope.analyses._measurements import residual_writes, word_tokens
from headscope.analyses.head_roles import _text_span
from headscope.probes import capture, load_model, tasks

WRITES = ("west", "summer", "north")
SIZE = 64


@pytest.fixture(scope="module")
def model():
    """One layer: L0H0 writes one of three words, more for some than for others, for each key.

    L0H1 writes in directions that no word has, L0H2 and L0H3 nothing.
    """
    module = silent_gpt2(n_positions=16, n_embd=4 * SIZE, n_layer=1, n_head=4)
    words, width = torch.arange(len(WORDS)), 4 * SIZE
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        module.transformer.wte.weight[words, words] = 1.0
        places = torch.arange(16)
        module.transformer.wpe.weight[places, 100 + places] = 1.0
        module.lm_head.weight[words, 180 + words] = 1.0
        attention = module.transformer.h[0].attn
        for head in (0, 1):
            # Every token looks at itself.
            attention.c_attn.weight[100 + places, head * SIZE + places] = 2.0
            attention.c_attn.weight[100 + places, width + head * SIZE + places] = 1.0
            attention.c_attn.weight[words, 2 * width + head * SIZE + words] = 1.0
        for at, (word, size) in enumerate(zip(WRITES, (1.0, 0.6, 0.3), strict=True)):
            some = [WORDS.index(key) for key in KEYS[at::3]]
            attention.c_proj.weight[some, 180 + WORDS.index(word)] = size
        silent = torch.randn(len(WORDS), 40, generator=generator)
        attention.c_proj.weight[SIZE + words, 216 : 216 + 40] = silent
    return load_model(module, tokenizer=tokenizer())


@pytest.fixture(scope="module")
def texts():
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice([*KEYS, *NAMES], 12)) for _ in range(40)]


@pytest.fixture(scope="module")
def result(model, texts):
    return text_basis.run(capture(model, texts, stats=(), keep=("z",)), model, labels=3)


@pytest.mark.requirement("C6", "C7")
def test_a_head_is_labelled_by_the_words_that_it_writes_in_their_order(result):
    assert result.attrs["labels"]["L0H0"] == list(WRITES)
    assert result["first_label"].values[0, 0] == "west"
    assert float(result["explained"][0, 0]) == pytest.approx(1, abs=1e-3)
    shares = result["label_share"].values[0, 0]
    assert (np.diff(shares) < 0).all()
    assert shares.sum() == pytest.approx(float(result["explained"][0, 0]))
    assert float(result["explained_random"][0, 0]) < 0.95
    # Words explain nothing of what lies beside all of them, and a silent head has no variance.
    assert float(result["explained"][0, 1]) < 0.05 + float(result["explained_random"][0, 1])
    assert np.isnan(result["explained"].values[0, 2:]).all()
    assert set(result.attrs["labels"]) == {"L0H0", "L0H1"}


def test_keeping_to_words_moves_the_output_less_than_random_directions(result):
    words, random, mean = result["moved"].values
    assert words < random < mean
    assert result["moved"].attrs["evidence"] == "causal"


def test_greedy_choice_is_that_of_dense_residuals():
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    pool = torch.nn.functional.normalize(torch.randn(50, 6, generator=generator), dim=-1)
    span = _text_span.greedy(pool, outputs.double().T @ outputs.double() / 200, 4)
    # As the published code does it: from the outputs themselves, texts and outputs projected.
    data, texts = outputs.double().clone(), pool.double().clone()
    for at in range(4):
        best = int((data @ texts.T).square().mean(0).argmax())
        assert int(span.chosen[at]) == best
        text = texts[best].clone()
        data -= torch.outer(data @ text / (text @ text), text)
        texts -= torch.outer(texts @ text / (text @ text), text)
    kept = outputs.double() @ span.directions.T
    left = outputs.double().square().sum() - kept.square().sum()
    assert float(left) == pytest.approx(float(data.square().sum()), rel=1e-4)
    identity = span.directions @ span.directions.T
    np.testing.assert_allclose(identity, np.eye(4), atol=1e-5)


def test_the_kept_part_of_z_writes_along_the_directions_alone(bundled):
    from headscope.probes.attention import projections

    write = residual_writes.written(bundled)[1]
    outward = projections.read(bundled, ("o",)).of(1, "o")[2]
    space = _text_span.space(outward, write)
    np.testing.assert_allclose(space.map @ space.basis, outward, atol=1e-10)
    directions = torch.linalg.qr(torch.randn(len(space.basis), 3, dtype=torch.float64))[0].T
    z = torch.randn(7, len(outward), dtype=torch.float64)
    made = z @ space.keeping(directions) @ outward
    in_stream = directions @ space.basis
    np.testing.assert_allclose(made, z @ outward @ in_stream.T @ in_stream, atol=1e-10)


def test_random_directions_see_a_space_as_whole_ones_do():
    drawn = _text_span.random_directions(20000, 8, 64, 0)
    assert float(drawn.square().sum(-1).mean()) == pytest.approx(8 / 64, rel=0.02)
    assert float(drawn.square().sum(-1).max()) < 1


def test_heads_of_the_bundled_model_are_labelled_by_words(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=32)
    result = text_basis.run(capture(bundled, task, stats=(), keep=("z",)), bundled)
    known = {bundled.words([token])[0].strip() for token in word_tokens.word_tokens(bundled)}
    assert all(set(words) <= known for words in result.attrs["labels"].values())
    explained, most = result["explained"], result["explained_components"]
    assert (explained <= most + 0.05).all()
    # A head that writes words is labelled by them: better than by chance, in most heads.
    assert (result["advantage"] > 0).mean() > 0.5
    words, random, mean = result["moved"].values
    assert words < mean


def test_models_without_words_are_refused(model, texts):
    bare = load_model(model.module)
    held = capture(model, texts[:4], stats=(), keep=("z",))
    check_refusal("model", text_basis.run, held, bare)
