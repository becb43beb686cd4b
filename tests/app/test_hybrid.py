"""A hybrid model, whose layers 0 and 2 have no attention map, in the report and the dashboard."""

from pathlib import Path

import constructed
import pytest
from browser_views import browser_views
from refusals import check_refusal

from headscope import viz
from headscope.app.pipeline import analyze_run, capture_run
from headscope.app.report import build
from headscope.app.report.findings import findings
from headscope.app.report.scores import heads_table
from headscope.probes import capture, load_model, pattern
from headscope.probes.storage import run_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundled) -> Path:
    place = tmp_path_factory.mktemp("hybrid")
    constructed.hybrid(bundled.vocabulary).save_pretrained(place / "model")
    bundled.tokenizer.save_pretrained(place / "model")
    made = capture_run(place / "run", str(place / "model"), task="ioi", number=2)
    analyze_run(made, ("sinks", "rollout", "importance"), number=2)
    build.write_report(made)
    return place / "run"


def test_files_have_no_number_where_there_is_no_attention(folder):
    results = run_folder.open(folder).results()
    table = heads_table(results).set_index("layer").drop(columns=["name", "head"])
    assert table.loc[[0, 2]].isna().all(axis=None)
    assert table.loc[[1, 3], "importance.zero_ablation"].notna().all()
    assert {finding.layer for finding in findings(results, top=8)} <= {1, 3}
    assert all(finding.of == 8 for finding in findings(results))
    assert results["rollout"].attrs["skipped"] == (
        "attention_map: rollout follows attention through every layer, but there is none in "
        "layer 0, 2"
    )


def test_the_grid_states_what_is_absent(folder):
    figure = viz.draw(run_folder.open(folder).results()["importance"], "zero_ablation")
    hover = figure.data[-1].hovertext
    assert sum("no attention map in this layer" in text for row in hover for text in row) == 8
    assert all("rank" in text for text in hover[1])
    assert "grey rows: no attention map in the layer" in figure.layout.title.subtitle.text
    assert "not measured" not in figure.layout.title.subtitle.text
    capture = run_folder.open(folder).capture
    lane = viz.draw(capture.isel(prompt=0), "entropy")
    assert lane.data[0].y[0] == "L0H0 (no map)"
    assert lane.data[0].y[4] == "L1H0"


def test_the_dashboard_opens_at_a_layer_with_heads(folder, dashboard):
    app = dashboard(folder)
    assert not app.error
    assert app.main.subheader[1].value[:2] in ("L1", "L3")
    scores = dashboard(folder, layer="1", head="0", tab="Scores")
    assert all(" of 8" in rank for rank in scores.main.table[0].value["rank"])
    app = dashboard(folder, layer="1", head="0")
    assert browser_views(app)["token_view"]["title"] == "Attention of L1H0"
    assert browser_views(app)["head_grid"]["absent"] == [0, 2]

    app.button(key="go_Down").click().run()
    assert not app.exception
    assert not app.warning
    assert app.main.subheader[1].value == "L2H0"
    output = [one.value for one in app.main.info]
    assert [one.partition(",")[0] for one in output] == [f"L2H0: {viz.ABSENT}"]
    for view in ("scatter", "table"):
        assert dashboard(folder, view=view, layer="0", head="0").main.subheader[1].value == "L0H0"


def test_a_pattern_of_a_layer_without_one_is_refused(folder):
    model = load_model(run_folder.open(folder).manifest["options"]["source"])
    result = capture(model, run_folder.open(folder).prompts()[:1], stats=(), keep=("q", "k"))
    assert pattern(result, layer=1, head=0).sizes["query"] == result.sizes["query"]
    check_refusal("layer", pattern, result, layer=2, head=0)
