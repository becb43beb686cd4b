"""Head classes: masks against whole maps, gates and windows against what is planted."""

import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, SINK, repeated
from refusals import check_refusal

from headscope.analyses import classes
from headscope.analyses._runtime.runner import execute
from headscope.analyses.head_roles import _masks, _window_gates
from headscope.probes import capture
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Window

pytestmark = pytest.mark.requirement("A8")


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_recovered_mass_is_that_of_the_whole_map(bundled, share):
    ids = [0, *range(20, 50), 0, *range(25, 40)]
    cap = capture(bundled, [ids], stats=("pattern", "received"))
    weights = cap["pattern"].values[0].astype(float)
    size, recent, skip = len(ids), 6, 9
    marks = np.broadcast_to(np.array(ids) == 0, (4, 8, size))
    first = np.broadcast_to(np.arange(size) < 3, (4, 8, size))
    often = _masks.frequent(cap["received"].values[0], size, share)
    # The heavy hitters are the largest column sums.
    columns = weights.sum(2)
    least, most = np.where(often, columns, np.inf).min(-1), np.where(often, 0, columns).max(-1)
    assert (least >= most - 1e-5).all()
    sets = {"special": marks, "first": first, "frequent": often}
    result = _masks.recovered(bundled, ids, sets, recent, skip)
    back = np.arange(size)[:, None] - np.arange(size)[None, :]
    for row, mask in enumerate(_masks.MASKS.values()):
        kept = np.zeros((4, 8, 1, size), bool)
        for name in mask.sets:
            kept = kept | sets[name][:, :, None]
        if mask.local:
            kept = kept | (back < recent)
        expected = (weights * kept).sum(-1)[:, :, skip:].mean(-1)
        np.testing.assert_allclose(result[row], expected, atol=1e-5)


@pytest.fixture(scope="module")
def task():
    return repeated(n=4, length=12)


OPTIONS = {"first": 1, "recent": 4, "gate_steps": 20, "gate_rate": 0.2, "window_prompts": 4}


@pytest.fixture(scope="module")
def planted(circuit, task):
    cap = capture(circuit, task, stats=classes.NEEDS, targets=classes.TARGETS)
    return classes.run(cap, circuit, task, **OPTIONS)


def test_planted_heads_get_their_classes(planted):
    kinds = planted["head_type"].values
    assert kinds[PREVIOUS] == "recency"
    assert kinds[INDUCTION] == "retrieval"
    assert kinds[SINK] == "special-token"
    assert kinds[0, 2] == "broad"
    assert float(planted["special_mass"][SINK]) > 0.999
    assert float(planted["recent_mass"][PREVIOUS]) > 0.999
    assert planted.attrs["heads_by_type"]["recency"] == ["L0H0"]
    assert planted["stage"].values[INDUCTION] == "in-context identification"
    assert planted["evidence"].values[INDUCTION] == "correlational"


def test_learned_gates_and_windows_find_the_one_head_that_needs_far_keys(planted):
    gate, cost = planted["gate"].values, planted["window_cost"].values
    # Full attention stays where it is needed, and is given up where nothing hangs on it.
    assert gate[INDUCTION] > 0.9
    assert np.delete(gate.ravel(), 4).max() < 0.1
    assert cost[INDUCTION] > 1
    assert np.abs(np.delete(cost.ravel(), 4)).max() < 1e-4
    table = planted["agreement"]
    assert float(table.sel(one="gate", other="window")) == 1.0
    assert float(table.sel(one="mass", other="window")) < 1.0
    intact, streaming, others, everything = planted["window_loss"].values
    assert streaming == pytest.approx(intact, abs=1e-4)
    assert everything > intact + 1
    assert others <= everything + 1e-4


def test_the_cost_of_one_window_is_that_of_the_edit(bundled):
    ids = [[0, *range(20, 50)], [0, *range(60, 90)]]

    asked = [[3, 10, 29], [7, 8, 29]]

    def measure(output, rows, positions):
        expected = torch.tensor(
            [
                [ids[row][at + 1] for at in places]
                for row, places in zip(rows, positions, strict=True)
            ]
        )
        printed = output.transpose(1, 2)
        return torch.nn.functional.cross_entropy(printed, expected, reduction="none").mean(1)

    def whole(edits):
        output = logits(bundled, torch.tensor(ids), edits)
        return measure(output[torch.arange(2)[:, None], torch.tensor(asked)], [0, 1], asked)

    result = _window_gates.window_cost(bundled, ids, asked, measure, 2, 5)
    with torch.no_grad():
        for head in ((0, 3), (3, 1)):
            edit = Window(heads=(head,), recent=5, first=2)
            change = whole((edit,)) - whole(())
            np.testing.assert_allclose(result[:, head[0], head[1]], change, atol=1e-5)


def test_the_bundled_model_keeps_its_output_where_streaming_heads_stream(bundled):
    result = execute("classes", bundled, n=24, seed=3, options={"window_prompts": 1})
    retrieval = {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}
    assert set(result.attrs["heads_by_type"]["retrieval"]) == retrieval
    intact, streaming, others, _ = result["window_loss"].values
    assert streaming < intact + 0.02
    assert others > intact + 1
    assert result.attrs["verdict"] == "supported"
    assert float(result["agreement"].sel(one="echo", other="gate")) > 0.6
    first, last = result.attrs["gate_loss"]
    assert last < first


def test_bad_input_is_refused(circuit, task):
    cap = capture(circuit, task, stats=classes.NEEDS, targets=classes.TARGETS)
    check_refusal("first, recent", classes.run, cap, circuit, task, recent=64)
    check_refusal("capture", classes.run, cap.sel(target=["duplicate"]), circuit, task)
