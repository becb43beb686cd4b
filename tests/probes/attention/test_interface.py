"""The seam leaves nothing behind, and refuses what it does not know."""

import threading
from typing import Any

import pytest
import torch
from refusals import check_message, check_refusal, refusal
from transformers import AttentionInterface

from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.attention.forward import Reader, logits, run
from headscope.probes.attention.interface import NAME, intercept_attention
from headscope.probes.interventions import Ablate


def fail(call: Any) -> torch.Tensor:
    raise RuntimeError("broken receiver")


def test_the_model_is_restored(tiny, ids):
    module = tiny("llama").train()
    module.model.layers[1].eval()
    flags = [part.training for part in module.modules()]
    with torch.no_grad():
        module.eval()
        own = module(torch.tensor([ids(9)])).logits
        for part, flag in zip(module.modules(), flags, strict=True):
            part.training = flag
    capture(load_model(module), [ids(9)])
    assert module.config._attn_implementation == "sdpa"
    assert [part.training for part in module.modules()] == flags
    with torch.no_grad():
        module.eval()
        assert torch.equal(module(torch.tensor([ids(9)])).logits, own)


def test_the_model_is_restored_after_an_error(tiny, ids):
    module = tiny("llama").train()
    model = load_model(module)
    with pytest.raises(RuntimeError, match=r"broken receiver"), intercept_attention(model, fail):
        module(torch.tensor([ids(5)]))
    assert module.config._attn_implementation == "sdpa"
    assert all(part.training for part in module.modules())
    with torch.no_grad():
        assert torch.isfinite(module(torch.tensor([ids(5)])).logits).all()


def test_a_config_that_asks_for_more_changes_nothing(tiny, ids):
    expected = capture(load_model(tiny("llama")), [ids(9)])
    module = tiny("llama")
    module.set_attn_implementation("eager")
    module.config.output_attentions = True
    module.config.output_hidden_states = True
    module.config.return_dict = False
    assert capture(load_model(module), [ids(9)]).identical(expected)


def test_an_eager_model_stays_eager(tiny, ids):
    module = tiny("gemma2")
    module.set_attn_implementation("eager")
    capture(load_model(module), [ids(9)])
    assert module.config._attn_implementation == "eager"


def test_our_attention_refuses_to_run_outside_a_capture(tiny, ids):
    module = tiny("llama")
    module.set_attn_implementation(NAME)
    check_refusal("attention", module, torch.tensor([ids(5)]))


def test_threads_take_turns(tiny, ids):
    model = load_model(tiny("llama"))
    prompts = [[ids(30, seed=at)] for at in range(6)]
    expected = [capture(model, prompt, stats=("entropy",)) for prompt in prompts]
    result: list[Any] = [None] * 6

    def work(at: int) -> None:
        for _ in range(4):
            result[at] = capture(model, prompts[at], stats=("entropy",))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt, two in zip(expected, result, strict=True):
        assert prompt.identical(two)
    assert model.module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("field", ["alibi", "rotary_bias", "something_new"])
def test_an_unknown_field_is_refused_by_name(field, tiny):
    layer = tiny("llama").model.layers[1].self_attn
    tensors = [torch.zeros(1, heads, 3, 8) for heads in (4, 2, 2)]
    attention = AttentionInterface()[NAME]
    model = load_model(tiny("llama"))
    with (
        pytest.raises(HeadscopeError, match=rf"^{field}: LlamaAttention \(layer 1\)"),
        intercept_attention(model, lambda call: torch.zeros(1, 4, 3, 8)),
    ):
        attention(layer, *tensors, None, scaling=1.0, **{field: torch.zeros(1)})
    with intercept_attention(model, lambda call: torch.zeros(1, 4, 3, 8)):
        attention(layer, *tensors, None, scaling=1.0, **{field: None})


@pytest.mark.parametrize(
    ("fields", "mask", "start"),
    [({"dropout": 0.1}, None, "dropout: "), ({}, torch.zeros(1, 1, 3, 3), "attention_mask: ")],
)
def test_dropout_and_dense_masks_are_refused(fields, mask, start, tiny):
    layer = tiny("llama").model.layers[0].self_attn
    tensors = [torch.zeros(1, heads, 3, 8) for heads in (4, 2, 2)]
    attention = AttentionInterface()[NAME]
    with (
        pytest.raises(HeadscopeError, match=rf"^{start}"),
        intercept_attention(load_model(tiny("llama")), fail),
    ):
        attention(layer, *tensors, mask, **fields)


def test_a_model_outside_the_interface_is_refused_at_an_unknown_step(tiny):
    module = tiny("gptj")
    module.transformer.h[0].attn.attn_dropout.forward = lambda weights: weights * 0.5
    line = str(refusal(load_model, module))
    assert line.startswith("model: GPTJAttention is outside ")
    assert " at mul: its weights" in line


def test_chunked_attention_is_refused(tiny):
    check_message(r"^attention_mask: .*chunked", load_model, tiny("llama4_text"))


def test_a_layer_that_forgets_its_window_is_refused(tiny, ids):
    """The mask has a window of 7 and the layers say nothing of it: silently wrong without this."""
    model = load_model(tiny("mistral"))
    known = AttentionInterface()[NAME]

    def forgetful(*tensors: Any, **fields: Any) -> Any:
        return known(*tensors, **{**fields, "sliding_window": None})

    AttentionInterface.register(NAME, forgetful)
    try:
        check_refusal("sliding_window", capture, model, [ids(20)])
    finally:
        AttentionInterface.register(NAME, known)


def test_every_layer_must_arrive_once(tiny, ids):
    module = tiny("llama")
    model = load_model(module)
    module.model.layers = module.model.layers[:1]
    assert "expected each of [0, 1] once" in str(refusal(capture, model, [ids(5)]))


def test_results_that_are_not_numbers_are_refused(tiny, ids):
    module = tiny("llama")
    model = load_model(module)
    with torch.no_grad():
        module.model.norm.weight[3] = torch.nan
    prompt = torch.tensor([ids(5)])
    with torch.no_grad():
        for work in (lambda: capture(model, [ids(5)]), lambda: logits(model, prompt)):
            assert "NaN or infinite" in str(refusal(work))


def test_run_checks_edits_before_the_model(tiny, ids):
    model = load_model(tiny("llama"))
    reader = Reader(Request(stats=()), (Ablate(((9, 9),)),))
    check_refusal("Ablate.heads", run, model, torch.tensor([ids(5)]), reader, head=False)
    assert reader.layers == []
