"""What the analyses say about the bundled model, against what ablation does to it."""

import numpy as np
import pytest

from headscope.analyses import sae_circuits, sinks
from headscope.analyses._interventions import causal_check
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime import runner
from headscope.probes import capture
from headscope.probes.interventions import Ablate
from headscope.probes.prompts import tasks


def heads(names: list[str]) -> list[tuple[int, int]]:
    return [(int(layer), int(head)) for layer, head in (name[1:].split("H") for name in names)]


@pytest.fixture(scope="module")
def types(bundled):
    return runner.execute("head_types", bundled, n=16, options={"draws": 4})


def test_the_bundled_model_has_induction_and_previous_token_heads(types):
    for name in ("induction", "previous_token"):
        assert float(types[name].max()) > 0.8
        best = np.unravel_index(int(types[name].values.argmax()), types[name].shape)
        assert float(types[f"{name}_lower"].values[best]) > 0.6


def test_ablating_the_induction_heads_destroys_induction(types):
    intact, without, before, others = types["induction_accuracy"].values
    assert intact > 0.9
    assert without < 0.3
    assert others > 0.8
    # No previous-token heads, nothing to match: the circuit has two halves.
    assert before < 0.5
    assert types.attrs["note"].startswith("Causal check agrees")
    assert types["induction_accuracy_upper"][1] < types["induction_accuracy_lower"][3]


def test_the_induction_heads_also_matter_on_fresh_prompts(bundled, types):
    # Chosen on seed 0, ablated on seed 1: the choice does not profit from its own prompts.
    fresh = tasks.make("induction", tokenizer=bundled.tokenizer, n=8, seed=1)
    top = heads(types.attrs["heads_by_type"]["induction"])
    rest = [(layer, head) for layer in range(4) for head in range(8) if (layer, head) not in top]
    without = evaluate(bundled, fresh, (Ablate(top),), "accuracy").mean()
    others = [
        evaluate(bundled, fresh, (Ablate(subset),), "accuracy").mean()
        for subset in causal_check.random_sets(rest, len(top), 5, seed=7)
    ]
    # The median: a set that happens to hold the previous-token heads breaks induction as well.
    assert without < 0.3 < 0.8 < np.median(others)


@pytest.mark.requirement("B1")
def test_ablating_the_retrieval_heads_loses_the_needle(bundled):
    options = {"draws": 3, "recall_prompts": 16}
    retrieval = runner.execute("retrieval", bundled, n=16, options=options)
    assert float(retrieval["retrieval_set"].max()) > 0.9
    assert 0 < float(retrieval["retrieval_share"]) < 50
    intact, without, others = retrieval["needle_accuracy"].values
    assert intact > 0.8
    assert without < 0.5 * others
    for name in ("needle", "recall"):
        assert f"{name}: Causal check agrees" in retrieval.attrs["note"]


@pytest.mark.requirement("C1")
def test_rollout_and_flow_track_replaced_tokens_better_than_raw_attention(bundled):
    result = runner.execute("rollout", bundled, n=10)
    lower, upper = (result[f"ablation_correlation_{end}"].values for end in ("lower", "upper"))
    assert lower[1] > upper[0]
    assert lower[2] > upper[0]
    # On input gradients the paper's order holds for rollout; flow is not asserted.
    raw, rolled, *_ = result["gradient_correlation"].values
    assert rolled > raw


@pytest.mark.requirement("D1")
@pytest.mark.long
def test_the_gate_gradient_ranks_heads_like_ablation_does(bundled):
    result = runner.execute("importance", bundled, n=12)
    assert float(result["intact"]) > 0
    for name in ("gate_vs_zero", "gate_vs_mean"):
        assert float(result[name]) > 0.4
        assert float(result[f"{name}_lower"]) > 0.2
    best = np.unravel_index(int(result["mean_ablation"].values.argmax()), (4, 8))
    assert float(result["mean_ablation_lower"].values[best]) > 0
    assert float(result["resample_ablation_lower"].values.max()) > 0
    assert float(result["gate_gradient"].values[best]) > float(result["gate_gradient"].median())


@pytest.mark.requirement("A1")
def test_repeating_one_token_leaves_nothing_to_sink_into(bundled):
    # RoPE turns keys by distance alone, so equal tokens stay equal: no position can stand out.
    ids = np.random.default_rng(0).integers(5, bundled.vocabulary, size=4).tolist()
    repeated = capture(bundled, [[token] * 64 for token in ids], ("received",), ("resid",))
    stream = repeated["resid"]
    assert float(abs(stream - stream.isel(query=0)).max()) < 1e-3 * float(abs(stream).max())
    story = tasks.make("story", tokenizer=bundled.tokenizer, n=4, seed=0)
    told = sinks.run(capture(bundled, story, stats=("received",)), epsilon=0.1)
    assert float(sinks.run(repeated, epsilon=0.1)["sink_rate"]) <= float(told["sink_rate"])


@pytest.mark.requirement("E1")
@pytest.mark.long
def test_the_discrete_codes_stand_beside_their_baselines(bundled):
    options = {"trials": 3, "truth_prompts": 16}
    result = runner.execute("sae_circuits", bundled, n=64, options=options)
    assert 3 <= len(result.attrs["circuit"]) <= 16
    assert result["condition"].values.tolist() == list(sae_circuits.METHODS)
    assert float(result["node_auc_sae_lower"]) > 0.5
    # No circuit of this model is known, so its edges have no truth.
    assert result["edge_auc"].isnull().all()


@pytest.mark.long
def test_the_circuit_found_by_resampling_carries_the_task(bundled):
    result = runner.execute("importance", bundled, n=12)
    lost = result["resample_ablation"].values
    above = np.argwhere(lost > 0.05 * float(result["intact"]))
    circuit = [(int(layer), int(head)) for layer, head in above]
    task = tasks.make("ioi", tokenizer=bundled.tokenizer, n=12, seed=3)
    every = [(layer, head) for layer in range(4) for head in range(8)]
    rest = [head for head in every if head not in circuit]
    without = evaluate(bundled, task, (Ablate(circuit),), "logit_difference").mean()
    others = [
        evaluate(bundled, task, (Ablate(subset),), "logit_difference").mean()
        for subset in causal_check.random_sets(rest, len(circuit), 4, seed=5)
    ]
    assert without < 0.3 * np.mean(others)
