import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from refusals import check_message

from headscope.analyses import injection
from headscope.analyses._interventions.ablation import evaluate
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, pattern
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate, FixPattern, Inject, KnockOut, Window, load, save


@pytest.fixture(scope="module")
def task():
    return repeated(n=16, length=6)


@pytest.fixture(scope="module")
def result(circuit, task):
    return injection.run(capture(circuit, task, stats=("lse",)), circuit, task)


@pytest.mark.requirement("D5")
def test_a_map_stands_in_only_for_the_head_that_does_what_it_does(result):
    needed = np.zeros((2, 4))
    needed[PREVIOUS] = needed[INDUCTION] = 1.0
    # L0H0 attends to the token before, L1H0 to the token after an earlier copy.
    only_induction = np.zeros((2, 4))
    only_induction[INDUCTION] = 1.0
    np.testing.assert_allclose(result["previous"], only_induction, atol=1e-6)
    for name in ("first", "uniform", "removed"):
        np.testing.assert_allclose(result[name], needed, atol=1e-6)
    # The last four keys hold the token before, but not the earlier copy six words back.
    np.testing.assert_allclose(result["window"], only_induction, atol=1e-6)
    assert result.attrs["stand_ins"] == {
        "previous": ["L0H0"], "first": [], "uniform": [], "window": ["L0H0"],
    }  # fmt: skip
    assert result["previous"].attrs["evidence"] == "causal"
    assert result.attrs["verdict"] == "supported"


@pytest.mark.requirement("D5")
def test_own_patterns_put_back_change_nothing(result, random_llama, task):
    assert float(result["own"]) == 0.0
    captured = capture(random_llama, task, stats=("lse",))
    actual = injection.run(captured, random_llama, task, metric="logit_difference")
    assert float(actual["own"]) < 1e-4 < float(np.abs(actual["first"]).max())


def test_named_patterns_are_the_fixed_ones_at_any_length(random_llama):
    for length in (1, 5, 9):
        ids = torch.arange(3, 3 + length)[None]
        own = np.eye(length, dtype=np.float32)
        maps = {
            "itself": own,
            "first": np.eye(length, dtype=np.float32)[np.zeros(length, int)],
            "previous": own[np.maximum(np.arange(length) - 1, 0)],
            "uniform": np.tril(np.ones((length, length), np.float32)),
        }
        for name, values in maps.items():
            values = torch.from_numpy(values / values.sum(-1, keepdims=True))
            heads = ((0, 1), (1, 3))
            with torch.no_grad():
                result = logits(random_llama, ids, (Inject(heads, name),))
                fixed = logits(random_llama, ids, [FixPattern(head, values) for head in heads])
            torch.testing.assert_close(result, fixed, atol=1e-5, rtol=0)


def test_an_injected_pattern_is_what_the_capture_sees(circuit):
    edits = (Inject(((0, 0),), "first"),)
    result = capture(circuit, [[0, 5, 6, 7, 8]], stats=("first_mass",), edits=edits)
    np.testing.assert_allclose(result["first_mass"].sel(layer=0, head=0)[0], 1.0)
    kept = capture(circuit, [[0, 5, 6, 7, 8]], stats=("lse",), keep=("q", "k"))
    np.testing.assert_allclose(np.diagonal(pattern(kept, 0, 0).values, -1), 1.0, atol=1e-3)


def test_every_head_in_one_pass_is_each_head_alone(random_llama, task):
    captured = capture(random_llama, task, stats=("lse",))
    metric = "logit_difference"
    result = injection.run(captured, random_llama, task, metric=metric)
    intact = evaluate(random_llama, task, metric=metric)
    for layer, head in ((0, 1), (1, 3)):
        heads = ((layer, head),)
        for name, edit in (
            ("previous", Inject(heads, "previous")),
            ("first", Inject(heads, "first")),
            ("uniform", Inject(heads, "uniform")),
            ("window", Window(heads, recent=4, first=0)),
            ("hidden_first", KnockOut(heads, keys=(0,))),
            ("removed", Ablate(heads)),
        ):
            lost = float((intact - evaluate(random_llama, task, (edit,), metric=metric)).mean())
            assert float(result[name].values[layer, head]) == pytest.approx(lost, abs=1e-5), name


def test_injected_patterns_are_kept_in_a_file(tmp_path):
    edits = (Inject(((0, 1), (2, 3)), "previous"),)
    save(edits, tmp_path / "edits.safetensors")
    assert load(tmp_path / "edits.safetensors") == edits


def test_bad_input_is_refused(circuit):
    check_message(r"Inject.pattern: no 'next'; choose one of previous", Inject, ((0, 0),), "next")
    with pytest.raises(HeadscopeError, match="needs 20000 × 20000 weights for each of 4 heads"):
        Inject(((0, 0),), "first").inside(0, (1, 4, 20000, 20000))
    with pytest.raises(HeadscopeError, match=r"Inject.heads: no layer 7"):
        logits(circuit, torch.tensor([[0, 5]]), (Inject(((7, 0),), "first"),))
