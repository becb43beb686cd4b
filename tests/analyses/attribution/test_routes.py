import numpy as np
import pytest
import torch
import transformers
from constructed import INDUCTION, WORDS, repeated
from refusals import check_refusal
from scipy.stats import spearmanr

from headscope import analyses
from headscope.analyses import routes
from headscope.analyses._runtime import runner
from headscope.probes import capture, load_model
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
    # What an edge goes through stands in numbers, too; ends are words at positions, no heads.
    ways = dict(zip(result["way"].values, result["edge_head"].values, strict=True))
    assert ways["residual stream"] == -1
    assert {way: head for way, head in ways.items() if head >= 0} == {"L0H0": 0, "L1H0": 0}
    check_refusal("prompt", routes.run, held, circuit, task, prompt=6)


def test_usage_ranks_heads_like_ablation_on_the_circuit(circuit):
    """The two heads that write are used and cost something; no other does either."""
    task = repeated(n=6, length=5)
    held = capture(circuit, task, **analyses.needs("routes"))
    result = routes.run(held, circuit, task)
    both = [np.abs(result[name].values.ravel()) for name in ("head_usage", "usage_ablation")]
    assert [set(np.argsort(-each)[:2]) for each in both] == [{0, 4}, {0, 4}]
    assert float(result["usage_vs_ablation"]) == pytest.approx(spearmanr(*both).statistic)
    assert float(result["usage_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == "supported"


def test_usage_ranks_heads_like_ablation_on_the_bundled_model(bundled):
    result = runner.execute("routes", bundled, n=16)
    assert float(result["usage_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == "supported"
    # What no token has, the biases of the attention have.
    layers = result["head_usage"].sum("head") + result["residual_usage"] + result["bias_share"]
    np.testing.assert_allclose(layers[-1], 1, atol=1e-6)


def test_biases_take_what_is_missing_of_the_tokens(random_llama):
    module = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(
            "gpt2", vocab_size=len(WORDS), n_positions=80, n_embd=32, n_layer=2, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for block in module.transformer.h:
            block.attn.c_proj.bias.normal_()
    model = load_model(module.eval(), tokenizer=random_llama.tokenizer)
    task = repeated(n=1, length=5)
    result = routes.run(capture(model, task, **analyses.needs("routes")), model, task)
    missing = 1 - float(result["token_importance"].sum())
    assert missing > 0.1
    assert float(result["bias_share"].sum()) == pytest.approx(missing, abs=1e-9)


def test_a_threshold_that_cuts_nothing_is_refused(circuit):
    task = repeated(n=1, length=5)
    held = capture(circuit, task, **analyses.needs("routes"))
    check_refusal("threshold", routes.run, held, circuit, task, threshold=0.0)
