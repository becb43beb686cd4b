"""The capture against Hugging Face's eager attention, statistic by statistic."""

from typing import Any

import numpy as np
import pytest
import torch

from headscope.kernels import statistics
from headscope.probes import capture, load_model

TOLERANCE = 5e-5
OPTIONS: dict[str, Any] = {
    "first": 2, "offsets": (0, 1, 3), "tile": 8, "clip": 11, "recent": 4, "share": 0.7, "k": 3,
    "horizon": (2, 7), "last": 5,
}  # fmt: skip


def spans(*lengths: int) -> dict[str, list[list[int]]]:
    """Cut prompts into spans that overlap, and some of which a prompt of one token lacks."""
    return {
        "start": [list(range(min(3, length))) for length in lengths],
        "even": [list(range(0, length, 2)) for length in lengths],
        "late": [list(range(1, length, 5)) for length in lengths],
    }


# Layer -> window; gemma 2 alternates, starting with a window.
WINDOWS = {
    **dict.fromkeys(("llama", "gpt2", "gpt_neox"), (None, None)),
    "mistral": (7, 7),
    **dict.fromkeys(("gemma2", "gpt_oss"), (7, None)),
}


@pytest.mark.parametrize("family", WINDOWS)
@pytest.mark.parametrize("length", [1, 33])
def test_every_statistic_equals_eager(family, length, tiny, ids, eager, recompute, choose):
    module = tiny(family)
    prompt = [token % 9 for token in ids(length)]
    keep, targets = ("q", "k", "v", "z", "resid"), ("duplicate", "induction")
    options = {"keep": keep, "targets": targets, "spans": spans(length), **OPTIONS}
    result = capture(load_model(module), [prompt], stats=statistics.names(), **options)
    weights, mixed, stream = eager(module, prompt)
    assert set(result.data_vars) == {*statistics.names(), "q", "k", "v", "resid"}
    for layer, window in enumerate(WINDOWS[family]):
        selected = result.isel(prompt=0, layer=layer)
        for name in sorted(set(statistics.names()) - {"z", "lse"}):
            if name in choose:
                choose[name](selected, weights=weights[layer], share=OPTIONS["share"])
                continue
            cut = {span: at[0] for span, at in spans(length).items()}
            expected = recompute(weights[layer], name, prompt, window, spans=cut, **OPTIONS)
            near = {"rtol": 0, "atol": TOLERANCE, "err_msg": f"{name} L{layer}"}
            np.testing.assert_allclose(selected[name].values, expected, **near)
        z = selected["z"].transpose("query", "head", "size").values.reshape(length, -1)
        np.testing.assert_allclose(z, mixed[layer], rtol=0, atol=TOLERANCE)
        _check_lse(selected, weights[layer])
    for boundary in range(2):
        resid = result["resid"].values[0, boundary]
        np.testing.assert_allclose(resid, stream[boundary], rtol=0, atol=TOLERANCE)


def _check_lse(one: Any, weights: Any) -> None:
    """Compare s - log P, at the largest weight of every row, with lse."""
    group = one["kv_group"].values
    query, key = one["q"].values.astype(np.float64), one["k"].values.astype(np.float64)[group]
    scores = np.einsum("hqd,hkd->hqk", query, key) * float(one["logit_scale"])
    softcap = float(one["softcap"])
    if not np.isnan(softcap):
        scores = softcap * np.tanh(scores / softcap)
    best = weights.argmax(-1)[..., None]
    largest = np.take_along_axis(weights, best, -1)[..., 0]
    score = np.take_along_axis(scores, best, -1)[..., 0]
    lse = one["lse"].values
    np.testing.assert_allclose(lse, score - np.log(largest), rtol=0, atol=TOLERANCE)


def test_the_last_boundary_is_the_output_of_the_last_block(tiny, ids):
    module = tiny("llama")
    seen: list[torch.Tensor] = []
    handle = module.model.norm.register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    prompt = ids(20)
    with torch.no_grad():
        module(torch.tensor([prompt]))
    handle.remove()
    result = capture(load_model(module), [prompt], stats=(), keep=("resid",))
    assert result["resid"].dims == ("prompt", "boundary", "query", "channel")
    np.testing.assert_allclose(result["resid"].values[0, -1], seen[0][0], rtol=0, atol=TOLERANCE)


def test_weights_are_peaked_enough_for_parity_to_mean_something(tiny, ids):
    for family in WINDOWS:
        largest = capture(load_model(tiny(family)), [ids(33)], stats=("max_weight",))["max_weight"]
        assert float(largest.isel(query=slice(8, None)).mean()) > 0.2, family


@pytest.mark.requirement("F6")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_prompts_of_unequal_length_equal_single_ones(family, tiny, ids):
    model = load_model(tiny(family))
    prompts = [ids(17), ids(5, seed=1), ids(17, seed=2), ids(1, seed=3), ids(30, seed=4)]
    settings: dict[str, Any] = {
        "stats": statistics.names(),
        "keep": ("q", "k", "v", "z", "resid"),
        **OPTIONS,
    }
    cut = spans(*map(len, prompts))
    together = capture(model, prompts, batch_tokens=34, spans=cut, **settings)
    assert together["length"].values.tolist() == [17, 5, 17, 1, 30]
    for row, prompt in enumerate(prompts):
        single = capture(model, [prompt], spans=spans(len(prompt)), **settings).isel(prompt=0)
        for name, expected in single.data_vars.items():
            both = together[name].isel(prompt=row).values
            corner = tuple(slice(0, size) for size in expected.shape)
            np.testing.assert_allclose(both[corner], expected.values, rtol=0, atol=2e-6)
            outside = np.ones(both.shape, dtype=bool)
            outside[corner] = False
            assert np.isnan(both[outside]).all(), name
        assert single["token"].values.tolist() == [str(token) for token in prompt]
        assert together["token"].values[row, len(prompt) :].tolist() == [""] * (30 - len(prompt))
        assert (together["token_id"].values[row, len(prompt) :] == -1).all()


def test_half_precision_is_stored_in_float32_and_close(tiny, ids):
    prompt = ids(24)
    exact = capture(load_model(tiny("llama")), [prompt], stats=("entropy",), keep=("q",))
    module = tiny("llama").to(torch.bfloat16)
    half = capture(load_model(module), [prompt], stats=("entropy",), keep=("q",))
    assert half.attrs["dtype"] == "bfloat16"
    assert half["q"].dtype == np.float32
    np.testing.assert_allclose(half["entropy"].values, exact["entropy"].values, rtol=0, atol=0.15)
    assert not np.array_equal(half["entropy"].values, exact["entropy"].values)
