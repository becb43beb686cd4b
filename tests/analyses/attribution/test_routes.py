import numpy as np
import pytest
from constructed import INDUCTION, repeated
from refusals import check_refusal

from headscope import analyses
from headscope.analyses import routes
from headscope.probes import capture
from headscope.viz import graph

pytestmark = pytest.mark.requirement("C4")


def test_usage_is_that_of_heads_which_write(circuit):
    task = repeated(n=6, length=5)
    held = capture(circuit, task, **analyses.needs("routes"))
    result = routes.run(held, circuit, task)
    usage = result["head_usage"].values
    assert set(zip(*np.nonzero(usage > 1e-3), strict=True)) <= {(0, 0), INDUCTION}
    assert usage[INDUCTION] > 0.1
    assert result["head_used"].values[INDUCTION] == 1
    assert result["usage_ablation"].values[INDUCTION] > 1
    assert (result["head_usage_lower"] <= result["head_usage"]).all()
    assert result["token_importance"].sum() == pytest.approx(1, abs=1e-6)
    edges = result["route"].where(result["way"] != "MLP", drop=True)
    np.testing.assert_allclose(edges.groupby("source_layer").sum(), 1, atol=1e-6)
    assert graph.accepts(result["route"])
    assert len(graph.figure(result["route"]).data) > 2
    check_refusal("prompt", routes.run, held, circuit, task, prompt=6)
