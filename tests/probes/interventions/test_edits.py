"""Edits against the dense computation, and gates against finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal

from headscope.probes import capture, load_model
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate, Gate, Replace

HEADS = ((0, 1), (1, 0), (1, 3))


def with_columns(module: Any, prompt: torch.Tensor, change: Any) -> torch.Tensor:
    """Run Hugging Face's own model, the input of each output projection changed by a hook."""
    handles = []
    for layer, block in enumerate(module.model.layers):

        def hook(part: Any, given: Any, layer: int = layer) -> Any:
            z = given[0].clone().unflatten(-1, (4, -1))  # batch, query, head, size
            change(layer, z)
            return (z.flatten(-2),)

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            result: torch.Tensor = module(prompt).logits
    finally:
        for handle in handles:
            handle.remove()
    return result


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_ablation_equals_zeroed_columns(family, tiny, ids):
    module = tiny(family)
    prompt = torch.tensor([ids(21), ids(21, seed=1)])

    def zero(layer: int, z: torch.Tensor) -> None:
        for head in [head for at, head in HEADS if at == layer]:
            z[:, :, head] = 0

    expected = with_columns(module, prompt, zero)
    with torch.no_grad():
        result = logits(load_model(module), prompt, (Ablate(heads=HEADS),))
        intact = logits(load_model(module), prompt)
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-5)
    assert (intact - expected).abs().max() > 1e-2


def test_mean_replacement_equals_overwritten_columns(tiny, ids):
    module = tiny("llama")
    model = load_model(module)
    reference = capture(model, [ids(20, seed=at) for at in range(4)], stats=(), keep=("z",))
    mean = torch.from_numpy(reference["z"].mean(("prompt", "query")).values)
    prompt = torch.tensor([ids(21)])

    def overwrite(layer: int, z: torch.Tensor) -> None:
        for head in [head for at, head in HEADS if at == layer]:
            z[:, :, head] = mean[layer, head]

    expected = with_columns(module, prompt, overwrite)
    with torch.no_grad():
        result = logits(model, prompt, (Replace(heads=HEADS, values=mean),))
        zeroed = logits(model, prompt, (Ablate(heads=HEADS),))
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-5)
    assert (zeroed - expected).abs().max() > 1e-3


def test_edits_compose_in_the_order_given(tiny, ids):
    module = tiny("llama")
    model = load_model(module)
    prompt = torch.tensor([ids(21)])
    fixed = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    put, half = Replace(heads=((0, 2),), values=fixed), Gate(torch.full((2, 4), 0.5))

    def after(layer: int, z: torch.Tensor) -> None:
        if layer == 0:
            z[:, :, 2] = fixed[0, 2]
        z *= 0.5

    def before(layer: int, z: torch.Tensor) -> None:
        z *= 0.5
        if layer == 0:
            z[:, :, 2] = fixed[0, 2]

    with torch.no_grad():
        for edits, change in (((put, half), after), ((half, put), before)):
            expected = with_columns(module, prompt, change)
            torch.testing.assert_close(logits(model, prompt, edits), expected, rtol=0, atol=5e-5)


def test_a_capture_sees_the_edit_downstream_and_keeps_z_after_it(tiny, ids):
    model = load_model(tiny("llama"))
    prompt = ids(21)
    intact = capture(model, [prompt], keep=("z",))
    edited = capture(model, [prompt], keep=("z",), edits=(Ablate(heads=((0, 1),)),))
    assert (edited["z"].sel(layer=0, head=1) == 0).all()
    assert np.array_equal(intact["entropy"].sel(layer=0), edited["entropy"].sel(layer=0))
    assert not np.allclose(intact["entropy"].sel(layer=1), edited["entropy"].sel(layer=1))
    assert intact.attrs["edits"] == ""
    assert edited.attrs["edits"] == '[{"edit": "Ablate", "heads": [[0, 1]]}]'


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_the_gradient_of_a_gate_equals_finite_differences(family, tiny, ids):
    model = load_model(tiny(family).requires_grad_(False))
    prompt = torch.tensor([ids(13)])

    def output(values: torch.Tensor) -> torch.Tensor:
        last = logits(model, prompt, (Gate(values),))[0, -1].double()
        return last[7] - last[9]

    gate = torch.full((2, 4), 0.9, requires_grad=True)
    output(gate).backward()
    assert gate.grad is not None
    step = 1e-2
    numeric = torch.zeros(2, 4)
    with torch.no_grad():
        for layer in range(2):
            for head in range(4):
                bump = torch.zeros(2, 4)
                bump[layer, head] = step
                up, down = output(0.9 + bump), output(0.9 - bump)
                numeric[layer, head] = (up - down) / (2 * step)
    assert numeric.abs().max() > 1e-2
    torch.testing.assert_close(gate.grad, numeric, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_logits_with_gradients_equal_logits_without(family, tiny, ids):
    model = load_model(tiny(family))
    prompt = torch.tensor([ids(13)])
    gate = torch.ones(2, 4, requires_grad=True)
    with torch.no_grad():
        plain = logits(model, prompt)
    differentiable = logits(model, prompt, (Gate(gate),))
    assert differentiable.requires_grad
    torch.testing.assert_close(differentiable.detach(), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "start"),
    [
        (Ablate(heads=((2, 0),)), "Ablate.heads: no layer 2; the model has layers 0 to 1"),
        (Ablate(heads=((0, 4),)), "Ablate.heads: no head 4; every layer has heads 0 to 3"),
        (Ablate(heads=((0, -1),)), "Ablate.heads: no head -1"),
        (Gate(torch.ones(4, 2)), "Gate.values: shape (4, 2)"),
        (Replace(((0, 0),), torch.ones(2, 4, 7)), "Replace.values: shape (2, 4, 7)"),
        (Replace(((0, 5),), torch.ones(2, 4, 8)), "Replace.heads: no head 5"),
        (Replace(((1, 2),), torch.full((2, 4, 8), torch.nan)), "Replace.values: L1H2 holds NaN or"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, start, tiny):
    model = load_model(tiny("llama"))
    assert start in str(refusal(capture, model, [[1, 2, 3]], edits=(edit,)))
