"""The bundled model: its files, and what it can do on held-out prompts."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from headscope.probes.bundled import folder
from headscope.probes.prompts.tasks._words import KINDS
from headscope_training.story.evaluation import Evaluation
from headscope_training.words import vocabulary

FOLDER = folder("headscope/bundled")

SHIPPED = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    return Evaluation(model, AutoTokenizer.from_pretrained(FOLDER), 60)


def test_files_are_there_and_small():
    assert all((FOLDER / name).is_file() for name in SHIPPED)
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) <= 12_000_000


def test_shape_is_the_one_promised(evaluation):
    config = evaluation.model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (4, 8)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 1024)
    assert evaluation.model.dtype == torch.float32
    assert isinstance(evaluation.model, LlamaForCausalLM)


def test_tokens_are_words_behind_a_bos(evaluation):
    ids = evaluation.tokenizer("When Mary, in 1732, saw ([")["input_ids"]
    assert evaluation.tokenizer.convert_ids_to_tokens(ids) == [
        "<bos>", "When", "Mary", ",", "in", "17", "32", ",", "saw", "(", "[",
    ]  # fmt: skip
    assert ids[0] == evaluation.tokenizer.bos_token_id


def test_every_task_word_is_a_token(evaluation):
    known = evaluation.tokenizer.get_vocab()
    assert {word for kind in KINDS.values() for word in kind} <= known.keys()
    assert known == vocabulary()
    assert len(known) == evaluation.model.config.vocab_size


class TestHeldOut:
    @pytest.mark.parametrize("length", [16, 64, 128, 256])
    def test_induction(self, evaluation, length):
        assert evaluation.accuracy("induction", 4, length=length) >= 0.95

    def test_recall_at_512_at_every_depth(self, evaluation):
        result = Evaluation(evaluation.model, evaluation.tokenizer, 25).recall(512, 8)
        assert result["all"] >= 0.95
        assert len(result["by_depth"]) == 5
        assert min(result["by_depth"].values()) >= 0.9

    def test_needle_at_512_at_every_depth(self, evaluation):
        result = Evaluation(evaluation.model, evaluation.tokenizer, 20).needle(512)
        assert result["all"] >= 0.95
        assert min(result["by_depth"].values()) >= 0.8

    @pytest.mark.parametrize("order", ["ABBA", "BABA"])
    def test_indirect_object(self, evaluation, order):
        assert evaluation.indirect_object("ioi", order=order)["above_zero"] >= 0.95

    def test_story(self, evaluation):
        assert evaluation.indirect_object("story")["above_zero"] >= 0.95

    def test_greater_than(self, evaluation):
        result = evaluation.greater_than()
        assert result["mean"] >= 0.5
        assert result["lowest"] > 0

    def test_brackets(self, evaluation):
        assert evaluation.accuracy("brackets", length=12) >= 0.8


def test_card_has_the_measured_numbers():
    numbers = json.loads((FOLDER / "card.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for path in (
        ("induction", "half_64"),
        ("induction", "half_256"),
        ("recall", "length_512_pairs_8", "all"),
        ("recall", "length_512_pairs_32", "all"),
        ("recall", "length_1000_pairs_8", "all"),
        ("needle", "length_512", "all"),
        ("needle", "length_1000", "all"),
        ("ioi", "ABBA", "above_zero"),
        ("ioi", "BABA", "above_zero"),
        ("story", "above_zero"),
        ("brackets", "length_16"),
    ):
        value = numbers
        for step in path:
            value = value[step]
        assert f"| {'.'.join(path)} | {100 * value:.1f} % |" in card
    assert f"| greater_than.mean | {numbers['greater_than']['mean']:.3f} |" in card
