"""An encoder whose circuit is known, from the command line to the dashboard."""

import json
from pathlib import Path

import constructed
import numpy as np
import pytest
from browser_views import browser_views
from browser_views import weights as weights_of

from headscope import analyses
from headscope.app.dashboard import cache
from headscope.app.report.scores import heads_table
from headscope.probes import load_model
from headscope.probes.storage import run_folder

TEXTS = ["note apple north . ask lemon", "Mary John Tom . " * 6, "summer winter . " * 8]
BOTH_WAYS = "model: BertForMaskedLM sees later tokens too, so it predicts no next token"
PREDICTING = {
    "atlas", "context_reliance", "contrast", "distractors", "importance", "latent_retrieval",
    "logit_attribution", "lookback", "needle_sweep", "patching", "query_focus", "reliability",
    "rollout", "sae_circuits", "position_bias", "gradient_relevance", "lrp",
    "injection", "pruning", "task_vectors", "tuning", "faithfulness", "routes",
    "weight_relations", "head_lens", "text_basis", "sae_features",
    "communication", "qk_attribution",
    "edge_attribution", "edge_circuits", "circuit_methods",
}  # fmt: skip
OTHERS = {
    "classes": "no causal order",
    "depth_profile": "needs causal order",
    "frequencies": "positions do not turn",
    "lifetimes": "needs causal order",
    "parallel_context": "need causal order",
    # Its needles are longer than the 80 positions of this model, which is found out first.
    "retrieval": "the context of",
    "preplan_anchor": "needs causal layers",
    "sink_calibration": "without causal order",
    "vocabulary": "the final norm",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_command) -> Path:
    """The encoder as its user saved it, captured and analysed by the command line."""
    place = tmp_path_factory.mktemp("encoder")
    constructed.encoder().save_pretrained(place / "model")
    constructed.encoder_tokenizer().save_pretrained(place / "model")
    (place / "prompts.txt").write_text("\n".join(TEXTS))
    run = place / "run"
    run_command("capture", place / "model", "--prompts", place / "prompts.txt", "--out", run)
    run_command("analyze", run, "--all", "--number", 4)
    run_command("report", run)
    return run


def test_the_planted_heads_are_found(folder):
    results = run_folder.open(folder).results()
    result = results["head_types"].attrs["heads_by_type"]
    nowhere = {name: [] for name in ("duplicate_token", "induction", "bos")}
    assert result == {"previous_token": ["L0H3"], "next_token": ["L0H0"], **nowhere}
    scores = heads_table(results).set_index("name")
    assert scores.loc["L0H0", "head_types.next_token"] > 0.999
    assert scores.loc["L0H3", "head_types.previous_token"] > 0.999
    assert results["sinks"].attrs["heads_by_type"]["later_sink"] == ["L0H1"]
    [best, *_] = results["sinks"].attrs["sink_tokens"]
    assert best["token"] == "[SEP]"
    assert best["share_of_heads"] == pytest.approx(1 / 8, abs=1e-3)


def test_every_query_counts_where_every_query_sees(folder):
    result = run_folder.open(folder).results()["sinks"]
    # A uniform head gives each token of a prompt of T its T-th part, the last one included.
    capture = run_folder.open(folder).capture
    lengths = capture["length"].values
    received = capture["received"].sel(layer=0, head=2)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(received[row, :length], 1 / length, atol=1e-5)
    assert (lengths >= 16).tolist() == [False, True, True]
    assert "no causal order: α_k is over all queries" in result["sink"].attrs["convention"]
    long = capture["received"].sel(layer=0, head=1)[1]
    assert float(long[lengths[1] - 1]) > 0.999
    assert np.isfinite(result["key_share"].values[: lengths.max()]).all()


def test_what_needs_answers_is_refused_in_one_line_of_the_report(folder):
    results = run_folder.open(folder).results()
    assert set(results) == set(analyses.names())
    skipped = {name: one.attrs.get("skipped") for name, one in results.items()}
    refused = {name: output for name, output in skipped.items() if output}
    assert set(refused) == PREDICTING | set(OTHERS)
    declared = {name: analyses.load(name).SUPPORTS for name in analyses.names()}
    assert set(refused) == {name for name, kinds in declared.items() if "encoder" not in kinds}
    assert {refused[name][: len(BOTH_WAYS)] for name in PREDICTING} == {BOTH_WAYS}
    assert all(part in refused[name] for name, part in OTHERS.items())
    assert not [output for output in refused.values() if "\n" in output]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count(f"Not run: {BOTH_WAYS}") == len(PREDICTING)
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(stored["analyses"]) == set(analyses.names())


def test_the_dashboard_draws_both_triangles(folder, dashboard):
    app = dashboard(folder, by="head_types.next_token")
    assert not app.error
    assert "Attention to the token after" in app.main.subheader[0].value
    drawn = browser_views(app)["token_view"]
    assert (drawn["queries"][0], drawn["queries"][-1], drawn["keys"]) == ("[CLS]", "[SEP]", None)
    np.testing.assert_allclose(np.diagonal(weights_of(drawn), 1), 1.0, atol=1e-3)
    model = load_model(run_folder.open(folder).manifest["options"]["source"])
    weights = cache.weights(cache.run_key(folder), tuple(model.encode(TEXTS[0])), 0, 0)
    np.testing.assert_allclose(np.diagonal(weights.values, 1), 1.0, atol=1e-3)
    assert not [link for link in app.get("page_link") if "importance" in link.proto.label]
    scores = dashboard(folder, by="head_types.next_token", tab="Scores")
    # The analysis `importance` cannot measure them here.
    assert scores.main.info[0].value == "No causal score in this run."
    app.text_area(key="text").set_value("apple lemon").run()
    assert not app.exception
    assert not app.error
