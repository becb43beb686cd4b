"""Pairs: what an encoder–decoder model is given, and what a capture of each attention holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pairs
import pytest
import torch
from refusals import check_refusal, refusal

from headscope.analyses._interventions.ablation import evaluate
from headscope.kernels import statistics
from headscope.probes import Model, Pair, capture, load_model, pattern
from headscope.probes.attention.forward import logits
from headscope.probes.capturing.generation import generate
from headscope.probes.interventions import Window
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.tasks import make
from headscope.probes.storage import dataset_file

SOURCES = ([3, 4, 5, 6, 7, 8, 9], [5, 6, 7])
TARGETS = ([0, 9, 8], [0, 9, 8, 7, 6])
PAIRS = [Pair(*one) for one in zip(SOURCES, TARGETS, strict=True)]
CROSSED = ("entropy", "received", "max_weight", "first_mass", "topk", "pooled_mean", "pattern")


@pytest.fixture(scope="module")
def models(paired_folder: Path) -> dict[str, Model]:
    """The tiny T5 with each of its attentions."""
    first = load_model(paired_folder, attention="encoder")
    others = {name: load_model(first, attention=name) for name in ("decoder", "cross")}
    return {"encoder": first, **others}


def eager(module: Any, source: list[int], target: list[int]) -> dict[str, np.ndarray[Any, Any]]:
    """The model's own weights of each attention, dims layer, head, query, key, in float64."""
    pair = Pair(torch.tensor([source]), torch.tensor([target]))
    weights = {name: torch.cat(pairs.eager(module, name, pair)[1]) for name in pairs.KINDS}
    return {name: one.double().numpy() for name, one in weights.items()}


def test_a_model_is_asked_again_for_another_attention(models):
    assert [models[name].layers for name in ("encoder", "decoder", "cross")] == [2, 3, 3]
    assert len({id(model.module) for model in models.values()}) == 1
    assert load_model(models["cross"]) is models["cross"]
    check_refusal("attention", load_model, "headscope/bundled", attention="cross")


def test_cross_attention_runs_from_target_to_source(models):
    result = capture(models["cross"], PAIRS, stats=CROSSED, tile=4)
    assert (result.sizes["query"], result.sizes["key"]) == (5, 7)
    assert (result.sizes["query_tile"], result.sizes["key_tile"]) == (2, 2)
    assert result["key_length"].values.tolist() == [7, 3]
    assert result["key_token"].values[1].tolist() == ["w2", "w3", "w4", "", "", "", ""]
    assert result["token"].values[0].tolist() == ["<pad>", "w6", "w5", "", ""]
    assert result.attrs["attention"] == "cross"
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        own = eager(models["cross"].module, source, target)["cross"]
        selected = result.isel(prompt=row)
        queries, keys = len(target), len(source)
        close(selected["pattern"].values[..., :queries, :keys], own)
        close(selected["received"].values[..., :keys], own.mean(-2))
        close(selected["entropy"].values[..., :queries], -(own * np.log(own)).sum(-1))
        close(selected["pooled_mean"].values[..., 0, 0], own[..., :4, :4].sum(-1).mean(-1))
        assert np.isnan(selected["pattern"].values[..., queries:, :]).all()
        assert np.isnan(selected["pattern"].values[..., :, keys:]).all()
        assert np.isnan(selected["received"].values[..., keys:]).all()


def close(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("attention", ["encoder", "decoder", "cross"])
def test_a_window_of_the_map_follows_from_q_and_k(attention, models):
    model = models[attention]
    given = list(SOURCES) if attention == "encoder" else PAIRS
    result = capture(model, given, stats=("lse",), keep=("q", "k"))
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        own = eager(model.module, source, target)[attention]
        whole = pattern(result, layer=1, head=2, prompt=row)
        close(whole.values, own[1, 2])
        part = pattern(result, 1, 3, row, queries=slice(1, 3), keys=slice(0, 2))
        close(part.values, own[1, 3, 1:3, :2])
        words = model.to_str_tokens(source if attention != "decoder" else target)
        assert whole["key_token"].values.tolist() == words


def test_statistics_of_places_are_refused_by_name_and_left_out(models):
    positional = [name for name in statistics.names() if statistics.load(name).positional]
    assert {"distance", "offset_mass", "recent_mass", "received_later"} <= set(positional)
    for name in positional:
        line = str(refusal(capture, models["cross"], PAIRS, stats=(name,)))
        assert line.startswith(f"stats: {name} compares the places of query and key")
    assert not set(capture(models["cross"], PAIRS).data_vars) & set(positional)
    assert "distance" in capture(models["decoder"], PAIRS)
    check_refusal("targets", capture, models["cross"], PAIRS, stats=("target_mass",))
    check_refusal("Window", logits, models["cross"], pair(), (Window(((0, 0),), 2),))


def pair() -> Pair:
    return Pair(torch.tensor([SOURCES[0]]), torch.tensor([TARGETS[0]]))


def test_targets_and_spans_are_tokens_of_the_source(models):
    marked = {"targets": {"last": [[[6]] * 3, [[2]] * 5]}, "spans": {"ends": [[0, 6], [0, 2]]}}
    result = capture(models["cross"], PAIRS, stats=("target_mass", "span_mass"), **marked)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        own = eager(models["cross"].module, source, target)["cross"]
        selected = result.isel(prompt=row, query=slice(0, len(target)))
        close(selected["target_mass"].values[..., 0], own[..., -1])
        close(selected["span_mass"].values[..., 0], own[..., 0] + own[..., -1])
    outside = {"stats": ("span_mass",), "spans": {"a": [[0], [3]]}}
    assert "outside prompt 2" in str(refusal(capture, models["cross"], PAIRS, **outside))


def test_a_target_text_becomes_what_the_decoder_reads(models):
    result = read(models["cross"], Pair("w1 w2 w3", "w4 w5"))
    assert result.sources == ((4, 5, 6),)
    labels = torch.tensor([[7, 8, 1]])  # the words and the token that ends them
    shifted = models["cross"].module.prepare_decoder_input_ids_from_labels(labels)
    assert result.ids == (tuple(shifted[0].tolist()),)
    assert result.digest() != read(models["cross"], Pair("w1 w2", "w4 w5")).digest()
    assert result.digest() != read(models["decoder"], Pair("w1 w2 w3", "w4")).digest()


def test_one_text_is_enough_for_the_encoder_alone(models):
    alone = capture(models["encoder"], "w1 w2 w3", stats=("entropy",))["entropy"].values
    both = capture(models["encoder"], Pair("w1 w2 w3", "w9"), stats=("entropy",))["entropy"].values
    assert np.array_equal(alone, both)
    source = pair().source
    started = logits(models["encoder"], Pair(source, torch.zeros(1, 1, dtype=torch.long)))
    assert torch.equal(logits(models["encoder"], source), started)


@pytest.mark.parametrize("attention", ["decoder", "cross"])
def test_half_a_pair_is_refused(attention, models, bundled):
    model = models[attention]
    expected = f"prompt 1 is one text, and the {attention} attention of "
    line = str(refusal(capture, model, "w1 w2"))
    assert expected in line
    assert "Pair(source=..., target=...)" in line
    assert "needs source and target" in str(refusal(logits, model, pair().source))
    assert "prompt 1 is a Pair" in str(refusal(capture, bundled, PAIRS))
    check_refusal("ids", logits, bundled, pair())
    assert "is empty" in str(refusal(capture, model, Pair([], [0])))
    assert "outside the vocabulary" in str(refusal(capture, model, Pair([3], [99])))
    check_refusal("task", evaluate, model, make("induction", n=1, seed=0))
    assert str(refusal(generate, model, PAIRS)).endswith("use capture with a Pair")


def test_a_target_needs_a_start_token(paired_folder):
    model = load_model(paired_folder, attention="cross")
    model.module.config.decoder_start_token_id = None
    assert "decoder_start_token_id" in str(refusal(capture, model, Pair("w1", "w2")))
    assert capture(model, Pair([4], [0, 5]), stats=("entropy",)).sizes["query"] == 2


@pytest.mark.parametrize("attention", ["encoder", "decoder", "cross"])
def test_batches_and_files_hold_the_same_numbers(attention, models, tmp_path):
    model = models[attention]
    three = [*PAIRS, Pair(SOURCES[0], TARGETS[1]), Pair(SOURCES[0][::-1], TARGETS[0])]
    given = [one.source for one in three] if attention == "encoder" else three
    keep = ("q", "k", "resid")
    together = capture(model, given, stats=("entropy", "lse"), keep=keep)
    out = tmp_path / "c.safetensors"
    streamed = capture(model, given, stats=("entropy", "lse"), keep=keep, out=out)
    assert set(streamed.coords) == set(together.coords)
    for name in ("entropy", "q", "k", "resid"):
        np.testing.assert_allclose(streamed[name], together[name], rtol=0, atol=1e-6)
    dataset_file.save(together, tmp_path / "again.safetensors")
    assert dataset_file.load(tmp_path / "again.safetensors").identical(together)
    for row, one in enumerate(given):
        alone = capture(model, [one], stats=("entropy",))["entropy"].values[0]
        close(together["entropy"].values[row][..., : alone.shape[-1]], alone)


@pytest.mark.parametrize("attention", ["encoder", "decoder"])
def test_the_residual_stream_is_that_of_the_chosen_stack(attention, models):
    model = models[attention]
    actual = capture(model, PAIRS[:1], stats=("entropy",), keep=("resid",))["resid"].values[0]
    with torch.no_grad():
        given = {"input_ids": pair().source, "decoder_input_ids": pair().target}
        result = model.module(**given, output_hidden_states=True)
    states = result[f"{attention}_hidden_states"]
    assert len(actual) == len(states) == model.layers + 1
    for ours, own in zip(actual[:-1], states[:-1], strict=True):
        close(ours, own[0].numpy())


def test_other_attentions_of_the_model_are_not_edited(models):
    from headscope.probes.interventions import Ablate

    seen = {name: logits(one, pair(), (Ablate(((0, 1),)),)) for name, one in models.items()}
    plain = logits(models["cross"], pair())
    gaps = [float((one - plain).abs().max()) for one in seen.values()]
    assert min(gaps) > 1e-4
    assert not torch.allclose(seen["decoder"], seen["cross"], atol=1e-4)
    with torch.no_grad():
        own = models["cross"].module(input_ids=pair().source, decoder_input_ids=pair().target)
    torch.testing.assert_close(plain, own.logits, rtol=0, atol=5e-5)
