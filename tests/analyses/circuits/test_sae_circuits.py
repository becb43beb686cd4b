from collections import Counter

import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from sklearn.metrics import mutual_info_score, roc_auc_score

from headscope.analyses import sae_circuits
from headscope.analyses._measurements import head_outputs
from headscope.analyses.circuits import _code_trials, _codes, _sae
from headscope.probes import capture
from headscope.probes.constructed import known_circuit

SETTINGS = {"features": 24, "epochs": 100, "rate": 1e-2, "sparsity": 0.02}


def planted(prompts: int = 40, heads: int = 8, size: int = 16):
    """Heads 1 and 5 point elsewhere on the task, the others say the same with or without it."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(heads, size, generator=generator)
    task = torch.randn(heads, size, generator=generator)
    clean, corrupted = base.repeat(prompts, 1, 1), base.repeat(prompts, 1, 1)
    clean[:, [1, 5]] = task[[1, 5]]
    return clean, corrupted


@pytest.mark.requirement("E1")
def test_planted_heads_and_their_edge_are_found_and_shuffled_labels_are_not():
    clean, corrupted = planted()
    pairs = [(first, second) for first in range(4) for second in range(4, 8)]
    known = np.arange(8.0)
    trials = _code_trials.Trials(clean, corrupted, known, pairs, False, 10, SETTINGS)
    scores = zip(*trials.score(torch.Generator().manual_seed(1)), strict=True)
    result = dict(zip(_code_trials.METHODS, scores, strict=True))
    nodes, links = ({name: each[at] for name, each in result.items()} for at in (0, 1))
    truth = np.isin(np.arange(8), (1, 5))
    expected = np.array([pair == (1, 5) for pair in pairs])
    for name in ("trained SAE", "information of codes", "mean difference"):
        assert _code_trials.auc(truth, nodes[name]) == 1.0
    assert (nodes["attribution"] == known).all()
    # Every pair with a planted head is unique to the task, the planted edge among them.
    assert links["trained SAE"][expected] > 0
    assert links["trained SAE"][[1 not in pair and 5 not in pair for pair in pairs]].max() == 0
    assert links["attribution"].tolist() == [first * second for first, second in pairs]
    assert nodes["shuffled labels"].max() == 0
    assert _code_trials.auc(truth, nodes["shuffled labels"]) == 0.5


def test_the_untrained_baseline_starts_where_training_starts():
    outputs = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))

    def fit(epochs):
        settings = {"features": 12, "rate": 1e-2, "sparsity": 0.02, "epochs": epochs}
        return _sae.fit(outputs, **settings, generator=torch.Generator().manual_seed(3))

    start, trained, again = fit(0), fit(200), fit(200)

    @torch.no_grad()
    def error(dictionary):
        return float((dictionary.decode(dictionary.encode(outputs)) - outputs).square().mean())

    assert error(trained) < 0.5 * error(start)
    assert torch.equal(trained.decoder, again.decoder)
    for rows in (trained.encoder, trained.decoder, start.encoder):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(12))
    assert torch.equal(start.encoder, start.decoder)
    assert start.bias.abs().max() == 0 < trained.bias.abs().max()


def test_the_code_is_the_strongest_feature():
    dictionary = _sae.Dictionary(3, 3, torch.Generator())
    with torch.no_grad():
        dictionary.encoder.copy_(torch.eye(3))
    outputs = torch.tensor([[[0.1, 2.0, 1.0], [-1.0, -1.0, -1.0]]])
    assert _sae.discretize(dictionary, outputs).tolist() == [[1, 0]]


def test_pairs_are_counted_only_where_they_never_occur_on_negatives():
    positive = np.array([[1, 2, 3], [1, 4, 3], [5, 2, 3]])
    negative = np.array([[1, 2, 9], [1, 2, 9], [5, 9, 9]])
    edges = [(0, 1), (0, 2)]
    # Edge 0-1: (1, 4) and (5, 2) are new; edge 0-2: (1, 3), twice, and (5, 3).
    assert _codes.unique_pairs(positive, negative, edges, 99).tolist() == [2.0, 2.0]
    assert _codes.unique_pairs(positive, negative, edges, 1).tolist() == [0.0, 1.0]
    assert _codes.unique_codes(positive, negative, per_union=True).tolist() == [0.0, 1 / 3, 0.5]


def test_of_pairs_that_occur_alike_the_first_edges_count():
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 4, (2, 12, 6))
    edges = [(source, target) for source in range(3) for target in range(3, 6)]
    counts = []
    for number, (source, target) in enumerate(edges):
        here, there = (
            Counter(zip(side[:, source].tolist(), side[:, target].tolist(), strict=True))
            for side in (positive, negative)
        )
        counts += [(-here[pair], number) for pair in here.keys() - there.keys()]
    for keep in (0, 1, 7, 20, len(counts), 999):
        expected = np.bincount([edge for _, edge in sorted(counts)[:keep]], minlength=len(edges))
        assert _codes.unique_pairs(positive, negative, edges, keep).tolist() == expected.tolist()


def test_many_outputs_are_trained_on_some_at_a_time(monkeypatch):
    outputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))

    def error(known):
        settings = {"features": 12, "rate": 1e-2, "sparsity": 0.02, "epochs": 200}
        fitted = _sae.fit(known, **settings, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return float((fitted.decode(fitted.encode(outputs)) - outputs).square().mean())

    whole, few = error(outputs), error(outputs[:16])
    monkeypatch.setattr(_sae, "BATCH", 16)
    # Drawn anew each step, they teach about all outputs, unlike the same ones time and again.
    assert whole < error(outputs) < 2 * whole < few


@pytest.mark.parametrize("name", ["circuit", "random_llama"])
def test_head_outputs_add_up_to_what_attention_writes(name, request):
    model = request.getfixturevalue(name)
    ids = [[0, 5, 6, 5, 9]]
    weights = head_outputs.output_weights(model)
    written: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda part, given, result: written.update({part.layer_idx: result[0]})
        )
        for module in model.module.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "is_causal")
    ]
    try:
        cap = capture(model, ids, stats=(), keep=("z",))
    finally:
        for handle in handles:
            handle.remove()
    outputs = head_outputs.mean_outputs(cap, weights).reshape(model.layers, model.heads, -1).sum(1)
    for layer in range(model.layers):
        torch.testing.assert_close(outputs[layer], written[layer][0].detach().mean(0))


def test_the_truth_is_causal_and_the_provenance_complete(circuit):
    task = repeated(n=16, length=6)
    cap = capture(circuit, task, stats=(), keep=("z",))
    result = sae_circuits.run(cap, circuit, task, epochs=20, trials=2, edges=3)
    truth = np.zeros((2, 4))
    truth[PREVIOUS] = truth[INDUCTION] = 1
    assert (result["ground_truth"].values == truth).all()
    assert result.attrs["circuit"] == ["L0H0", "L1H0"]
    assert result["node"].values.sum() == pytest.approx(1)
    assert result["edge_score"].sizes["edge"] == 3
    assert (result["source_layer"].values < result["target_layer"].values).all()
    assert result["node_auc"].sizes["condition"] == len(sae_circuits.METHODS)
    assert (result["node_auc_lower"] <= result["node_auc"]).all()
    assert float(result["node_auc_sae"]) == float(result["node_auc"][0])
    # Heads that write nothing show one code, whatever the prompt.
    assert (result["unique_codes"].values[truth == 0] == 0).all()


def test_without_a_circuit_there_is_no_auc(circuit):
    task = repeated(n=8, length=6)
    cap = capture(circuit, task, stats=(), keep=("z",))
    result = sae_circuits.run(cap, circuit, task, epochs=2, trials=2, threshold=2.0)
    assert np.isnan(result["node_auc"].values).all()
    assert "there is no AUC" in result.attrs["note"]
    assert result.attrs["circuit"] == []


@pytest.fixture(scope="module")
def known():
    """Measure the codes on a constructed model whose heads and edges are known."""
    circuit = known_circuit.load("headscope/constructed-ioi", n=100)
    cap = capture(circuit.model, circuit.task, stats=(), keep=("z",))
    return circuit, sae_circuits.run(cap, circuit.model, circuit.task, edges=999)


@pytest.mark.requirement("E1")
def test_trained_codes_find_the_known_heads_and_shuffled_labels_do_not(known):
    circuit, result = known
    assert result.attrs["circuit"] == [f"L{layer}H{head}" for layer, head in circuit.heads]
    auc, lower, upper = (result[f"node_auc{end}"].to_series() for end in ("", "_lower", "_upper"))
    # With labels mixed the trained codes would be those of "shuffled labels".
    assert lower["trained SAE"] > upper["shuffled labels"]
    assert auc["trained SAE"] > 0.95
    for simple in ("no SAE", "mean difference"):
        assert lower["trained SAE"] > upper[simple]
    # Gradients of the metric say more than codes, which do not know it.
    assert auc["attribution"] == 1
    assert result.attrs["verdict"] == "supported"
    assert "No better than the simpler" in result.attrs["note"]
    assert "attribution" in result.attrs["note"]


@pytest.mark.requirement("E1")
def test_edges_are_held_against_the_known_ones_and_not_against_products(known):
    circuit, result = known
    linked = {edge[:2] for edge in circuit.edges if "H" in edge.source and "H" in edge.target}
    columns = ("source_layer", "source_head", "target_layer", "target_head")
    ends = np.stack([result[name].values for name in columns], 1)
    names = [(f"L{a}H{b}", f"L{c}H{d}") for a, b, c, d in ends]
    assert set(names) > linked
    # Both heads of these are true, and the second does not read the first.
    heads = {f"L{layer}H{head}" for layer, head in circuit.heads}
    assert {pair for pair in names if {*pair} <= heads} > linked
    trained = result["edge_auc"].to_series()["trained SAE"]
    true = np.array([pair in linked for pair in names])
    assert trained == pytest.approx(roc_auc_score(true, result["edge_score"]), abs=0.1)
    lower, upper = (result[f"edge_auc_{end}"].to_series() for end in ("lower", "upper"))
    assert lower["trained SAE"] > upper["shuffled labels"]


def test_information_is_that_of_the_table_of_codes_and_sides():
    positive, negative = np.random.default_rng(0).integers(0, 5, (2, 40, 3))
    sides = np.repeat([1, 0], 40)
    both = np.concatenate((positive, negative))
    expected = [mutual_info_score(both[:, head], sides) / np.log(2) for head in range(3)]
    np.testing.assert_allclose(_codes.information(positive, negative), expected)
    # A code of one side alone says which it is; codes that are all different say so by chance.
    own = np.repeat([[7], [8]], 40, axis=0)
    assert _codes.information(own[:40], own[40:]).tolist() == [1.0]
