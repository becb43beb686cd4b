"""The Dataset that a capture returns, and the prompts that it refuses."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from refusals import check_refusal, refusal

from headscope.kernels import statistics
from headscope.probes import capture, load_model
from headscope.probes.attention import work
from headscope.probes.capturing.options import DEFAULT
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import encode


@pytest.fixture(scope="module")
def model(folder: Any) -> Model:
    return load_model(folder)


def test_the_schema(model):
    given, keep = ["w1 w2 w3 w1 w2", "w5"], ("q", "k", "v", "z", "resid")
    spans = {"start": [[0, 1], [0]], "end": [[5], []]}
    options = {"offsets": (0, 2), "tile": 4, "k": 3, "spans": spans}
    result = capture(model, given, stats=statistics.names(), keep=keep, **options)
    assert dict(result.sizes) == {
        "prompt": 2, "layer": 2, "head": 4, "kv_head": 2, "query": 6, "key": 6, "size": 8,
        "query_tile": 2, "key_tile": 2, "offset": 2, "target": 2, "boundary": 3, "channel": 32,
        "span": 2, "bin": 4, "rank": 3,
    }  # fmt: skip
    for name in set(statistics.names()) - {"z"}:
        declared = statistics.load(name)
        variable = result[name]
        assert variable.dims == ("prompt", "layer", "head", *declared.dims)
        assert variable.dtype == np.float32
        assert variable.attrs["long_name"] == declared.doc.strip().splitlines()[0].rstrip(".")
        assert variable.attrs["units"] == declared.units
        assert variable.attrs["scale"] in ("sequential", "diverging")
        assert variable.attrs.get("low") == declared.low
        assert variable.attrs.get("high") == declared.high
    assert result["k"].dims == ("prompt", "layer", "kv_head", "key", "size")
    assert result["z"].dims == ("prompt", "layer", "head", "query", "size")
    assert result["kv_group"].values.tolist() == [0, 0, 1, 1]
    words = [["<bos>", "w1", "w2", "w3", "w1", "w2"], ["<bos>", "w5", "", "", "", ""]]
    assert result["token"].values.tolist() == words
    assert result["token_id"].values[1].tolist() == [0, 7, -1, -1, -1, -1]
    assert result["offset"].values.tolist() == [0, 2]
    assert result["target"].values.tolist() == ["duplicate", "induction"]
    assert result["span"].values.tolist() == ["start", "end"]
    assert result["bin"].values.tolist() == [0, 1, 2, 4]
    assert result["rank"].values.tolist() == [1, 2, 3]
    assert result["causal"].values.tolist() == [True, True]
    np.testing.assert_allclose(result["logit_scale"].values, 8**-0.5)
    assert np.isnan(result["window"].values).all()


def test_the_provenance(model):
    result = capture(model, [[1, 2, 3]], first=3, clip=9, recent=5, share=0.5, k=2)
    assert json.loads(json.dumps(result.attrs)) == result.attrs
    for _, variable in result.variables.items():
        assert json.loads(json.dumps(variable.attrs)) == variable.attrs
    attrs = result.attrs
    assert attrs["stats"] == list(DEFAULT)
    assert (attrs["first"], attrs["clip"], attrs["tile"]) == (3, 9, 16)
    assert (attrs["recent"], attrs["share"], attrs["k"]) == (5, 0.5, 2)
    assert (attrs["n_prompts"], attrs["task"], attrs["seed"]) == (1, "", "")
    assert (attrs["dtype"], attrs["architecture"]) == ("float32", "LlamaForCausalLM")
    other = capture(model, [[1, 2, 4]]).attrs["prompts_sha256"]
    assert len(other) == 64
    assert attrs["prompts_sha256"] != other
    assert attrs["prompts_sha256"] == capture(model, [np.array([1, 2, 3])]).attrs["prompts_sha256"]


def test_a_task_brings_its_name_seed_and_evidence(bundled):
    task = tasks.make("recall", tokenizer=bundled.tokenizer, n=2, seed=5)
    result = capture(bundled, task, stats=("target_mass", "pattern"))
    assert (result.attrs["task"], result.attrs["seed"]) == ("recall", 5)
    encoded = encode(task, bundled.tokenizer)
    assert result["token_id"].values[0].tolist()[: len(encoded.ids[0])] == list(encoded.ids[0])
    mass = result["target_mass"].sel(target="evidence")
    asked = encoded.questions[1][0]
    at, evidence = asked.at, list(asked.evidence)
    expected = result["pattern"].isel(prompt=1, query=at, key=evidence).sum("key")
    np.testing.assert_allclose(mass.isel(prompt=1, query=at), expected, rtol=0, atol=1e-6)
    places = {question.at for question in encoded.questions[1]}
    present = np.isfinite(mass.isel(prompt=1, layer=0, head=0).values)
    assert set(np.flatnonzero(present)) == places


def test_targets_can_be_given(model):
    keys = [[[], [0], [0, 1]], [[0], []]]
    stats, targets = ("target_mass", "pattern"), {"mine": keys}
    result = capture(model, [[5, 6, 7], [8, 9]], stats=stats, targets=targets)
    mass = result["target_mass"].sel(target="mine")
    weights = result["pattern"]
    expected = weights.isel(prompt=0, query=2, key=[0, 1]).sum("key")
    np.testing.assert_allclose(mass.isel(prompt=0, query=2), expected, rtol=0, atol=1e-6)
    assert np.isnan(mass.isel(prompt=0, query=0)).all()
    assert np.isnan(mass.isel(prompt=1, query=1)).all()
    assert (mass.isel(prompt=1, query=0) == 1).all()


def test_spans_are_named_and_may_overlap(model):
    spans = {"outer": [[0, 1, 2], [1]], "inner": [[1], []], "nowhere": [[], []]}
    result = capture(model, [[5, 6, 7], [8, 9]], stats=("span_mass", "pattern"), spans=spans)
    mass, weights = result["span_mass"], result["pattern"]
    for row, at in ((0, [0, 1, 2]), (1, [1])):
        expected = weights.isel(prompt=row, key=at).sum("key", skipna=False)
        outer = mass.sel(span="outer").isel(prompt=row)
        np.testing.assert_allclose(outer, expected, rtol=0, atol=1e-6)
    inner = mass.sel(span="inner")
    np.testing.assert_allclose(inner[0], weights.isel(prompt=0, key=1), rtol=0, atol=1e-6)
    assert np.isnan(inner[1]).all()
    assert np.isnan(mass.sel(span="nowhere")).all()


def test_a_task_brings_its_roles_as_spans(bundled):
    task = tasks.make("needle", tokenizer=bundled.tokenizer, n=2, seed=5)
    encoded = encode(task, bundled.tokenizer)
    result = capture(bundled, task, stats=("span_mass", "pattern"))
    assert result["span"].values.tolist() == list(encoded.roles[0])
    for row, roles in enumerate(encoded.roles):
        for name, at in roles.items():
            mass = result["span_mass"].sel(span=name).isel(prompt=row)
            expected = result["pattern"].isel(prompt=row, key=list(at)).sum("key")
            length = len(encoded.ids[row])
            np.testing.assert_allclose(mass[..., :length], expected[..., :length], atol=1e-6)
    one = capture(bundled, task, stats=("span_mass",), spans="needle")["span_mass"]
    assert one["span"].values.tolist() == ["needle"]
    np.testing.assert_allclose(one[..., 0], result["span_mass"].sel(span="needle"), atol=1e-6)
    line = str(refusal(capture, bundled, task, stats=("span_mass",), spans=("hay",)))
    assert line.startswith("spans: no role 'hay'; choose from needle, key, query, value")


def test_the_tile_keeps_the_map_small(bundled):
    short = capture(bundled, [[3] * 100], stats=("pooled_mean",))
    assert (short.attrs["tile"], short.sizes["key_tile"]) == (16, 7)
    long = capture(bundled, [[3] * 1024], stats=("pooled_mean",))
    assert (long.attrs["tile"], long.sizes["key_tile"]) == (16, 64)


def test_progress_counts_tokens_of_every_layer(model):
    """Of one long prompt among short ones most of the bar is the long one's."""
    reports: list[tuple[int, int]] = []
    capture(model, [[1] * 4, [1] * 8], batch_tokens=8, progress=lambda *now: reports.append(now))
    assert model.layers == 2
    short, long = [4, 8], [8, 16]
    shortest_first = [*short, *(8 + done for done in long)]
    longest_first = [*long, *(16 + done for done in short)]
    assert [total for _, total in reports] == [24] * 4
    assert [done for done, _ in reports] in (shortest_first, longest_first)


def test_a_capture_of_nothing_runs_a_few_tokens_and_has_the_same_coordinates(model):
    prompts, counted = [[3, 5] * 10] * 4, []
    capture(model, prompts, stats=("entropy",))
    with work.counting(lambda count, _: counted.append(count)):
        bare = capture(model, prompts, stats=())
    assert sum(counted) <= 2 * 8
    whole = capture(model, prompts, stats=("entropy",)).drop_vars("entropy")
    assert bare.identical(whole.assign_attrs(bare.attrs))
    assert bare.attrs["prompts_sha256"] == whole.attrs["prompts_sha256"]


def test_a_capture_needs_no_gradient(model):
    with torch.enable_grad():
        result = capture(model, [[1, 2, 3]], keep=("z",))
    assert np.isfinite(result["z"].values).all()


def test_a_capture_is_repeatable(model):
    prompts = ["w1 w2 w3", "w4"]
    assert capture(model, prompts).identical(capture(model, prompts))


@pytest.mark.parametrize("prompts", ["", "  \n", [""], ["w1", " "], [[]], [[1], []]])
def test_empty_prompts_are_refused(prompts, model):
    number = 2 if len(prompts) == 2 and isinstance(prompts, list) else 1
    line = f"prompts: prompt {number} is empty; give it at least one token"
    assert str(refusal(capture, model, prompts)) == line


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model):
    line = str(refusal(capture, model, [[1] * 5, [1] * 130]))
    assert line.startswith("prompts: prompt 2 has 130 tokens, but the context of ")
    assert line.endswith(" is 128; shorten it by 2")


@pytest.mark.parametrize(
    ("prompts", "start"),
    [
        ([], "prompts: there are none"),
        ([[1, 64]], "prompts: token id 64 of prompt 1 is outside the vocabulary, 0 to 63"),
        ([[-1]], "prompts: token id -1 of prompt 1"),
        ([1, 2], "prompts: prompt 1 is a int; give texts or lists of token ids"),
        ([[0.5]], "prompts: prompt 1 is a list; give texts or lists of token ids"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompts, start, model):
    assert str(refusal(capture, model, prompts)).startswith(start)


SPANS, TARGETS = {"stats": ("span_mass",)}, {"stats": ("target_mass",)}


def test_text_without_a_tokenizer_is_refused(tiny):
    check_refusal("tokenizer", capture, tiny("llama"), "w1")


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"stats": ("entropy", "nothing")}, "stats: no statistic 'nothing'; choose from "),
        ({"stats": "entropy"}, "stats, keep: give a tuple"),
        ({"keep": ("x",)}, "keep: no activation 'x'; choose from q, k, v, z, resid"),
        ({"first": 0}, "first: "),
        ({"offsets": (1, 1), "stats": ("offset_mass",)}, "offsets: "),
        (SPANS, "spans: span_mass needs them; give a mapping"),
        (SPANS | {"spans": {}}, "spans: there are none"),
        (SPANS | {"spans": "END"}, "spans: span_mass needs them"),
        (SPANS | {"spans": {"mine": [[0], [1]]}}, "spans: 'mine' must hold one list of positions"),
        (SPANS | {"spans": {"mine": [[0, 2]]}}, "spans: 'mine' names position 2, outside prompt 1"),
        (TARGETS | {"targets": "nothing"}, "targets: no rule 'nothing'; choose from duplicate, in"),
        (TARGETS | {"targets": "evidence"}, "targets: the rule 'evidence' needs a task"),
        (TARGETS | {"targets": {"mine": [[[0]]]}}, "targets: 'mine' must hold, per prompt, one"),
        (TARGETS | {"targets": {"mine": [[[0], [2]]]}}, "targets: 'mine' names a key outside"),
    ],
)
def test_bad_options_are_refused(options, start, model):
    assert str(refusal(capture, model, [[1, 2]], **options)).startswith(start)


def test_an_unknown_statistic_lists_the_known_ones(model):
    line = str(refusal(capture, model, [[1]], stats=("nothing",)))
    assert all(name in line for name in statistics.names())


def test_the_pattern_of_a_long_prompt_is_refused(tiny):
    model = load_model(tiny("llama", max_position_embeddings=4096))
    assert "2048" in str(refusal(capture, model, [[1] * 2049], stats=("pattern",)))
