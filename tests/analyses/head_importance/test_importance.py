from functools import partial

import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated

from headscope.analyses import importance
from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._interventions.batched_edits import RowReplace
from headscope.analyses._interventions.metrics import score
from headscope.probes import capture
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate, Gate, Replace
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import encode


@pytest.fixture(scope="module")
def task():
    return repeated(n=3, length=5)


@pytest.fixture(scope="module")
def captured(random_llama, task):
    return capture(random_llama, task, stats=(), keep=("z",))


@pytest.fixture(scope="module")
def result(random_llama, task, captured):
    return importance.run(captured, random_llama, task, metric="logit_difference")


@pytest.mark.requirement("D1")
def test_zero_and_mean_are_those_of_one_edit_at_a_time(random_llama, task, captured, result):
    intact = evaluate(random_llama, task, metric="logit_difference")
    means = torch.from_numpy(np.nanmean(captured["z"].values, axis=(0, 3)))
    assert float(result["intact"]) == pytest.approx(intact.mean(), abs=1e-5)
    for layer, head in ((0, 0), (0, 3), (1, 2)):
        edits = {
            "zero_ablation": Ablate(heads=((layer, head),)),
            "mean_ablation": Replace(heads=((layer, head),), values=means),
        }
        for name, edit in edits.items():
            left = evaluate(random_llama, task, (edit,), metric="logit_difference")
            lost = (intact - left).mean()
            assert float(result[name].values[layer, head]) == pytest.approx(lost, abs=1e-6)


@torch.no_grad()
def test_resampling_puts_the_heads_corrupted_output_in_place(random_llama, task, result):
    # Through the model's own hooks, without the seam: the slice of a head before the projection.
    encoded = encode(task, random_llama.tokenizer)
    module = random_llama.module
    projection = module.model.layers[0].self_attn.o_proj
    part = slice(2 * module.config.head_dim, 3 * module.config.head_dim)

    def run(ids, hook):
        handle = projection.register_forward_pre_hook(hook)
        rows = module(input_ids=torch.tensor([ids])).logits[0]
        handle.remove()
        return rows

    def score(rows, asked):
        places = [(each.at, each.answer_ids[0], each.wrong_ids[0]) for each in asked]
        return np.mean([float(rows[at, answer] - rows[at, wrong]) for at, answer, wrong in places])

    lost = []
    given = zip(encoded.ids, encoded.corrupted_ids, encoded.questions, strict=True)
    for ids, other, asked in given:
        kept = []
        run(other, partial(keep, kept))
        patched = score(run(ids, partial(patch, kept, part)), asked)
        lost.append(score(module(input_ids=torch.tensor([ids])).logits[0], asked) - patched)
    assert abs(np.mean(lost)) > 1e-4
    actual = float(result["resample_ablation"].values[0, 2])
    assert actual == pytest.approx(np.mean(lost), abs=1e-5)


def keep(kept, _, given):
    kept.append(given[0])


def patch(kept, part, _, given):
    changed = given[0].clone()
    changed[..., part] = kept[0][..., part]
    return (changed,)


@pytest.mark.requirement("D1")
def test_the_gate_gradient_is_the_finite_difference_of_each_prompt(random_llama, task, result):
    step = 0.05
    slopes = np.zeros((3, 2, 4))
    for layer in range(2):
        for head in range(4):
            ends = []
            for sign in (1, -1):
                gates = torch.ones(2, 4)
                gates[layer, head] += sign * step
                ends.append(evaluate(random_llama, task, (Gate(gates),), metric="logit_difference"))
            slopes[:, layer, head] = (ends[0] - ends[1]) / (2 * step)
    scale = np.abs(slopes).max()
    # The absolute value comes before the mean: prompts of opposite sign do not cancel.
    mean = np.abs(slopes).mean(0)
    np.testing.assert_allclose(result["gate_gradient"], mean, atol=0.01 * scale)
    np.testing.assert_allclose(result["first_order"].values, slopes.mean(0), atol=0.01 * scale)
    assert not np.allclose(np.abs(slopes).mean(0), np.abs(slopes.mean(0)), atol=0.01 * scale)


def test_normalized_layers_have_norm_one(random_llama, task, captured):
    result = importance.run(captured, random_llama, task, metric="logit_difference", normalize=True)
    np.testing.assert_allclose(np.linalg.norm(result["gate_gradient"].values, axis=-1), 1)


@pytest.mark.requirement("D1")
def test_the_heads_of_the_circuit_are_the_only_important_ones(circuit):
    task = repeated(n=3, length=6)
    result = importance.run(capture(circuit, task, stats=(), keep=("z",)), circuit, task)
    assert result.attrs["convention"] == "accuracy on 3 prompts of repeated"
    expected = np.zeros((2, 4))
    expected[PREVIOUS] = expected[INDUCTION] = 1.0
    for name in ("zero_ablation", "mean_ablation", "resample_ablation", "sink_free_ablation"):
        np.testing.assert_allclose(result[name].values, expected, atol=1e-6)
    # Asked for the answers of other prompts, the model knows nothing that it could lose.
    assert float(result["null_ablation"]) == 0
    assert set(result.attrs["important_heads"]) == {"L0H0", "L1H0"}
    assert "kv_group_ablation" not in result
    # Heads that write nothing have no gradient at all.
    for name in ("gate_gradient", "integrated_gradient"):
        assert np.abs(result[name].values[expected == 0]).max() == 0
    # Accuracy has no gradient: the gates follow the log-probability, and find the same heads.
    assert result["gate_gradient"].attrs["units"] == "nats"
    top = np.argsort(-result["gate_gradient"].values.ravel())[:2]
    assert {tuple(divmod(int(index), 4)) for index in top} == {PREVIOUS, INDUCTION}


@pytest.mark.requirement("D1")
def test_integrated_gates_sum_to_what_all_heads_bring(random_llama, circuit, bundled):
    asked = {
        "random": (random_llama, repeated(n=3, length=5), "logit_difference"),
        "circuit": (circuit, repeated(n=2, length=5), "log_probability"),
        "bundled": (bundled, tasks.make("ioi", bundled.tokenizer, n=3), "logit_difference"),
    }
    for name, (model, task, metric) in asked.items():
        result, whole = head_gradients.integrated_gates(model, task, metric, 0.01)
        ends = []
        for gate in (1.0, 0.0):
            gates = Gate(torch.full((model.layers, model.heads), gate))
            encoded = ablation.encode_task(model, task)
            ids, questions = encoded.ids, encoded.questions
            pairs = zip(ids, questions, strict=True)
            ends.append([answered(model, one, gates, put, metric) for one, put in pairs])
        brought = np.subtract(*ends)
        scale = np.abs(brought).mean()
        np.testing.assert_allclose(whole, brought, atol=1e-4 * max(scale, 1), err_msg=name)
        np.testing.assert_allclose(result.sum((1, 2)), brought, atol=0.02 * scale, err_msg=name)


@torch.no_grad()
def answered(model, ids, gates, questions, metric):
    return float(score(logits(model, torch.tensor([ids]), (gates,)), [questions], metric))


def test_the_first_token_is_left_alone_where_a_sink_stands(random_llama, task, captured, result):
    # By hand: the mean over later positions, put in the place of z at later positions.
    z = torch.from_numpy(captured["z"].transpose("prompt", "layer", "head", "query", ...).values)
    mean = z[:, :, :, 1:].mean((0, 3))
    other = z.clone()
    other[:, 1, 2, 1:] = mean[1, 2]
    encoded = ablation.encode_task(random_llama, task)
    ids, asked = encoded.ids, encoded.questions
    chosen = torch.zeros(3, 2, 4, dtype=torch.bool)
    chosen[:, 1, 2] = True
    with torch.no_grad():
        given = torch.tensor(ids)
        intact, left = (
            score(logits(random_llama, given, edits), asked, "logit_difference").mean()
            for edits in ((), (RowReplace(chosen, other),))
        )
    actual = float(result["sink_free_ablation"].values[1, 2])
    assert actual == pytest.approx(float(intact - left), abs=1e-6)
    assert abs(actual - float(result["mean_ablation"].values[1, 2])) > 1e-7


def test_kv_groups_are_reported_apart_from_query_heads(random_llama, task, captured, result):
    assert result["kv_group_ablation"].dims == ("layer", "kv_head")
    means = torch.from_numpy(np.nanmean(captured["z"].values, axis=(0, 3)))
    edit = Replace(heads=((1, 2), (1, 3)), values=means)
    left = evaluate(random_llama, task, (edit,), metric="logit_difference").mean()
    lost = float(result["intact"]) - left
    assert float(result["kv_group_ablation"].values[1, 1]) == pytest.approx(lost, abs=1e-5)
    assert "2 query heads at once" in result["kv_group_ablation"].attrs["convention"]
    assert "one query head at a time" in result["mean_ablation"].attrs["convention"]


def test_one_prompt_calls_no_head_important(circuit):
    task = repeated(n=1, length=6)
    result = importance.run(capture(circuit, task, stats=(), keep=("z",)), circuit, task)
    assert result.attrs["important_heads"] == []
    assert result.attrs["verdict"] == "too_few"
    assert "One prompt has no interval" in result.attrs["note"]


def test_log_probability_sums_over_the_right_answers(circuit):
    asked = encode(repeated(n=1, length=4), circuit.tokenizer).questions
    output = torch.randn(1, 9, 35)
    logs = [output[0, each.at].log_softmax(-1)[each.answer_ids[0]] for each in asked[0]]
    expected = float(torch.stack(logs).mean())
    assert float(score(output, asked, "log_probability")) == pytest.approx(expected)
