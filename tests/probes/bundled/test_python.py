"""The bundled model of real text: its files, its split, and what it does on held-out files."""

import copy
import json
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from bridges import bridge_of
from refusals import check_refusal
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from headscope.analyses._runtime.runner import execute
from headscope.probes import capture, load_model, pattern
from headscope.probes.attention.forward import logits
from headscope.probes.bundled import folder
from headscope.probes.interventions import Ablate
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.library import OTHER_TERMS, is_written_source, openings, read_library
from headscope_training.evaluation import without
from headscope_training.python import evaluation

FOLDER = folder("headscope/bundled-python")
SHIPPED = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
CARD = json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def python() -> Model:
    return load_model("headscope/bundled-python")


@pytest.fixture(scope="module")
def eager() -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager")


@pytest.fixture(scope="module")
def long_ids(python: Model) -> list[int]:
    """The first 1024 tokens of a held-out file."""
    (text,) = openings(1, 1024, python.tokenizer)
    longer = max(read_library(held_out=True), key=lambda one: len(one.text)).text
    assert longer.startswith(text)
    return python.encode(longer)[:1024]


def test_files_are_there_and_small():
    assert all((FOLDER / name).is_file() for name in SHIPPED)
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) <= 12_000_000


def test_shape_is_another_kind_than_the_first(python, eager):
    assert isinstance(eager, GPT2LMHeadModel)
    assert eager.dtype == torch.float32
    assert (python.layers, python.heads, python.kv_heads, python.context) == (6, 6, 6, 1024)
    assert python.vocabulary == len(AutoTokenizer.from_pretrained(FOLDER))


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x  # naïve\n",
        "😀 مرحبا 你好，世界",
        "When Mary went to the store, \x00\x7f",
    ],
)
def test_any_text_comes_back_and_can_be_captured(python, text):
    ids = python.encode(text)
    assert ids[0] == python.tokenizer.bos_token_id
    assert python.tokenizer.decode(ids, skip_special_tokens=True) == text
    captured = capture(python, [text], stats=("entropy",))
    assert int(captured["length"][0]) == len(ids)
    assert np.isfinite(captured["entropy"].values).all()


def test_full_context_agrees_with_transformers(python, eager, long_ids):
    captured = capture(python, [long_ids], stats=("entropy", "received", "z"), keep=("q", "k"))
    # In float32 eager attention is farther from the truth than what it should judge.
    exactly = copy.deepcopy(eager).double()
    with torch.inference_mode():
        given = exactly(torch.tensor([long_ids]), output_attentions=True)
    for layer, maps in enumerate(given.attentions):
        exact = maps[0]
        entropy = -torch.xlogy(exact, exact).sum(-1)
        seen = captured["entropy"].sel(layer=layer).transpose("prompt", "head", "query")
        np.testing.assert_allclose(seen.values[0], entropy, atol=5e-5, rtol=0)
        visible = torch.arange(1024, 0, -1)
        seen = captured["received"].sel(layer=layer).transpose("prompt", "head", "key")
        np.testing.assert_allclose(seen.values[0], exact.sum(1) / visible, atol=5e-5, rtol=0)
    for layer, head in ((0, 1), (5, 5)):
        shown = pattern(captured, layer, head).values
        np.testing.assert_allclose(shown, given.attentions[layer][0, head], atol=5e-5, rtol=0)


def test_name_folder_object_and_bridge_give_one_dataset(python, eager, tmp_path):
    eager.save_pretrained(tmp_path)
    python.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    bridge = bridge_of(copy.deepcopy(python.module), tokenizer)
    texts = ["def f(x):\n    return x\n", "print('😀')"]
    named = capture(python, texts)
    assert named.sizes["layer"] == 6
    for source, given in ((tmp_path, None), (python.module, tokenizer), (bridge, tokenizer)):
        result = capture(load_model(source, tokenizer=given), texts)
        assert result.sizes == named.sizes
        for name, array in named.data_vars.items():
            np.testing.assert_allclose(result[name], array, atol=5e-5, err_msg=name)


class TestHeldOutFiles:
    def test_a_path_falls_on_one_side_only(self):
        seen = {file.path for file in read_library(held_out=False)}
        unseen = {file.path for file in read_library(held_out=True)}
        assert not seen & unseen
        assert 0.04 < len(unseen) / (len(seen) + len(unseen)) < 0.2

    def test_tables_tests_and_other_terms_are_left_out(self):
        paths = {path.path for path in read_library(held_out=False) + read_library(held_out=True)}
        assert "argparse.py" in paths
        assert not {path.split("/")[0] for path in paths} & {"encodings", "test", "pydoc_data"}
        assert not is_written_source(PurePosixPath("site-packages/numpy/version.py"))
        assert not {"re/__init__.py", "logging/__init__.py", "optparse.py"} & paths
        assert OTHER_TERMS.search("# Permission  is hereby\ngranted, free of charge")

    def test_next_tokens_beat_a_bigram_table(self, python, eager):
        rows = evaluation.windows(python.tokenizer, read_library(held_out=True))[::24]
        trained = evaluation.windows(python.tokenizer, read_library(held_out=False)[::8])
        table = evaluation.BigramModel(trained, python.vocabulary).score(rows)
        result = evaluation.held_out(eager, rows)
        assert result["tokens"] > 5_000
        assert result["accuracy"] > table["bigram"]["accuracy"] + 0.12
        assert result["loss"] < table["bigram"]["loss"] - 0.8
        assert table["bigram"]["loss"] < table["unigram"]["loss"] - 1
        assert result["accuracy"] == pytest.approx(CARD["held_out"]["accuracy"], abs=0.06)


class TestHeads:
    def test_random_tokens_repeated_are_copied(self, eager):
        assert evaluation.copying_accuracy(eager, 64) >= 0.9

    def test_copying_needs_the_induction_heads_and_few_others(self, python, eager):
        heads = [(int(name[1]), int(name[3])) for name in CARD["heads"]["induction"]]
        feeding = [(int(name[1]), int(name[3])) for name in CARD["heads"]["previous"]]
        gone = evaluation.knocked_out(eager, heads, [torch.tensor([0, 5, 6])], feeding)
        assert gone["these_heads"]["copied"] < 0.1
        assert gone["as_many_others_worst"]["copied"] > 0.7
        ids = evaluation.repeated(eager, 32, 2)
        with torch.inference_mode():
            expected = without(eager, heads)(ids).logits
        result = logits(python, ids, (Ablate(heads=tuple(heads)),))
        torch.testing.assert_close(result, expected, atol=5e-4, rtol=1e-4)

    def test_head_types_rank_the_heads_that_eager_maps_rank(self, python):
        result = execute("head_types", python, n=6, options={"draws": 1})
        for ours, expected in (("induction", "induction"), ("previous_token", "previous")):
            best = next(iter(CARD["heads"][expected]))
            scores = result[ours]
            place = {"layer": int(best[1]), "head": int(best[3])}
            assert int((scores > scores.sel(place)).sum()) == 0


def test_induction_takes_the_tokenizer_s_own_words(python):
    drawn = tasks.make("induction", python.tokenizer, n=2, length=32)
    words = python.tokenizer.convert_ids_to_tokens(drawn.prompts[0].clean[32:])
    assert len(set(words)) == 32
    assert all(word[0] == "Ġ" and word[1:].isalpha() for word in words)


@pytest.mark.parametrize("tokens", [64, 512, 1024])
def test_openings_fill_the_length_asked_for(python, tokens):
    for text in openings(3, tokens, python.tokenizer):
        assert 0.7 * tokens < len(python.encode(text)) <= tokens
        assert any(file.text.startswith(text) for file in read_library(held_out=True))


def test_openings_refuse_more_than_there_is():
    check_refusal("number", openings, 1, 1_000_000)


def test_card_has_the_measured_numbers():
    card = (FOLDER / "README.md").read_text()
    result = CARD["held_out"]
    for name, numbers in (
        ("this model", result), ("bigram", result["bigram"]), ("unigram", result["unigram"]),
    ):  # fmt: skip
        assert f"| {name} | {numbers['loss']:.2f} | {100 * numbers['accuracy']:.1f} % |" in card
    for name, value in CARD["repeated"].items():
        assert f"| {name} | {100 * value:.1f} % |" in card
