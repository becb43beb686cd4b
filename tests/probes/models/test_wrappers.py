"""Models inside what others wrap around them are the same models."""

import pytest
import torch
import transformers
from refusals import check_refusal

from headscope.probes import load_model

WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": torch.nn.DataParallel,
    "compiled, then parallel": lambda model: torch.nn.DataParallel(
        torch.compile(model, backend="eager")
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_the_model_inside(wrap, tiny):
    inner = tiny("llama")
    assert load_model(wrap(inner)).module is inner


def test_a_pipeline_brings_its_tokenizer(tiny, words):
    inner = tiny("llama")
    wrapped = transformers.pipeline("text-generation", model=inner, tokenizer=words)
    model = load_model(wrapped)
    assert (model.module, model.tokenizer) == (inner, words)


def test_what_holds_no_model_is_refused(tiny):
    check_refusal("model", load_model, torch.nn.Linear(2, 2))
    check_refusal("model", load_model, torch.nn.Sequential(tiny("llama")))
