"""Rows captured while a model writes are the rows of a capture of what it wrote."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from refusals import check_refusal

from headscope.kernels import statistics
from headscope.probes import capture, load_model
from headscope.probes.capturing.generation import generate
from headscope.probes.interventions import Ablate, Window

WHOLE = ("z", "target_mass")
STATS = tuple(
    name
    for name in statistics.names()
    if name not in WHOLE and (statistics.load(name).by_query or name == "received")
)


def written(found: xr.Dataset) -> list[list[int]]:
    return [
        row[:length].tolist()
        for row, length in zip(found["token_id"].values, found["length"].values, strict=True)
    ]


def spans(found: xr.Dataset) -> dict[str, list[list[int]]]:
    """The positions of prompt and generated text."""
    rows = list(zip(found["generated"].values, found["length"].values, strict=True))
    return {
        "prompt": [[at for at in range(length) if not new[at]] for new, length in rows],
        "generated": [[at for at in range(length) if new[at]] for new, length in rows],
    }


@pytest.mark.requirement("B4", "F5")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2", "gpt_oss"])
def test_rows_of_steps_are_rows_of_the_text(family, tiny, ids):
    model = load_model(tiny(family))
    prompts = [ids(11), ids(4, seed=1)]
    options: dict[str, Any] = {"first": 2, "recent": 5, "k": 3, "clip": 9}
    found = generate(model, prompts, STATS, new_tokens=9, options={"eos_token_id": None}, **options)
    assert found["length"].values.tolist() == [20, 13]
    assert found["generated"].sum("query").values.tolist() == [9, 9]
    texts = written(found)
    assert [text[: len(prompt)] for text, prompt in zip(texts, prompts, strict=True)] == prompts
    expected = capture(model, texts, STATS, spans=spans(found), **options)
    for name in STATS:
        if name in ("topk_key", "effective_span"):
            same = (found[name].values == expected[name].values) | found[name].isnull().values
            assert same.mean() > 0.99, name
            continue
        np.testing.assert_allclose(found[name], expected[name], 1e-4, 2e-5, err_msg=name)


def test_the_greedy_text_is_the_models_own(tiny, ids):
    module = tiny("llama")
    prompt, endless = ids(7), {"eos_token_id": None}
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, **endless}
    own = module.generate(torch.tensor([prompt]), **greedy)
    found = generate(load_model(module), [prompt], ("entropy",), new_tokens=6, options=endless)
    assert written(found) == own.tolist()


def test_edits_hold_at_every_step(tiny, ids):
    model = load_model(tiny("llama"))
    edits = (Window(heads=((0, 1),), recent=4, first=1), Ablate(heads=((1, 2),)))
    options = {"eos_token_id": None}
    stats = ("entropy", "recent_mass")
    found = generate(model, [ids(7)], stats, edits, new_tokens=8, options=options)
    expected = capture(model, written(found), ("entropy", "recent_mass"), edits=edits)
    np.testing.assert_allclose(found["entropy"].values, expected["entropy"].values, atol=2e-5)
    plain = generate(model, [ids(7)], ("entropy",), new_tokens=8, options=options)
    assert written(plain) != written(found)
    assert found.attrs["reweighted"]


def test_draws_repeat_with_their_seed(tiny, ids):
    model = load_model(tiny("llama"))
    options = {"eos_token_id": None, "temperature": 2.0}
    given: dict[str, Any] = {"new_tokens": 8, "sample": True, "options": options}
    state = torch.get_rng_state()
    one, same, other = (
        generate(model, [ids(7)], ("entropy",), seed=seed, **given) for seed in (1, 1, 2)
    )
    assert written(one) == written(same)
    assert written(one) != written(other)
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.attrs["sample"], one.attrs["sampling_seed"]) == (True, 1)


@pytest.mark.requirement("B4")
def test_the_bundled_model_looks_back_at_its_prompt(bundled):
    generator = np.random.default_rng(0)
    half = [0, *generator.choice(np.arange(300, 380), 20, replace=False).tolist()]
    found = generate(bundled, [half + half[1:12]], ("span_mass",), new_tokens=8)
    # A repeated half is continued by copying, and copying looks back at the prompt.
    assert written(found)[0][32:40] == half[12:20]
    late = found["span_mass"].isel(prompt=0).where(found["generated"].isel(prompt=0))
    lookback = late.sel(span="prompt") / late.sum("span")
    copying = lookback.mean("query").sel(layer=3, head=[0, 1, 4, 5, 7])
    assert float(copying.min()) > 0.9


def test_what_needs_the_whole_text_is_refused(tiny, ids):
    model = load_model(tiny("llama"))
    for name in ("pooled_mean", "received_last", "target_mass"):
        check_refusal("stats", generate, model, [ids(5)], (name,))
    check_refusal("new_tokens", generate, model, [ids(5)], new_tokens=0)
    check_refusal("prompts", generate, model, [ids(100)], new_tokens=40)
