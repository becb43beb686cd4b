"""Rows captured while a model writes are the rows of a capture of what it wrote."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from refusals import check_refusal

from headscope.kernels import statistics
from headscope.probes import capture, load_model, tasks
from headscope.probes.capturing.generation import generate
from headscope.probes.interventions import Ablate, Window

WHOLE = ("z", "target_mass")
STATS = tuple(
    name
    for name in statistics.names()
    if name not in WHOLE and (statistics.load(name).by_query or name == "received")
)


def written(capture: xr.Dataset) -> list[list[int]]:
    return [
        row[:length].tolist()
        for row, length in zip(capture["token_id"].values, capture["length"].values, strict=True)
    ]


def spans(capture: xr.Dataset) -> dict[str, list[list[int]]]:
    """The positions of prompt and generated text."""
    rows = list(zip(capture["generated"].values, capture["length"].values, strict=True))
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
    result = generate(
        model, prompts, STATS, new_tokens=9, options={"eos_token_id": None}, **options
    )
    assert result["length"].values.tolist() == [20, 13]
    assert result["generated"].sum("query").values.tolist() == [9, 9]
    texts = written(result)
    assert [text[: len(prompt)] for text, prompt in zip(texts, prompts, strict=True)] == prompts
    expected = capture(model, texts, STATS, spans=spans(result), **options)
    for name in STATS:
        if name in ("topk_key", "effective_span", "span_without_first"):
            same = (result[name].values == expected[name].values) | result[name].isnull().values
            assert same.mean() > 0.99, name
            continue
        np.testing.assert_allclose(result[name], expected[name], 1e-4, 2e-5, err_msg=name)


def test_the_greedy_text_is_the_models_own(tiny, ids):
    module = tiny("llama")
    prompt, endless = ids(7), {"eos_token_id": None}
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, **endless}
    own = module.generate(torch.tensor([prompt]), **greedy)
    result = generate(load_model(module), [prompt], ("entropy",), new_tokens=6, options=endless)
    assert written(result) == own.tolist()


def test_edits_hold_at_every_step(tiny, ids):
    model = load_model(tiny("llama"))
    edits = (Window(heads=((0, 1),), recent=4, first=1), Ablate(heads=((1, 2),)))
    options = {"eos_token_id": None}
    stats = ("entropy", "recent_mass")
    result = generate(model, [ids(7)], stats, edits, new_tokens=8, options=options)
    expected = capture(model, written(result), ("entropy", "recent_mass"), edits=edits)
    np.testing.assert_allclose(result["entropy"].values, expected["entropy"].values, atol=2e-5)
    plain = generate(model, [ids(7)], ("entropy",), new_tokens=8, options=options)
    assert written(plain) != written(result)
    assert result.attrs["reweighted"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_edits_can_begin_with_the_last_token_of_the_prompt(family, tiny, ids):
    """The rows before it are those of the clean model, and its keys and values stay."""
    model = load_model(tiny(family))
    given: dict[str, Any] = {"new_tokens": 8, "options": {"eos_token_id": None}}
    prompt, stats = ids(7), ("entropy", "max_weight")
    plain = generate(model, [prompt], stats, **given)
    same = generate(model, [prompt], stats, prefill_edited=False, **given)
    assert written(same) == written(plain)
    np.testing.assert_allclose(same["entropy"], plain["entropy"], atol=2e-5)
    edits = (Ablate(heads=((0, 0), (0, 1), (0, 2))),)
    edited = generate(model, [prompt], stats, edits, prefill_edited=False, **given)
    rows = [each["entropy"].values[0] for each in (plain, edited)]
    np.testing.assert_allclose(rows[0][..., :6], rows[1][..., :6], atol=2e-5)
    # The last layer reads what the edited heads wrote, at the last token and not before it.
    assert np.abs(rows[0][-1, :, 6] - rows[1][-1, :, 6]).max() > 1e-4


def test_draws_repeat_with_their_seed(tiny, ids):
    model = load_model(tiny("llama"))
    options = {"eos_token_id": None, "temperature": 2.0}
    given: dict[str, Any] = {"new_tokens": 8, "sample": True, "options": options}
    state = torch.get_rng_state()
    first, same, second = (
        generate(model, [ids(7)], ("entropy",), seed=seed, **given) for seed in (1, 1, 2)
    )
    assert written(first) == written(same)
    assert written(first) != written(second)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.attrs["sample"], first.attrs["sampling_seed"]) == (True, 1)


@pytest.mark.requirement("B4")
def test_the_bundled_model_attends_back_to_its_prompt(bundled):
    generator = np.random.default_rng(0)
    half = [0, *generator.choice(np.arange(300, 380), 20, replace=False).tolist()]
    result = generate(bundled, [half + half[1:12]], ("span_mass",), new_tokens=8)
    # A repeated half is continued by copying, and copying attends back to the prompt.
    assert written(result)[0][32:40] == half[12:20]
    late = result["span_mass"].isel(prompt=0).where(result["generated"].isel(prompt=0))
    lookback = late.sel(span="prompt") / late.sum("span")
    copying = lookback.mean("query").sel(layer=3, head=[0, 1, 4, 5, 7])
    assert float(copying.min()) > 0.9


def test_the_wording_of_a_task_and_its_draws_are_recorded(bundled):
    task = replace(tasks.make("recall", bundled.tokenizer, 2, register="plain"), redrawn=3)
    for made in (generate(bundled, task, ("entropy",), new_tokens=1), capture(bundled, task)):
        assert (made.attrs["task"], made.attrs["register"]) == ("recall", "plain")
        assert made.attrs["redrawn"] == 3


def test_what_needs_the_whole_text_is_refused(tiny, ids):
    model = load_model(tiny("llama"))
    for name in ("pooled_mean", "received_last", "target_mass"):
        check_refusal("stats", generate, model, [ids(5)], (name,))
    check_refusal("new_tokens", generate, model, [ids(5)], new_tokens=0)
    check_refusal("prompts", generate, model, [ids(100)], new_tokens=40)


@pytest.mark.parametrize(
    "option",
    [{"num_beams": 3}, {"num_return_sequences": 2}, {"guidance_scale": 2.0}, {"use_cache": False},
     {"cache_implementation": "static"}, {"return_dict_in_generate": True}],
    ids=str,
)  # fmt: skip
def test_what_no_row_can_follow_is_refused_by_name(option, tiny):
    model = tiny("llama")
    check_refusal("options", generate, model, [[0, 5]], options=option)
    name, value = next(iter(option.items()))
    setattr(model.generation_config, name, value)
    if name == "use_cache":  # which the call sets itself
        assert generate(model, [[0, 5]], stats=("entropy",), new_tokens=1).sizes["query"] == 3
        return
    check_refusal("generation_config", generate, model, [[0, 5]])


def test_text_that_would_outgrow_the_frequencies_of_its_keys_is_refused(long_rope):
    check_refusal("new_tokens", generate, long_rope, [[0] * 30], new_tokens=4)
    assert generate(long_rope, [[0] * 30], new_tokens=2).sizes["query"] == 32


def test_prompts_on_both_sides_of_a_change_of_frequencies_are_not_padded_together(long_rope):
    prompts = [[0, *range(1, 31)], [0, *range(1, 33)]]
    alone, together = (
        capture(long_rope, given, stats=("max_weight",))["max_weight"].values[0, :, :, :31]
        for given in (prompts[:1], prompts)
    )
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.fixture
def long_rope():
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [4.0, 3.0, 2.0, 8.0], "original_max_position_embeddings": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.3, bos_token_id=0, eos_token_id=None, pad_token_id=0,
        original_max_position_embeddings=32, rope_parameters=rope,
    )  # fmt: skip
    return load_model(transformers.Phi3ForCausalLM(config).eval())
