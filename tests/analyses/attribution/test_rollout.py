import copy

import numpy as np
import pytest
import torch
import xarray as xr
from constructed import random_llama, repeated
from refusals import check_message, check_refusal
from scipy.stats import spearmanr

from headscope.analyses import rollout
from headscope.analyses._relevance import _attention_flow
from headscope.analyses._runtime import runner
from headscope.analyses.attribution import _input
from headscope.probes import capture
from headscope.probes.attention.forward import logits
from headscope.probes.interventions.attention_weights import Temperature


@pytest.fixture(scope="module")
def task():
    return repeated(n=3, length=4)


@pytest.fixture(scope="module")
def captured(circuit, task):
    return capture(circuit, task, stats=("pattern",))


@pytest.mark.requirement("C1")
def test_maps_are_those_of_the_pattern(circuit, captured):
    result = rollout.run(captured, circuit, prompt=1, substitutes=1)
    maps = captured["pattern"].values[1].astype(float)
    mixed = [(attention_map.mean(0) + np.eye(9)) / 2 for attention_map in maps]
    np.testing.assert_allclose(result["rollout"].values, mixed[1] @ mixed[0], atol=1e-6)
    np.testing.assert_allclose(
        result["flow"].values, _attention_flow.flow(np.stack(mixed)), atol=1e-6
    )
    np.testing.assert_allclose(result["raw_attention"].values, maps[1].mean(0), atol=1e-6)
    assert result["token"].values.tolist() == captured["token"].values[1].tolist()


def test_replacing_tokens_finds_what_the_prediction_rests_on(circuit, captured):
    # After `a b c d a b c d` the induction head reads b's copy, found through a; and the last d.
    result = rollout.run(captured, circuit, substitutes=3)
    effect = result["ablation_effect"].values
    # <bos> a b c d a b c d: the last d asks what followed the first d, which is a at place 5.
    assert set(np.argsort(-effect)[:3]) == {4, 5, 8}
    assert effect[[1, 2, 3, 6, 7]].max() < 0.1 * effect[[4, 5, 8]].min()
    assert str(result.attrs["predicted"]) == str(result["token"].values[5])
    assert result.attrs["verdict"] == "too_few"


@torch.no_grad()
def test_the_gradient_is_the_finite_difference(random_llama):
    ids, answer, step = [0, 7, 9], 8, 1e-3
    gradient = _input.input_gradient(random_llama, ids, answer)
    module = copy.deepcopy(random_llama.module).double()
    base = module.get_input_embeddings()(torch.tensor([ids]))
    for position in range(len(ids)):
        # One row of the batch per channel and sign.
        moves = torch.eye(base.shape[-1], dtype=torch.double) * step
        changed = base.repeat(2 * len(moves), 1, 1)
        changed[:, position] += torch.cat((moves, -moves))
        chances = module(inputs_embeds=changed, use_cache=False).logits[:, -1].log_softmax(-1)
        up, down = chances[:, answer].chunk(2)
        slopes = (up - down) / (2 * step)
        assert gradient[position] == pytest.approx(float(slopes.norm()), rel=1e-3)


def test_the_effect_is_the_change_of_log_probability(random_llama):
    ids, answer = [0, 7, 9], 8
    others = np.array([[1, 2], [3, 4], [5, 6]])
    effect = _input.replacement_effect(random_llama, ids, answer, others)

    def chance(tokens):
        with torch.no_grad():
            last = logits(random_llama, torch.tensor([tokens]))[0, -1]
        return float(last.log_softmax(-1)[answer])

    expected = np.mean([abs(chance([0, other, 9]) - chance(ids)) for other in (3, 4)])
    assert effect[1] == pytest.approx(expected, abs=1e-5)


def dense(model, prompts, number, **mixing):
    """Rollout from the whole maps, as the analysis has it."""
    maps = capture(model, prompts, stats=("pattern",))["pattern"].values[number]
    size = int((~np.isnan(maps[0, 0, :, 0])).sum())
    return _attention_flow.rollout(
        _attention_flow.mix(maps[..., :size, :size].astype(float), **mixing)
    )


MIXINGS = [
    {}, {"fusion": "max"}, {"fusion": "min", "residual": False}, {"residual": False},
    {"discard": 0.5}, {"fusion": "max", "residual": False, "discard": 0.3},
]  # fmt: skip


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
@pytest.mark.parametrize("name", ["circuit", "random_llama", "rotary_sink"])
def test_rows_are_those_of_the_whole_map(name, mixing, first, request, monkeypatch):
    monkeypatch.setattr(_attention_flow, "NUMBERS", 1000)  # a few rows at once
    model = request.getfixturevalue(name)
    prompts = [[0, 5, 6, 7, 5, 6], [0, *range(5, 35), *range(5, 35)]]
    held = capture(model, prompts, stats=(), keep=("q", "k"))
    for prompt, positions in ((0, (-1, 2)), (1, (0, 31, -1, 60))):
        rows = rollout.rows(held, positions, prompt=prompt, without_first=not first, **mixing)
        result = rows["rollout"]
        expected = dense(model, prompts, prompt, first=first, **mixing)
        np.testing.assert_allclose(result.values, expected[list(positions)], atol=1e-6)
        np.testing.assert_allclose(result.sum("key"), 1.0, atol=1e-6)
        assert result["query"].values.tolist() == [at % len(expected) for at in positions]
        tokens = held["token"].values[prompt]
        assert result["token"].values.tolist() == [tokens[at] for at in result["query"].values]
        assert result["key_token"].values.tolist() == tokens[: len(expected)].tolist()


@pytest.mark.requirement("C1")
def test_the_row_without_the_first_token_is_mixed_like_the_others(circuit, captured):
    """The correlations of the last row change with the options."""
    mixing = {"fusion": "max", "residual": False, "discard": 0.2}
    result = rollout.run(captured, circuit, substitutes=1, **mixing)
    held = capture(circuit, repeated(n=3, length=4), stats=(), keep=("q", "k"))
    rho = []
    for prompt in range(3):
        each = rollout.run(captured, circuit, prompt=prompt, substitutes=1, **mixing)
        row = rollout.rows(held, prompt=prompt, without_first=True, **mixing)["rollout"][0]
        rho.append(spearmanr(np.round(row, 5), each["input_gradient"]).statistic)
    actual = result["gradient_correlation"].sel(condition="rollout without the first token")
    assert float(actual) == pytest.approx(np.mean(rho), abs=0.05)


@pytest.mark.requirement("C1")
def test_the_verdict_rests_on_paired_differences_that_the_result_has(bundled):
    result = runner.execute("rollout", bundled, n=16, options={"substitutes": 1})
    worse = []
    for name, truth in rollout.TRUTHS.items():
        whole, gain = result[name], result[f"{name}_gain"]
        assert gain["compared"].values.tolist() == list(rollout.ROWS[1:])
        raw = float(whole.sel(condition="raw attention"))
        np.testing.assert_allclose(gain, whole.values[1:] - raw, atol=1e-12)
        lower, upper = result[f"{name}_gain_lower"], result[f"{name}_gain_upper"]
        assert (lower < gain).all()
        assert (gain < upper).all()
        # A paired interval is narrower than what two intervals by themselves allow.
        wide = result[f"{name}_upper"] - result[f"{name}_lower"]
        assert (upper - lower).values[0] < float(wide[0] + wide[1])
        worse += [
            f"{row} {truth}"
            for row, least in zip(rollout.ROWS[1:3], lower.values[:2], strict=True)
            if least <= 0
        ]
    assert (result.attrs["verdict"] == "supported") == (not worse)
    assert result["ablation_effect"].attrs["evidence"] == "causal"
    assert result["input_gradient"].attrs.get("evidence") != "causal"


def test_rows_of_windows_caps_slopes_sinks_and_both_directions():
    """A capture by hand: a layer with window, cap and ALiBi, one with sinks, both directions."""
    draw = np.random.default_rng(0)
    q, k = draw.normal(size=(1, 2, 4, 50, 8)), draw.normal(size=(1, 2, 2, 50, 8))
    scores = np.einsum("lhqd,lhkd->lhqk", q[0], k[0].repeat(2, axis=1))
    back = np.arange(50)[:, None] - np.arange(50)
    slopes = np.array([[0.5, 0.1, 0.0, 2.0], [0.0] * 4], dtype=np.float32)
    capped = 2.0 * np.tanh(scores[0] * 0.7 / 2.0) - slopes[0, :, None, None] * back
    logits = np.stack((np.where((back >= 0) & (back < 6), capped, -np.inf), scores[1] * 0.3))
    sinks = np.array([[np.nan] * 4, [-1.0, 0.0, 2.0, 5.0]])
    lse = np.log(np.exp(logits).sum(-1) + np.exp(np.nan_to_num(sinks, nan=-np.inf))[..., None])
    held = xr.Dataset(
        {
            "q": (("prompt", "layer", "head", "query", "size"), q.astype(np.float32)),
            "k": (("prompt", "layer", "kv_head", "key", "size"), k.astype(np.float32)),
            "lse": (("prompt", "layer", "head", "query"), lse[None].astype(np.float32)),
        },
        coords={
            "layer": [0, 1],
            "head": range(4),
            "kv_head": [0, 1],
            "kv_group": ("head", [0, 0, 1, 1]),
            "length": ("prompt", [50]),
            "token": (("prompt", "query"), [["word"] * 50]),
            "causal": ("layer", [1.0, 0.0]),
            "logit_scale": ("layer", [0.7, 0.3]),
            "window": ("layer", [6.0, np.nan]),
            "softcap": ("layer", [2.0, np.nan]),
            "sink_logit": (("layer", "head"), sinks.astype(np.float32)),
            "alibi_slope": (("layer", "head"), slopes),
        },
    )
    expected = _attention_flow.rollout(_attention_flow.mix(np.exp(logits - lse[..., None])))
    result = rollout.rows(held, (49, 3))["rollout"].values
    np.testing.assert_allclose(result, expected[[49, 3]], atol=1e-6)
    np.testing.assert_allclose(result.sum(-1), 1.0, atol=1e-6)


def test_rows_of_a_long_text():
    """At 3000 tokens, where no whole map is kept; each row by itself is the same."""
    model = random_llama(positions=3000)
    held = capture(model, [[at % 30 for at in range(3000)]], stats=(), keep=("q", "k"))
    result = rollout.rows(held, (2999, 1500))["rollout"]
    np.testing.assert_allclose(result.sum("key"), 1.0, atol=1e-5)
    assert (result.values >= 0).all()
    assert (result.values[1, 1501:] == 0).all()
    # Causal rows know nothing of what follows: a shorter text has the same row.
    short = held.isel(query=slice(1501), key=slice(1501)).assign_coords(length=("prompt", [1501]))
    np.testing.assert_allclose(rollout.rows(short)["rollout"][0], result[1, :1501], atol=1e-7)


def test_rows_refuse_what_they_cannot_follow(circuit):
    check_message("capture: no q", rollout.rows, capture(circuit, [[0, 5, 6]], stats=("lse",)))
    held = capture(circuit, [[0, 5, 6]], stats=(), keep=("q", "k"))
    check_message(r"positions: 3 is outside -3 … 2", rollout.rows, held, (3,))
    check_message("positions: none", rollout.rows, held, ())
    check_refusal("prompt", rollout.rows, held, prompt=1)
    check_refusal("fusion", rollout.rows, held, fusion="median")
    check_refusal("discard", rollout.rows, held, discard=1.0)
    colder = (Temperature([(0, 1)], 0.5),)
    edited = capture(circuit, [[0, 5, 6]], stats=(), keep=("q", "k"), edits=colder)
    check_refusal("edits", rollout.rows, edited)
    held["lse"][0, 1, 2] += 0.1
    check_message("weights of L1H2 do not follow from its q and k", rollout.rows, held)


def test_bad_input_is_refused(circuit, captured):
    check_refusal("flow_tokens", rollout.run, captured, circuit, flow_tokens=8)
    check_refusal("prompt", rollout.run, captured, circuit, prompt=3)
    same = capture(circuit, [[0, 5, 5, 5]], stats=("pattern",))
    check_refusal("prompts", rollout.run, same, circuit)
