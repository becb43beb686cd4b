from functools import cache

import numpy as np
import pytest
import torch
from node_forward import Nodes, effects

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.metrics import score
from headscope.probes import constructed, load_model
from headscope.probes.constructed import known_circuit
from headscope.probes.prompts.tokens import encode

NAMES = constructed.names()


@cache
def known(name):
    return known_circuit.load(name, n=8)


@cache
def patched(name):
    """Measure every node and edge in float64, by a forward pass written out node by node."""
    circuit = known(name)
    task = encode(circuit.task, circuit.model.tokenizer)

    def metric(logits, rows):
        return score(logits, [task.questions[row] for row in rows], circuit.task.metric)

    module, _ = constructed.module(name).build()
    return effects(Nodes(module), task, metric)


def named(heads):
    return {f"L{layer}H{head}" for layer, head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_it_does_its_task(name):
    circuit = known(name)
    for metric in ("accuracy", circuit.task.metric):
        scores = ablation.evaluate(circuit.model, circuit.task, metric=metric)
        assert scores.min() > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_the_written_out_pass_is_the_model(name):
    module, tokenizer = constructed.module(name).build()
    (prompt,) = known_circuit.load(name, n=1).task.prompts
    ids = torch.tensor([tokenizer(prompt.clean)["input_ids"]])
    expected = module(ids).logits
    torch.testing.assert_close(Nodes(module).run(ids)[0].float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_true_heads_move_the_metric_and_no_other_head_does(name):
    circuit, (nodes, _) = known(name), patched(name)
    heads = {node: effect for node, effect in nodes.items() if "H" in node}
    intact = float(ablation.evaluate(circuit.model, circuit.task).mean())
    assert {node for node in heads if heads[node] > 0.03 * intact} == named(circuit.heads)
    assert max(abs(heads[node]) for node in heads.keys() - named(circuit.heads)) < 1e-6
    assert len(circuit.heads) >= 5
    assert len({layer for layer, _ in circuit.heads}) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_true_edges_move_the_metric_and_no_other_edge_does(name):
    circuit, (_, edges) = known(name), patched(name)
    intact = float(ablation.evaluate(circuit.model, circuit.task).mean())
    assert {edge for edge in edges if edges[edge] > 0.02 * intact} == set(circuit.edges)
    assert max(abs(edges[edge]) for edge in edges.keys() - set(circuit.edges)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_ablation_by_the_engine_agrees(name):
    circuit, (nodes, _) = known(name), patched(name)
    task = ablation.encode_task(circuit.model, circuit.task)
    others = ablation.kept_z(ablation.capture_corrupted(circuit.model, task))
    left = ablation.ablate_each_head(circuit.model, task, task.metric, others)
    moved = (ablation.evaluate(circuit.model, task)[:, None, None] - left).mean(0)
    for layer, head in np.ndindex(moved.shape):
        assert moved[layer, head] == pytest.approx(nodes[f"L{layer}H{head}"], abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_other_heads_write_and_some_write_otherwise_on_the_corrupted_prompt(name):
    """Heads outside the circuit write too, so activity alone does not reveal the circuit."""
    task, (module, tokenizer) = known(name).task, constructed.module(name).build()
    nodes, encoded = Nodes(module), encode(task, tokenizer)
    clean, corrupted = (
        nodes.run(torch.tensor([side[0]]))[1] for side in (encoded.ids, encoded.corrupted_ids)
    )
    heads = {node for node in nodes.names() if "H" in node} - named(known(name).heads)
    assert sum(float(clean[head].abs().max()) > 0.05 for head in heads) >= 3
    assert any(float((clean[head] - corrupted[head]).abs().max()) > 0.05 for head in heads)
    assert any(float(clean[head].abs().max()) == 0 for head in heads)


def test_the_same_name_is_the_same_model():
    name = NAMES[0]
    assert load_model(name).revision == load_model(name).revision
    assert len({load_model(each).revision for each in NAMES}) == len(NAMES)
