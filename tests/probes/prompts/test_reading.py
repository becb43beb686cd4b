"""What a user gives as prompts is what the model reads, or is refused."""

import copy

import pytest
import torch
from refusals import check_refusal

from headscope.probes import capture, load_model
from headscope.probes.prompts.reading import read


@pytest.fixture
def model(tiny, words):
    padding = copy.deepcopy(words)
    padding.add_special_tokens({"pad_token": "w61"})
    return load_model(tiny("llama"), tokenizer=padding)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "pt"])
def test_what_a_tokenizer_returns_is_read_without_its_padding(side, tensors, model):
    texts = ["w1 w2", "w3 w4 w5 w6"]
    rows = model.tokenizer(texts, padding=True, padding_side=side, return_tensors=tensors)
    assert read(model, rows) == read(model, texts)
    assert read(model, dict(rows)) == read(model, texts)
    check_refusal("prompts", read, model, rows["input_ids"])


def test_a_mask_with_holes_and_another_mapping_are_refused(model):
    rows = {"input_ids": [[0, 3, 4]], "attention_mask": [[1, 0, 1]]}
    check_refusal("attention_mask", read, model, rows)
    check_refusal("attention_mask", read, model, {**rows, "attention_mask": [[1, 1, 1]] * 2})
    check_refusal("prompts", read, model, {"text": ["w1"]})


def test_one_row_and_rows_without_a_mask_are_taken_as_they_stand(model):
    check_refusal("prompts", read, model, {"input_ids": [[0, 3, model.tokenizer.pad_token_id]]})
    assert read(model, {"input_ids": [0, 3, 4]}).ids == ((0, 3, 4),)
    assert read(model, {"input_ids": torch.tensor([[0, 3], [0, 4]])}).ids == ((0, 3), (0, 4))


def test_a_chat_is_written_by_its_template_with_one_bos(model):
    chat = [{"role": "user", "content": "w1"}]
    check_refusal("prompts", read, model, [chat])
    model.tokenizer.chat_template = (
        "<bos>{% for one in messages %} w9 {{ one.content }}{% endfor %}"
        "{% if add_generation_prompt %} w8{% endif %}"
    )
    assert read(model, [chat]).ids == (tuple(model.encode("w9 w1 w8")),)
    answered = [*chat, {"role": "assistant", "content": "w2"}]
    assert read(model, [answered]).ids == (tuple(model.encode("w9 w1 w9 w2")),)


def test_half_of_a_surrogate_pair_is_refused(model):
    check_refusal("prompts", capture, model, "w1 \ud83d")
