import numpy as np
import pytest
from architectures import eager_maps
from constructed import INDUCTION, needle

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.runner import execute
from headscope.analyses.conditions._span_knockout import distances, outputs
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.interventions import KnockOut
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.tasks._absent_facts import with_stated_fact

COPYING = ("L3H0", "L3H1", "L3H4", "L3H5", "L3H7")
IDS = [0, *np.random.default_rng(0).integers(5, 35, 20).tolist()]


@pytest.mark.requirement("B5")
def test_the_output_without_a_span_is_the_rest_of_the_row_normalised_again(random_llama):
    """Closed form from the model's own maps: (z − Σ_span A v) / (1 − Σ_span A)."""
    span, query = [4, 5, 9], 17
    values = capture(random_llama, [IDS], stats=(), keep=("v",))["v"].values[0].astype(float)
    rows = eager_maps(random_llama.module, IDS)[:, :, query].numpy()
    kept = np.delete(np.arange(len(IDS)), span)
    # Four query heads share two key-value heads.
    read = np.repeat(values, 2, axis=1)
    expected = np.einsum("lhk,lhks->lhs", rows[..., kept], read[:, :, kept])
    expected /= rows[..., kept].sum(-1, keepdims=True)
    result = outputs(random_llama, IDS, query, span, "direct")
    np.testing.assert_allclose(result, expected, atol=1e-5)
    whole = np.einsum("lhk,lhks->lhs", rows, read)
    np.testing.assert_allclose(outputs(random_llama, IDS, query, (), "total"), whole, atol=1e-5)


def test_the_total_effect_is_that_of_the_edit_and_in_the_first_layer_the_direct_one(random_llama):
    span, query = (4, 5, 9), 17
    every = tuple((layer, head) for layer in range(2) for head in range(4))
    edit = KnockOut(heads=every, keys=span, queries=tuple(range(5, len(IDS))))
    edited = capture(random_llama, [IDS], stats=(), keep=("z",), edits=(edit,))
    total = outputs(random_llama, IDS, query, span, "total")
    np.testing.assert_allclose(total, edited["z"].values[0, :, :, query], atol=1e-6)
    direct = outputs(random_llama, IDS, query, span, "direct")
    np.testing.assert_allclose(total[0], direct[0], atol=1e-6)
    assert np.abs(total[1] - direct[1]).max() > 1e-5


@pytest.mark.requirement("B5")
def test_the_distance_is_a_share_of_the_two_norms():
    first, second = np.zeros((1, 4, 2)), np.zeros((1, 4, 2))
    first[0, 1], second[0, 2] = (3.0, 4.0), (1.0, 0.0)
    first[0, 3], second[0, 3] = (1.0, 1.0), (-1.0, -1.0)
    far, share = distances(first, second)
    assert far[0].tolist() == pytest.approx([0.0, 5.0, 1.0, 8**0.5])
    assert share[0].tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0])


@pytest.mark.requirement("B5")
def test_the_planted_head_alone_reads_the_fact(circuit):
    task = needle(("north",), n=16)
    result = execute("context_reliance", circuit, task=task, options={"best": 1, "draws": 2})
    direct = result["direct"].values
    assert direct[INDUCTION] > 0.5
    # Uniform heads and heads that look elsewhere write nothing.
    assert np.delete(direct.ravel(), 4).max() < 0.5 * direct[INDUCTION]
    assert result.attrs["heads_by_type"]["context-reliant"] == ["L1H0"]
    intact, without, others = result["accuracy"].values
    assert (intact, without, others) == (1.0, 0.0, 1.0)
    assert result.attrs["verdict"] == "supported"


@pytest.mark.requirement("B5")
@pytest.mark.parametrize("space", ["residual", "z"])
def test_the_copying_heads_of_the_bundled_model_depend_on_the_fact(bundled, space):
    result = execute("context_reliance", bundled, n=8, options={"draws": 2, "space": space})
    assert sorted(result.attrs["heads_by_type"]["context-reliant"]) == list(COPYING)
    direct = result["direct"].values[3]
    others = [2, 3, 6]
    assert np.delete(direct, others).min() > 0.3
    assert direct[others].max() < 0.05
    assert result["beyond_control_lower"].values[3, [0, 1, 4, 5, 7]].min() > 0.3
    assert result["accuracy"].values[1] < 0.2


def test_hiding_the_fact_in_the_reliant_heads_is_what_loses_the_answer(bundled):
    """The claim behind the score, by another intervention: only the fact, only in these heads."""
    task = with_stated_fact(tasks.make("recall", bundled.tokenizer, 1))
    question = read(bundled, task).encoded.questions[0][0]
    reliant = tuple((3, int(name[3])) for name in COPYING)
    others = tuple((3, head) for head in (2, 3, 6))
    hidden = [
        float(evaluate(bundled, task, (KnockOut(heads=heads, keys=question.evidence),))[0])
        for heads in (reliant, others)
    ]
    assert hidden == [0.0, 1.0]


def test_a_span_that_the_prompts_lack_is_refused(bundled):
    with pytest.raises(HeadscopeError, match="span: 'needle' is not one of"):
        execute("context_reliance", bundled, n=2, options={"span": "needle"})
    with pytest.raises(HeadscopeError, match="no token of 'query'"):
        execute("context_reliance", bundled, n=2, options={"span": "query"})
