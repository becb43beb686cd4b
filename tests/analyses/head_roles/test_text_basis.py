"""Words that span what heads write: planted words in their order, against dense projections."""

import numpy as np
import pytest
import torch
from constructed import KEYS, NAMES, VALUES, WORDS, silent_gpt2, tokenizer
from refusals import check_refusal

from headscope.analyses import text_basis
from headscope.analyses._measurements import residual_writes, word_tokens
from headscope.analyses._measurements.residual_writes import Write
from headscope.analyses.head_roles import _text_span
from headscope.kernels.formatting import amount
from headscope.probes import capture, load_model, tasks
from headscope.probes.attention import projections

SIZE = 64


@pytest.fixture(scope="module")
def model():
    """One layer: L0H0 writes a word for each key, for some more than for others.

    L0H1 writes a little in directions that no word has, L0H2 and L0H3 nothing.
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
            # Every token attends to itself.
            attention.c_attn.weight[100 + places, head * SIZE + places] = 2.0
            attention.c_attn.weight[100 + places, width + head * SIZE + places] = 1.0
            attention.c_attn.weight[words, 2 * width + head * SIZE + words] = 1.0
        for at, (key, word) in enumerate(zip(KEYS, VALUES, strict=True)):
            attention.c_proj.weight[WORDS.index(key), 180 + WORDS.index(word)] = 0.8**at
        beside = torch.randn(len(WORDS), 40, generator=generator) / 100
        attention.c_proj.weight[SIZE + words, 216 : 216 + 40] = beside
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
    assert result.attrs["labels"]["L0H0"] == VALUES[:3]
    assert result["first_label"].values[0, 0] == VALUES[0]
    explained = {name: result[name].values for name in result.data_vars}
    # Of ten words by which it varies, the three by which it does most.
    sizes = 0.8 ** (2 * np.arange(10))
    words, most = (explained[f"explained{kind}"][0, 0] for kind in ("", "_components"))
    assert words == pytest.approx(sizes[:3].sum() / sizes.sum(), abs=0.1)
    assert words == pytest.approx(most, abs=0.03)
    assert explained["explained_random"][0, 0] < 0.3
    shares = result["label_share"].values[0, 0]
    assert (np.diff(shares) < 0).all()
    assert shares.sum() == pytest.approx(float(result["explained"][0, 0]))
    # Words explain nothing of what lies beside all of them; a silent head has no variance.
    assert explained["explained"][0, 1] < 1e-6
    assert explained["explained_random"][0, 1] > 0.01
    assert np.isnan(result["explained"].values[0, 2:]).all()
    assert set(result.attrs["labels"]) == {"L0H0", "L0H1"}


def test_keeping_to_words_moves_the_output_less_than_random_directions(result):
    words, random, mean = result["moved"].values
    assert words < random < mean
    assert result["moved"].attrs["evidence"] == "causal"


def test_what_the_output_depends_on_is_reported_with_the_labels_and_is_measured(
    result, model, texts
):
    rng = np.random.default_rng(0)
    moved = rng.uniform(1, 1.1, (20, 3)) * [2.0, 1.0, 4.0]
    assert "no less than random directions do" in text_basis._weight(moved)
    assert "labels name variance" in text_basis._weight(moved)
    for value in moved.mean(0):
        assert amount(value) in text_basis._weight(moved)
    assert ", less than random directions do" in text_basis._weight(moved[:, [1, 0, 2]])
    assert "too few prompts" in text_basis._weight(moved[:3])
    shown = result["first_label"].attrs["long_name"], result["label_share"].attrs["convention"]
    assert all(", less than random directions do" in text for text in shown)
    unmeasured = text_basis.run(
        capture(model, texts[:8], stats=(), keep=("z",)), model, labels=1, checked=0
    )
    assert "was not measured" in unmeasured["first_label"].attrs["long_name"]
    assert "No causal check" in unmeasured.attrs["note"]


def test_greedy_choice_is_that_of_dense_residuals():
    generator = torch.Generator().manual_seed(1)
    outward = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    space = _text_span.space(outward, Write(1.0, None, None))
    z = torch.randn(200, 6, generator=generator, dtype=torch.float64) ** 3
    pool = torch.nn.functional.normalize(torch.randn(50, 9, generator=generator), dim=-1)
    inside = z @ space.map
    chosen, directions = _text_span.greedy(pool, space, inside.T @ inside / 200, 4)
    np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=1e-5)
    # From the outputs themselves: what a word explains is taken out of outputs and words.
    data, words = z @ outward, pool.double().clone()
    for at in range(4):
        length = words.norm(dim=-1, keepdim=True)
        units = torch.where(length > 0.04, words / length, 0.0)
        best = int((data @ units.T).square().mean(0).argmax())
        assert chosen[at] == best
        unit = units[best].clone()
        assert float((directions[at] @ unit).abs()) == pytest.approx(1, abs=1e-5)
        data -= torch.outer(data @ unit, unit)
        words -= torch.outer(words @ unit, unit)


def test_the_kept_part_of_z_writes_along_what_the_space_has_of_the_directions(bundled):
    write = residual_writes.head_writes(bundled)[1]
    outward = projections.read(bundled, ("o",)).of(1, "o")[2]
    space = _text_span.space(outward, write)
    np.testing.assert_allclose(space.map @ space.basis, outward, atol=1e-10)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, outward.shape[1], dtype=torch.float64, generator=generator)
    z = torch.randn(7, len(outward), dtype=torch.float64, generator=generator)
    made = z @ space.keeping(drawn) @ outward
    seen = torch.linalg.lstsq(outward.T, drawn.T).solution.T @ outward
    onto = seen.T @ torch.linalg.inv(seen @ seen.T) @ seen
    np.testing.assert_allclose(made, z @ outward @ onto, atol=1e-9)


def test_heads_of_the_bundled_model_are_labelled_by_words(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=32)
    result = text_basis.run(capture(bundled, task, stats=(), keep=("z",)), bundled)
    known = {
        bundled.to_str_tokens([token])[0].strip() for token in word_tokens.word_tokens(bundled)
    }
    assert all(set(words) <= known for words in result.attrs["labels"].values())
    explained, most = result["explained"], result["explained_components"]
    assert (explained <= most + 0.05).all()
    # A head that writes words is labelled by them: better than by chance, in most heads.
    assert (result["advantage"] > 0).mean() > 0.5
    words, _, mean = result["moved"].values
    assert words < mean


def test_models_without_words_are_refused(model, texts):
    bare = load_model(model.module)
    held = capture(model, texts[:4], stats=(), keep=("z",))
    check_refusal("model", text_basis.run, held, bare)
