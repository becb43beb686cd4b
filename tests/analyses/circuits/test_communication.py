import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, TOKEN, WORDS, circuit, random_llama, repeated

from headscope.analyses import communication
from headscope.analyses._measurements.score_terms import Scores
from headscope.analyses.circuits import _signal_trace
from headscope.analyses.circuits._signal_trace import Rule
from headscope.probes import capture

KEEP = communication.KEEP


def seen(model, task):
    return capture(model, task, stats=("lse",), keep=KEEP)


@pytest.fixture(scope="module")
def task():
    return repeated(n=16, length=6)


@pytest.fixture(scope="module")
def uneven_circuit():
    """The circuit, each word sought with a strength of its own, so that directions are words."""
    model = circuit()
    words = torch.arange(len(WORDS))
    weight = model.module.transformer.h[1].attn.c_attn.weight
    with torch.no_grad():
        weight[TOKEN + words, words] *= torch.linspace(1.0, 1.5, len(WORDS))
    return model


@pytest.fixture(scope="module")
def traced(uneven_circuit, task):
    return communication.run(seen(uneven_circuit, task), uneven_circuit, task)


@pytest.mark.requirement("E2")
def test_the_graph_has_the_edge_from_the_head_before_to_the_key_of_the_induction_head(traced):
    assert traced.attrs["chosen_head"] == "L1H0"
    ends = np.stack([traced[name].values for name in communication.ENDS], axis=1)
    assert ends[0].tolist() == [*PREVIOUS, *INDUCTION]
    first = traced.isel(edge=0)
    assert float(first["key_signal_lower"]) > 5
    assert abs(float(first["query_signal"])) < 0.1
    rest = traced.isel(edge=slice(1, None))
    if rest.sizes["edge"]:
        assert float(abs(rest["key_signal"]).max()) < 0.1 * float(first["key_signal"])


def test_a_head_of_the_first_layer_has_no_writers(circuit, task):
    result = communication.run(seen(circuit, task), circuit, task, head="L0H0")
    assert result.sizes["edge"] == 0
    assert result.attrs["verdict"] == "not_supported"
    assert "No earlier head writes a signal to L0H0" in result.attrs["note"]


@pytest.mark.requirement("E2")
def test_few_directions_make_the_score_of_the_circuit_and_carry_its_cause(traced):
    assert float(traced["directions"][INDUCTION]) < 2
    assert float(traced["directions_needed"][INDUCTION]) < 2
    assert float(traced["directions_random"][INDUCTION]) > 10
    assert "Few directions dominate" in traced.attrs["note"]
    assert traced.attrs["verdict"] == "supported"
    signal, rest, drawn = traced["margin_lost"].values
    assert signal > 20
    assert max(abs(rest), abs(drawn)) < 0.2 * signal
    assert float(traced["attention_lost"][0]) > 0.9
    assert float(traced["metric_lost_lower"][0]) > float(traced["metric_lost_upper"][2]) + 1


@pytest.mark.requirement("E2")
def test_no_few_directions_dominate_in_random_weights():
    model, task = random_llama(), repeated(n=48, length=6)
    result = communication.run(seen(model, task), model, task, depth=1, draws=4)
    assert "No few directions dominate" in result.attrs["note"]
    assert result.attrs["verdict"] != "supported"
    own, drawn = (
        result[name].values[~np.isnan(result[name].values)]
        for name in ("directions", "directions_random")
    )
    assert (own > 0.5 * drawn).all()


def test_signals_of_all_sources_sum_to_the_terms_of_the_directions(random_llama):
    cap = capture(random_llama, [[0, 5, 9, 7, 5, 12, 3]], stats=("lse",), keep=KEEP)
    scores = Scores(random_llama, 7)
    rule = Rule(depth=1, width=2, fires=0.0, share=0.8)
    met = 0
    for head in range(4):
        trace = _signal_trace.trace(scores, cap, 0, (1, head), 6, rule)
        for fired in trace.firings:
            met += 1
            total = fired.directions.terms[fired.chosen].sum()
            assert total >= 0.8 * fired.split.score
            for signals in fired.directions.signals(fired.chosen):
                assert signals.sum() == pytest.approx(total)
            for side, writers in fired.writers.items():
                assert len(writers) <= 2
                signal, rest = _signal_trace.removed(scores, cap, 0, fired, side)
                # What is left of the writes gives nothing along the chosen directions.
                part, own = ("q", "left") if side == "query" else ("k", "right")
                basis = scores.side((1, head), part).basis
                chosen = torch.from_numpy(getattr(fired.directions, own)[:, fired.chosen])
                assert float((rest @ basis @ chosen).abs().max()) < 1e-8
                assert writers == [] or float(signal.norm()) > 0
    assert met
