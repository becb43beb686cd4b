import itertools
import json
from dataclasses import replace

import architectures
import networkx as nx
import numpy as np
import pytest
import torch
import xarray as xr
from constructed import INDUCTION, PREVIOUS, circuit, random_llama, repeated
from refusals import check_message, check_refusal
from scipy.stats import spearmanr

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._interventions.screening import SOME
from headscope.analyses.comparison import (
    Circuit,
    compare,
    export,
    find,
    from_result,
    load,
    overlap,
    removed,
    restore,
    save,
    to_graph,
    what_if,
)
from headscope.probes import capture
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate, Inject, KnockOut


@pytest.fixture(scope="module")
def task():
    return repeated(n=6, length=6)


@pytest.fixture(scope="module")
def forgetful():
    """The constructed circuit whose previous-token head looks everywhere alike."""
    model = circuit()
    weight = model.module.transformer.h[0].attn.c_attn.weight
    with torch.no_grad():
        weight[:, : model.head_size] = 0.0
    return model


@pytest.mark.requirement("D2")
def test_the_planted_circuit_is_found_and_kept_in_a_file(circuit, task, tmp_path):
    result = find(circuit, task, 2)
    assert set(result.heads) == {PREVIOUS, INDUCTION}
    assert result.provenance["task"] == "repeated"
    assert result.provenance["rule"] == "the 2 highest scores"
    save(result, tmp_path / "circuit.json")
    again = load(tmp_path / "circuit.json")
    assert again.heads == result.heads
    assert again.provenance == result.provenance
    np.testing.assert_array_equal(again.scores, result.scores)
    np.testing.assert_array_equal(again.samples, result.samples)


@pytest.mark.requirement("D2")
def test_the_chance_of_an_overlap_is_that_over_all_sets():
    scores = np.arange(8.0).reshape(2, 4)
    pool = list(itertools.product(range(2), range(4)))
    first, second = Circuit(tuple(pool[:3]), scores), Circuit((pool[1], pool[2], pool[6]), -scores)
    result = overlap(first, second)
    shared = [len(set(some) & set(first.heads)) for some in itertools.combinations(pool, 3)]
    assert float(result["p_value"]) == pytest.approx(np.mean([each >= 2 for each in shared]))
    assert float(result["expected"]) == pytest.approx(np.mean(shared))
    assert float(result["jaccard"]) == 2 / 4
    assert float(result["coefficient"]) == pytest.approx(2 / 3)
    assert float(result["correlation"]) == pytest.approx(-1)
    assert result["member"].values.tolist() == [[1, 3, 3, 0], [0, 0, 2, 0]]
    assert np.isnan(result["jaccard_lower"])


@pytest.mark.requirement("D2")
def test_one_circuit_serves_two_tasks_and_the_interval_states_how_surely(circuit, task):
    short = replace(repeated(n=6, length=4, seed=1), name="short")
    result = overlap(find(circuit, task, 2), find(circuit, short, 2))
    assert result.attrs["shared_heads"] == ["L0H0", "L1H0"]
    assert float(result["jaccard"]) == float(result["jaccard_lower"]) == 1.0
    # 1 of the 28 pairs of 8 heads.
    assert float(result["p_value"]) == pytest.approx(1 / 28)
    # Scores of noise: other prompts choose other heads.
    noise = [
        Circuit(((0, 0), (0, 1)), each.mean(0), {}, each)
        for each in np.random.default_rng(0).normal(size=(2, 6, 2, 4))
    ]
    vague = overlap(*noise)
    assert float(vague["correlation_upper"] - vague["correlation_lower"]) > 0.3


def of_edges(edges, total=40):
    """A circuit of edges in a model of 2 layers with 4 heads."""
    ends = {part for name in edges for part in name.removesuffix(".q").split("->")}
    heads = tuple((int(end[1]), int(end[3])) for end in sorted(ends) if "H" in end)
    return Circuit(heads, np.ones((2, 4)), {"edges": total, "task": "ioi"}, edges=edges)


@pytest.mark.requirement("E3")
def test_a_circuit_of_edges_is_kept_in_a_file_and_read_as_a_graph(tmp_path):
    result = of_edges({"L0H1->L1H0.q": 0.5, "embedding->L0.mlp": -0.25, "L1H0->logits": 2.0})
    assert result.nodes == ["L0H1", "L1H0", "embedding", "L0.mlp", "logits"]
    save(result, tmp_path / "circuit.json")
    again = load(tmp_path / "circuit.json")
    assert (again.edges, again.heads, again.provenance) == (
        result.edges, result.heads, result.provenance,
    )  # fmt: skip
    graph = to_graph(result)
    export(result, tmp_path / "graph.json")
    export(result, tmp_path / "graph.graphml")
    linked = nx.node_link_graph(json.loads((tmp_path / "graph.json").read_text()), edges="edges")
    marked = nx.read_graphml(tmp_path / "graph.graphml", force_multigraph=True)
    for read in (linked, marked):
        edges = [(*each[:2], data["input"], data["weight"], data["sign"])
                 for *each, data in read.edges(data=True)]  # fmt: skip
        assert sorted(edges) == [
            ("L0H1", "L1H0", "q", 0.5, 1), ("L1H0", "logits", "", 2.0, 1),
            ("embedding", "L0.mlp", "", -0.25, -1),
        ]  # fmt: skip
        assert set(read) == set(graph)
        assert json.loads(read.graph["provenance"]) == result.provenance
    check_refusal("path", export, result, tmp_path / "graph.dot")
    check_refusal("edges", of_edges, {"L1H0->L0H1": 1.0})
    check_refusal("heads", Circuit, ((0, 0),), np.ones((2, 4)), edges={"L0H1->logits": 1.0})


def test_a_circuit_of_the_format_before_edges_is_read(tmp_path):
    record = {"format": "headscope-circuit-1", "heads": [[0, 1]], "labels": ["L0H1"],
              "provenance": {}, "scores": [[0.0, 1.0]], "samples": None}  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(record))
    assert load(tmp_path / "old.json").heads == ((0, 1),)
    (tmp_path / "new.json").write_text(json.dumps({**record, "format": "headscope-circuit-9"}))
    check_refusal("path", load, tmp_path / "new.json")


@pytest.mark.requirement("E3")
def test_shared_edges_are_held_against_chance():
    one = of_edges({"L0H1->L1H0.q": 0.5, "L1H0->logits": 2.0, "embedding->L0H1.q": 1.0})
    other = of_edges({"L0H1->L1H0.q": -0.5, "L1H0->logits": 1.0})
    result = overlap(one, other)
    assert float(result["edge_jaccard"]) == pytest.approx(2 / 3)
    assert float(result["shared_edges"]) == 2
    assert float(result["expected_edges"]) == pytest.approx(3 * 2 / 40)
    # 3 of the 780 pairs of 40 edges lie within the three.
    assert float(result["edge_p_value"]) == pytest.approx(3 / 780)
    assert float(result["same_sign"]) == 0.5
    check_refusal("edges", overlap, one, of_edges({"L1H0->logits": 1.0}, total=41))


@pytest.mark.requirement("D2")
def test_a_broken_model_recovers_when_its_head_is_given_its_pattern_back(forgetful, circuit, task):
    assert float(evaluate(forgetful, task).mean()) == 0.0
    for options in ({"pattern": "previous"}, {"pattern": "own", "reference": circuit}):
        result = restore(forgetful, task, [PREVIOUS], **options)
        score = dict(zip(result["condition"].values.tolist(), result["score"].values, strict=True))
        assert score["broken"] == score["random other heads repaired"] == 0.0
        assert score["chosen heads repaired"] == 1.0
        assert float(result["gain_lower"]) == 1.0
        assert result.attrs["verdict"] == "supported"
    assert float(result["recovered"]) == 1.0
    wrong = restore(forgetful, task, [PREVIOUS], "first")
    assert float(wrong["gain"]) == 0.0
    assert wrong.attrs["verdict"] == "not_supported"


@pytest.mark.requirement("D2")
def test_edits_that_break_are_undone_by_the_own_pattern(circuit):
    task = repeated(n=2, length=5)
    broken = [Inject((PREVIOUS,), "uniform"), Inject((INDUCTION,), "first")]
    both = restore(circuit, task, [PREVIOUS, INDUCTION], broken=broken, draws=1)
    assert float(both["recovered"]) == 1.0
    half = restore(circuit, task, [PREVIOUS], broken=broken, draws=1)
    assert float(half["recovered"]) == 0.0
    check_refusal("broken", restore, circuit, task, [PREVIOUS], broken=[Inject(((0, 2),), "first")])


@pytest.mark.requirement("D6")
def test_two_models_differ_where_one_was_changed(circuit, forgetful, task):
    texts = [prompt.clean for prompt in task.prompts]
    stats = ("entropy", "max_weight", "lse")
    seen = [capture(model, texts, stats=stats) for model in (circuit, forgetful)]
    result = compare(*seen, ["entropy", "max_weight"])
    assert result.attrs["changed"]["max_weight"][0] == "L0H0"
    # What is downstream of it changes, too; the other heads of its layer cannot.
    assert set(result.attrs["changed"]["max_weight"]) <= {"L0H0", "L1H0"}
    assert not result["max_weight"].values[0, 1:].any()
    assert result["entropy"].attrs["pairing"] == "paired by prompt"
    expected = (seen[1]["entropy"] - seen[0]["entropy"]).mean(("prompt", "query"))
    np.testing.assert_allclose(result["entropy"], expected, atol=1e-6)


@pytest.mark.requirement("D6")
def test_two_models_of_other_architectures_are_compared_head_by_head(circuit, task):
    """A GPT-2 and a Llama of other weights, positions and widths, on the same texts."""
    other = random_llama()
    assert type(other.module) is not type(circuit.module)
    assert other.head_size != circuit.head_size
    texts = [prompt.clean for prompt in task.prompts]
    result = compare(*(capture(model, texts, stats=("entropy",))
                       for model in (circuit, other)), ["entropy"])  # fmt: skip
    maps = [
        [architectures.eager_maps(model.module, model.encode(text)).double() for text in texts]
        for model in (circuit, other)
    ]
    # Heads of the same place, by the entropy of each model's own eager rows.
    means = [
        np.mean([-torch.special.xlogy(each, each).sum(-1).mean(-1) for each in side], axis=0)
        for side in maps
    ]
    np.testing.assert_allclose(result["entropy"], means[1] - means[0], atol=1e-4)
    assert result["entropy"].attrs["pairing"] == "paired by prompt"
    expected = spearmanr(means[0].ravel(), means[1].ravel())[0]
    assert float(result["entropy_agreement"]) == pytest.approx(expected, abs=0.1)
    # Saturated heads of the circuit are broad in the untrained Llama; even ones stay even.
    assert {"L0H0", "L0H1"} <= set(result.attrs["changed"]["entropy"])
    assert result.attrs["first"]["model"] != result.attrs["second"]["model"]


def test_pairs_of_the_same_prompts_are_sharper_than_means_alone():
    # Prompts differ by 10, models by 1: only pairs of the same prompt can tell.
    generator = np.random.default_rng(0)
    prompts = generator.normal(scale=10, size=(30, 1, 1))
    noise = generator.normal(scale=0.1, size=(2, 30, 1, 4))
    first, second = prompts + noise[0], prompts + 1 + noise[1]

    def result(values: np.ndarray, digest: str) -> xr.Dataset:
        meaning = {"units": "nats", "long_name": "Score"}
        data = {"score": (("prompt", "layer", "head"), values, meaning)}
        return xr.Dataset(data, attrs={"prompts_sha256": digest})

    paired = compare(result(first, "a"), result(second, "a"))
    apart = compare(result(first, "a"), result(second, "b"))
    assert paired.attrs["changed"]["score"] == ["L0H0", "L0H1", "L0H2", "L0H3"]
    assert apart.attrs["changed"]["score"] == []
    np.testing.assert_allclose(paired["score"], apart["score"])
    assert "resampled apart" in apart["score"].attrs["pairing"]


def test_means_with_intervals_are_compared_by_them():
    def result(mean: float, half: float) -> xr.Dataset:
        grid, one = ("layer", "head"), np.ones((1, 1))
        return xr.Dataset(
            {
                "score": (grid, mean * one, {"units": "nats"}),
                "score_lower": (grid, (mean - half) * one, {"interval_of": "score"}),
                "score_upper": (grid, (mean + half) * one, {"interval_of": "score"}),
            }
        )

    actual = compare(result(1.0, 0.3), result(2.0, 0.4))
    assert [actual[f"score{end}"].item() for end in ("", "_lower", "_upper")] == [1.0, 0.5, 1.5]
    assert actual["score"].attrs["pairing"] == "unpaired, from the intervals of both means"


def test_what_cannot_be_compared_is_refused_by_field(circuit, task):
    one = removed(circuit, task)
    check_refusal("layer", compare, one, removed(random_llama(layers=3), task, metric="accuracy"))
    check_refusal("units", compare, one, removed(circuit, task, metric="logit_difference"))
    other = removed(circuit, replace(task, name="other"))
    check_refusal("convention", compare, one, other)
    assert not compare(one, other, across=("convention",))["lost"].values.any()
    few, more = (
        one.assign(
            lost=one["lost"].assign_attrs(convention=f"{SOME}; {task.name}".format(**counts))
        )
        for counts in (
            {"ablated": at, "total": 270, "first": at - 16, "drawn": 16} for at in (43, 46)
        )
    )
    assert not compare(few, more)["lost"].values.any()
    first, second = (one.assign_attrs(analysis="x", options=f'{{"k": {k}}}') for k in (1, 2))
    check_refusal("options", compare, first, second)
    check_refusal("across", compare, one, one, across=("seed",))
    check_refusal("gained", compare, one, one, ["gained"])


@pytest.mark.requirement("D5")
def test_what_if_states_what_a_task_loses(circuit, task):
    answer = what_if(circuit, task, [Inject((PREVIOUS,), "first")])
    assert answer["score"].values.tolist() == [1.0, 0.0]
    assert [answer[f"change{end}"].item() for end in ("", "_lower", "_upper")] == [-1.0] * 3
    same = what_if(circuit, task, [Inject((PREVIOUS,), "previous")])
    assert same["change"].item() == 0.0
    assert same.attrs["verdict"] == "not_supported"


@pytest.mark.requirement("D5")
def test_what_if_on_a_text_is_the_loss_of_the_edited_logits(random_llama):
    ids = torch.tensor([[0, 5, 6, 7, 8, 6]])
    edits = (KnockOut(((0, 1), (1, 3)), keys=(0,)),)
    answer = what_if(random_llama, ids.tolist(), edits, words=3)
    for row, some in enumerate(((), edits)):
        with torch.no_grad():
            chances = logits(random_llama, ids, some)[0].double().softmax(-1)
        expected = [-float(chances[at, ids[0, at + 1]].log()) for at in range(5)]
        np.testing.assert_allclose(answer["loss"].values[row, 1:], expected, atol=1e-5)
        assert answer["score"].values[row] == pytest.approx(np.mean(expected), abs=1e-5)
        words = answer["word"].values.tolist()
        best = random_llama.to_str_tokens(chances[-1].topk(3).indices.tolist())
        assert set(best) <= set(words)
        likeliest = answer["next_probability"].values[row].max()
        assert likeliest == pytest.approx(float(chances[-1].max()), abs=1e-5)
    assert np.isnan(answer["loss"].values[:, 0]).all()


def test_bad_input_is_refused(circuit, task, tmp_path):
    check_refusal("edits", what_if, circuit, task, [])
    check_refusal("Ablate.heads", what_if, circuit, task, [Ablate(((9, 0),))])
    check_refusal("pattern", restore, circuit, task, [PREVIOUS])
    check_message("heads: none to repair", restore, circuit, task, [], "first")
    check_message("heads: one is named twice", Circuit, ((0, 0), (0, 0)), np.ones((1, 1)))
    check_message("heads: L0H1 has no score", Circuit, ((0, 1),), np.array([[1.0, np.nan]]))
    check_refusal("count", from_result, removed(circuit, task), "lost", 9)
    (tmp_path / "circuit.json").write_text('{"format": "other"}')
    check_refusal("path", load, tmp_path / "circuit.json")
