import constructed
import numpy as np
import pytest
from architectures import eager_maps
from constructed import KEYS, SINK, UNIFORM, WORDS, repeated

from headscope.analyses._runtime.runner import execute
from headscope.analyses.token_groups import _token_kinds
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.writing import split

pytestmark = pytest.mark.requirement("A20")


def test_every_token_is_of_the_first_kind_that_fits():
    words = [["<s>", "Ġ", " The", ".", "\n  ", "42", " cat", " cat", "</s>", " owl"]]
    ids = [[0, 9, 1, 2, 3, 4, 5, 5, 8, 6]]
    assert _token_kinds.of_texts(ids, words, {0, 8}, 1) == [
        ["first", "rare", "stop word", "punctuation", "punctuation", "rare", "other", "other",
         "special", "rare"],
    ]  # fmt: skip
    # Rarity counts over all prompts, and the first token is the first, whatever it is.
    kinds = _token_kinds.of_texts([[1, 5], [1, 5]], [["a", "b"]] * 2, set(), 1)
    assert kinds == [["first", "other"]] * 2


def test_the_mass_of_a_class_is_that_of_the_models_own_maps(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=1, seed=1)
    held = capture(bundled, task, stats=("lse",))
    ids, words = held["token_id"].values[0].tolist(), held["token"].values[0].tolist()
    maps = eager_maps(bundled.module, ids).numpy()
    result = execute("token_classes", bundled, [ids], options={"causal_prompts": 0})
    for name, marks in (
        ("first", [at == 0 for at in range(len(ids))]),
        ("punctuation", [word in {".", ","} for word in words]),
    ):
        expected = maps[..., np.array(marks)].sum(-1).mean(-1)
        np.testing.assert_allclose(result["class_mass"].sel(token_class=name), expected, atol=1e-5)
        even = np.mean([np.mean(marks[: at + 1]) for at in range(len(ids))])
        enriched = result["class_enrichment"].sel(token_class=name)
        np.testing.assert_allclose(enriched, expected / even, atol=1e-4)


def test_an_even_head_favours_no_class_and_a_sink_the_first_token(circuit):
    ids = [[0, *(WORDS.index(word) for word in (*KEYS[:4], ".", "note", *KEYS[:3], "."))]] * 2
    result = execute("token_classes", circuit, ids, options={"causal_prompts": 0, "rare": 2})
    names = result["token_class"].values.tolist()
    assert names == ["first", "punctuation", "rare", "other"]
    np.testing.assert_allclose(result["token_share"], [1 / 11, 2 / 11, 2 / 11, 6 / 11])
    even = result["class_enrichment"].sel(layer=UNIFORM[0], head=UNIFORM[1])
    np.testing.assert_allclose(even, 1.0, atol=1e-5)
    sink = result["class_mass"].sel(layer=SINK[0], head=SINK[1])
    np.testing.assert_allclose(sink, [1, 0, 0, 0], atol=1e-3)
    assert "L0H1" in result.attrs["heads_by_type"]["first"]


def test_hiding_the_words_that_the_circuit_reads_costs_more_than_hiding_others(circuit):
    # Twelve words are said twice and read; five before them never come back.
    prompt = repeated(n=1, length=6, seed=3).prompts[0]
    spare = [word for word in WORDS[5:] if word not in split(prompt.clean)][:5]
    ids = [0, *map(WORDS.index, (*spare, ".", *split(prompt.clean)))]
    result = execute("token_classes", circuit, [ids] * 16, options={"rare": 16, "draws": 4})
    effect = result["hiding_effect"]
    hidden, others = effect.sel(token_class="rare").values
    assert others > 0.3
    assert abs(hidden) < others / 4
    assert effect.attrs["evidence"] == "causal"
    assert result.attrs["verdict"] == "disagreement"
    assert "rare" in result.attrs["note"].partition("; less: ")[2]


def test_special_tokens_of_an_encoder_and_patches_of_an_image():
    model = load_model(constructed.encoder(), tokenizer=constructed.encoder_tokenizer())
    result = execute("token_classes", model, [[2, 7, 8, 9, 10, 3], [2, 11, 12, 13, 3]])
    on_end = result["class_mass"].sel(layer=0, head=1, token_class="special")
    assert float(on_end) == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(result["class_enrichment"].sel(layer=0, head=2), 1.0, atol=1e-4)
    assert result["hiding_effect"].attrs["units"] == "share of its length"
    seeing = load_model(constructed.vision())
    image = np.random.default_rng(0).normal(size=(3, 16, 16)).astype("float32")
    result = execute("token_classes", seeing, [image, image[::-1].copy()])
    assert result["token_class"].values.tolist() == ["[CLS]", "patch"]
    on_class = result["class_mass"].sel(layer=0, head=1, token_class="[CLS]")
    assert float(on_class) == pytest.approx(1.0, abs=1e-3)
