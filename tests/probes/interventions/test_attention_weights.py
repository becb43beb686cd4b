"""Edits of weights, and their combinations, against a dense attention written for the test."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from refusals import check_message, check_refusal
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from headscope.probes import capture, load_model, pattern
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import (
    Ablate,
    FixPattern,
    Gate,
    KnockOut,
    Offset,
    Replace,
    ScaleKeys,
    Temperature,
    Window,
    load,
    save,
)

LENGTH = 21
HEADS = ((0, 1), (1, 0), (1, 3))
Change = Callable[[int, int, Tensor], Tensor]


def dense(module: Any, prompt: Tensor, change: Change, name: str) -> Tensor:
    """Run Hugging Face's model; ``change`` turns the logits of one head into its weights."""

    def attend(part: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any):
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores = q @ k.mT * scaling
        scores = scores.masked_fill(mask < 0, -math.inf)
        heads = [change(part.layer_idx, head, scores[:, head]) for head in range(q.shape[1])]
        return (torch.stack(heads, dim=1) @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, eager_mask)
    before = module.config._attn_implementation
    module.set_attn_implementation(name)
    try:
        with torch.no_grad():
            result: Tensor = module(prompt).logits
    finally:
        module.set_attn_implementation(before)
    return result


def scaled(layer: int, head: int, scores: Tensor) -> Tensor:
    weights = scores.softmax(-1)
    if (layer, head) in HEADS:
        weights[..., 0] *= 0.25
        weights[..., 5] *= 0.25
        weights = weights / weights.sum(-1, keepdim=True)
    return weights


def knocked(layer: int, head: int, scores: Tensor) -> Tensor:
    if (layer, head) in HEADS:
        scores[:, -1, 3] = -math.inf
        scores[:, 8, 3] = -math.inf
    return scores.softmax(-1)


def gone(layer: int, head: int, scores: Tensor) -> Tensor:
    if (layer, head) in HEADS:
        scores[:, :, 0] = -math.inf
        return scores.softmax(-1).nan_to_num()  # the first query is left without a key
    return scores.softmax(-1)


def windowed(layer: int, head: int, scores: Tensor) -> Tensor:
    if (layer, head) in HEADS:
        at = torch.arange(LENGTH)
        far = (at[:, None] - at >= 4) & (at >= 2)
        scores = scores.masked_fill(far, -math.inf)
    return scores.softmax(-1)


def heated(layer: int, head: int, scores: Tensor) -> Tensor:
    return (scores / 3.0 if (layer, head) in HEADS else scores).softmax(-1)


def everything(layer: int, head: int, scores: Tensor) -> Tensor:
    if (layer, head) in HEADS:
        scores = scores / 3.0
        scores[..., 0] += math.log(0.25)
        scores[..., 5] += math.log(0.25)
        scores[:, -1, 3] = scores[:, 8, 3] = -math.inf
        return windowed(layer, head, scores)
    return scores.softmax(-1)


UNIFORM = torch.tril(torch.ones(LENGTH, LENGTH)) / torch.arange(1, LENGTH + 1)[:, None]


def fixed(layer: int, head: int, scores: Tensor) -> Tensor:
    return UNIFORM.expand_as(scores) if (layer, head) == (1, 2) else scores.softmax(-1)


SCALE = ScaleKeys(heads=HEADS, keys=(0, 5), factor=0.25)
KNOCK = KnockOut(heads=HEADS, keys=(3,), queries=(-1, 8))
WINDOW = Window(heads=HEADS, recent=4, first=2)
HEAT = Temperature(heads=HEADS, value=3.0)
CASES: dict[str, tuple[tuple[Any, ...], Change]] = {
    "scaled keys": ((SCALE,), scaled),
    "knocked out": ((KNOCK,), knocked),
    "knocked out for all": ((KnockOut(heads=HEADS, keys=(0,)),), gone),
    "scaled to nothing": ((ScaleKeys(heads=HEADS, keys=(0,), factor=0.0),), gone),
    "windowed": ((WINDOW,), windowed),
    "heated": ((HEAT,), heated),
    "fixed": ((FixPattern(head=(1, 2), values=UNIFORM),), fixed),
    "everything": ((SCALE, KNOCK, WINDOW, HEAT), everything),
}


@pytest.mark.requirement("D5")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_an_edit_equals_the_dense_computation(case, family, tiny, ids):
    edits, change = CASES[case]
    module = tiny(family)
    prompt = torch.tensor([ids(LENGTH), ids(LENGTH, seed=1)])
    expected = dense(module, prompt, change, f"test-{case.replace(' ', '-')}")
    with torch.no_grad():
        result = logits(load_model(module), prompt, edits)
        intact = logits(load_model(module), prompt)
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-5)
    assert (intact - expected).abs().max() > 1e-3


def test_a_capture_shows_the_edited_weights(tiny, ids):
    model = load_model(tiny("llama"))
    stats = ("pattern", "recent_mass", "first_mass")
    result = capture(model, [ids(LENGTH)], stats=stats, recent=4, first=2, edits=(WINDOW,))
    chosen = result.sel(layer=1, head=3)
    both = chosen["recent_mass"] + chosen["first_mass"]
    np.testing.assert_allclose(both.values[0, 6:], 1.0, atol=1e-6)
    assert (chosen["pattern"].values[0, 20, 2:17] == 0).all()
    assert (result.sel(layer=1, head=2)["pattern"].values[0, 20, 2:17] > 0).all()
    assert '"edit": "Window"' in result.attrs["edits"]
    kept = capture(model, [ids(9)], keep=("q", "k"), edits=(WINDOW,))
    check_refusal("edits", pattern, kept, layer=0, head=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleKeys(heads=HEADS, keys=(0,), factor=-1.0), "ScaleKeys.factor: -1.0"),
        (lambda: Window(heads=HEADS, recent=0), "Window: recent 0"),
        (lambda: Temperature(heads=HEADS, value=0.0), "Temperature.value: 0.0"),
    ],
)
def test_a_number_out_of_range_is_refused(make, message):
    check_message(message, make)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ScaleKeys(heads=((0, 9),), keys=(0,), factor=2.0), "ScaleKeys.heads: no head 9"),
        (ScaleKeys(heads=((0, 1),), keys=(50,), factor=2.0), "ScaleKeys.keys: no position 50"),
        (KnockOut(heads=((7, 1),), keys=(0,)), "KnockOut.heads: no layer 7"),
        (KnockOut(heads=((0, 1),), keys=(0,), queries=(-40,)), "KnockOut.queries: no position -40"),
        (Window(heads=((2, 1),), recent=3), "Window.heads: no layer 2"),
        (Temperature(heads=((0, -1),), value=3.0), "Temperature.heads: no head -1"),
        (FixPattern(head=(0, 1), values=torch.eye(5)), r"FixPattern.values: shape \(5, 5\)"),
        (FixPattern(head=(0, 1), values=torch.ones(LENGTH, LENGTH)), "pattern: give rows"),
        (Offset(heads=((0, 1),), values=torch.ones(2, 4, 3)), r"Offset.values: shape \(2, 4, 3\)"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit, message, tiny, ids):
    check_message(message, logits, load_model(tiny("llama")), torch.tensor([ids(LENGTH)]), (edit,))


def test_an_offset_shifts_the_columns_of_its_heads(tiny, ids):
    model = load_model(tiny("llama"))
    shift = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    before = capture(model, [ids(9)], stats=(), keep=("z",))["z"]
    edit = Offset(heads=((0, 2),), values=shift)
    after = capture(model, [ids(9)], stats=(), keep=("z",), edits=(edit,))["z"]
    change = (after - before).sel(layer=0).transpose("prompt", "query", "head", "size").values
    moved = np.broadcast_to(shift[0, 2].numpy(), (9, 8))
    np.testing.assert_allclose(change[0, :, 2], moved, atol=1e-6)
    assert (np.delete(change, 2, axis=2) == 0).all()


def test_edits_come_back_from_a_file(tmp_path, tiny, ids):
    model = load_model(tiny("llama"))
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(2, 4, 8, generator=draw)
    weights = (SCALE, KNOCK, WINDOW, HEAT, FixPattern(head=(0, 0), values=UNIFORM))
    put = Offset(heads=((0, 2),), values=values), Replace(heads=((1, 1),), values=values)
    edits = (*weights, Gate(torch.rand(2, 4, generator=draw)), *put, Ablate(heads=((0, 3),)))
    save(edits, tmp_path / "edits.safetensors")
    back = load(tmp_path / "edits.safetensors")
    assert [edit.describe() for edit in back] == [edit.describe() for edit in edits]
    prompt = torch.tensor([ids(LENGTH)])
    with torch.no_grad():
        assert torch.equal(logits(model, prompt, back), logits(model, prompt, edits))
    (tmp_path / "edits.safetensors").write_bytes(b"broken")
    check_refusal("path", load, tmp_path / "edits.safetensors")
