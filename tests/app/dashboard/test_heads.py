"""The Heads screen, run by Streamlit's own test harness: its state is the link."""

import base64
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser_views import browser_views, unpacked, weights
from streamlit.testing.v1 import AppTest

from headscope.analyses._runtime import taxonomy
from headscope.app.dashboard import cache
from headscope.app.dashboard.components import head_filters
from headscope.probes import Model, capture, pattern
from headscope.probes.prompts import tasks
from headscope.probes.prompts.writing import split
from headscope.probes.storage import run_folder


@pytest.fixture
def screen(demo_run: Path, dashboard):
    """Open the dashboard on the demo run with some link parameters."""
    return partial(dashboard, demo_run)


def title(app: AppTest) -> str:
    return app.main.subheader[1].value


def test_a_link_opens_the_same_view(screen):
    app = screen(by="head_types.induction", layer="2", head="5", prompt="1")
    assert title(app) == "L2H5"
    assert "Attention to the token after an earlier copy" in app.main.subheader[0].value
    assert app.selectbox(key="prompt").value == 1
    shown = app.main.code[0].value
    assert all(part in shown for part in ("by=head_types.induction", "layer=2", "head=5"))
    assert not app.warning


def test_what_a_link_asks_for_in_vain_is_said(screen):
    app = screen(by="sinks.nothing", layer="99", head="1", prompt="77")
    assert title(app).endswith("H1")
    said = " ".join(warning.value for warning in app.warning)
    assert "sinks.nothing" in said
    assert "'99'" in said
    assert "'77'" in said


def test_arrows_move_between_heads_and_stop_at_the_edge(screen):
    app = screen(layer="0", head="6")
    for key, expected in (("Right", "L0H7"), ("Right", "L0H7"), ("Down", "L1H7"), ("Left", "L1H6")):
        app.button(key=f"go_{key}").click().run()
        assert title(app) == expected
    assert app.query_params["head"] in ("6", ["6"])


def test_scores_have_ranks_by_analysis_and_the_causal_ones_come_first(screen):
    app = screen(layer="1", head="1", tab="Scores")
    titles = [one.label for one in app.main.expander]
    names = [title.split("**")[1].replace("\\", "") for title in titles]
    assert names == ["importance", "head_types", "sinks"]
    causal, correlational = app.main.table[0].value, app.main.table[1].value
    assert any("set to zero" in title for title in causal["score"])
    assert causal[""].tolist()[:4] == ["◆"] * 4
    assert all(" of 32" in rank for rank in causal["rank"])
    assert any("first token" in title for title in correlational["score"])
    assert "effect" not in correlational


def test_own_text_replaces_the_prompt(screen, first_words):
    app = screen()
    app.text_area(key="text").set_value(first_words).run()
    assert not app.error
    assert repr([first_words]) in app.main.code[1].value


@pytest.mark.parametrize(
    ("text", "said"), [("zebra xylophone", "'zebra', 'xylophone'"), ("the " * 2000, "tokens")]
)
def test_own_text_that_cannot_be_read_is_refused(screen, text, said):
    app = screen()
    app.text_area(key="text").set_value(text).run()
    assert not app.exception
    assert said in app.error[0].value


@pytest.fixture(scope="module")
def long_text(bundled: Model) -> str:
    """Some 900 words that the bundled model knows."""
    told = tasks.make("story", tokenizer=bundled.tokenizer, n=30, seed=3).prompts
    words = [word for prompt in told for word in split(prompt.clean)]
    return " ".join(words[:900])


def drawn(app: AppTest, key: str) -> dict[str, Any]:
    """Read a figure as the browser gets it."""
    charts = [one.proto for one in app.get("plotly_chart") if f"-{key}" in one.proto.id]
    assert len(charts) == 1, key
    figure: dict[str, Any] = json.loads(charts[0].spec)
    return figure


def values(array: Any) -> np.ndarray[Any, Any]:
    """Decode an array of a figure."""
    if isinstance(array, list):
        return np.array(array)
    flat = np.frombuffer(base64.b64decode(array["bdata"]), dtype=array["dtype"])
    return flat.reshape([int(one) for one in str(array.get("shape", len(flat))).split(",")])


def test_a_long_text_has_an_overview_and_an_exact_window(screen, bundled, long_text):
    app = screen(layer="1", head="3", side="128", queries="700", keys="640", text=long_text)
    assert not app.warning
    ids = bundled.encode(long_text)
    found = capture(bundled, [ids], stats=("lse", "pooled_max"), keep=("q", "k"), tile=16)
    exact = pattern(found, 1, 3, queries=slice(700, 828), keys=slice(640, 768)).values

    overview = drawn(app, "overview_chart")
    pooled = found["pooled_max"].values[0, 1, 3]
    np.testing.assert_allclose(values(overview["data"][0]["z"]), pooled, atol=1e-6)
    box = overview["layout"]["shapes"][0]
    assert (box["y0"], box["y1"], box["x0"], box["x1"]) == (699.5, 827.5, 639.5, 767.5)

    window = drawn(app, "pattern_chart")["data"][0]
    np.testing.assert_allclose(values(window["z"]), exact, atol=2e-5)
    words = bundled.words(ids)
    assert window["x"][5] == f"645: {words[645]}"
    assert window["y"][7] == f"707: {words[707]}"
    row = drawn(app, "row_chart")
    assert f"Where L1H3 looks from 827: {words[827]}" in row["layout"]["title"]["text"]
    code = app.main.code[1].value
    assert "queries=slice(700, 828), keys=slice(640, 768), model=model" in code
    shown = app.main.code[0].value
    assert all(part in shown for part in ("side=128", "queries=700", "keys=640"))


def test_sliders_move_the_window_and_a_shorter_text_keeps_it_inside(screen, bundled, long_text):
    app = screen(text=long_text)
    assert "0: &lt;bos&gt;" in drawn(app, "pattern_chart")["data"][0]["y"][0]
    app.slider(key="queries").set_value(750).run()
    assert drawn(app, "pattern_chart")["data"][0]["y"][0].startswith("750: ")
    assert app.query_params["queries"] in ("750", ["750"])
    app.selectbox(key="side").set_value(256).run()
    assert app.slider(key="queries").value == 750
    last = len(bundled.encode(long_text)) - 1
    assert drawn(app, "pattern_chart")["data"][0]["y"][-1].startswith(f"{last}: ")
    app.selectbox(key="side").set_value(64).run()
    assert drawn(app, "pattern_chart")["data"][0]["y"][0].startswith("750: ")
    app.text_area(key="text").set_value(" ".join(long_text.split()[:600])).run()
    length = len(bundled.encode(" ".join(long_text.split()[:600])))
    assert app.slider(key="queries").value == length - 64
    assert drawn(app, "pattern_chart")["data"][0]["y"][-1].startswith(f"{length - 1}: ")
    app.text_area(key="text").set_value(" ".join(long_text.split()[:20])).run()
    assert not app.exception
    assert [one.key for one in app.get("slider")] == ["top"]


def test_a_window_outside_the_text_is_said(screen, long_text):
    app = screen(text=long_text, queries="5000", side="77", map="nothing")
    said = " ".join(warning.value for warning in app.warning)
    assert all(one in said for one in ("'5000'", "'77'", "'nothing'"))
    assert app.slider(key="queries").value == 0


@pytest.mark.requirement("A13")
def test_heads_are_filtered_by_the_words_of_the_survey(screen, demo_run):
    named = run_folder.open(demo_run).results()["head_types"].attrs["heads_by_type"]
    app = screen(view="table", stage="latent reasoning")
    assert sorted(app.main.dataframe[0].value["name"]) == sorted(named["induction"])
    assert app.multiselect(key="stage").value == ["latent reasoning"]
    app.multiselect(key="type").set_value(["previous-token"]).run()
    both = set(named["induction"]) & set(named["previous_token"])
    assert set(app.main.dataframe[0].value["name"]) == both
    assert "stage=latent+reasoning" in app.main.code[0].value
    assert "type=previous-token" in app.main.code[0].value


@pytest.mark.requirement("A13")
def test_three_prompts_show_no_head_to_be_causal(screen):
    app = screen(view="table")
    told = " ".join(one.value for one in app.sidebar.caption)
    assert "too few prompts for importance.zero_ablation" in told
    assert app.segmented_control(key="evidence").options == ["correlational only"]
    app.segmented_control(key="evidence").set_value("correlational only").run()
    assert len(app.main.dataframe[0].value) == 32


@pytest.mark.requirement("A13")
def test_no_filter_that_is_offered_is_empty(screen, demo_run):
    kinds = head_filters.collect(run_folder.open(demo_run).results())
    for kind in kinds.values():
        assert kind.stage in (*taxonomy.STAGES, taxonomy.NO_STAGE)
        assert kind.method in [way for _, way in taxonomy.METHODS.values()]
    app = screen(view="table")
    offered = {key: app.multiselect(key=key).options for key in ("type", "stage", "method")}
    assert offered["type"] == list(kinds)
    for key, options in offered.items():
        assert options
        for option in options:
            shown = set(screen(view="table", **{key: option}).main.dataframe[0].value["name"])
            field = "name" if key == "type" else key
            heads = [kind.heads for kind in kinds.values() if getattr(kind, field) == option]
            assert shown == set().union(*heads) != set()


@pytest.mark.requirement("A13")
def test_evidence_that_no_head_has_is_not_offered():
    every = frozenset({"L0H0", "L0H1", "L1H0", "L1H1"})
    for found, offered in (
        (every, ["causal"]),
        (frozenset(), ["correlational only"]),
        (frozenset({"L1H0"}), ["causal", "correlational only"]),
    ):
        scores = {"one": SimpleNamespace(with_effect=found)}
        assert head_filters.causal(scores) == found
        assert head_filters.evidence(scores, 4) == offered


def test_the_grid_fades_the_heads_that_are_filtered_out(screen):
    app = screen(type="induction")
    kept = unpacked(browser_views(app)["head_grid"]["shown"], "u1")
    assert 0 < kept.sum() < kept.size == 32
    assert f"{kept.sum()} of 32 heads" in " ".join(one.value for one in app.sidebar.caption)


def test_the_token_view_has_the_weights_of_the_prompt_and_its_state_from_the_link(screen, bundled):
    app = screen(layer="2", head="5", prompt="1", mode="Lines", token="3", scale="log", hide="True")
    assert not app.warning
    drawn = browser_views(app)["token_view"]
    assert drawn["state"] == {"mode": "Lines", "scale": "log", "hide": True, "token": 3}
    assert browser_views(app)["head_grid"]["picked"] == [2, 5]
    ids = run_folder.open(cache.folder()).prompts()[1]
    exact = pattern(capture(bundled, [ids], stats=("lse",), keep=("q", "k")), 2, 5)
    np.testing.assert_allclose(weights(drawn), exact, rtol=5e-3, atol=1e-30)
    assert drawn["queries"][0] == "<bos>"
    assert "mode=Lines" in app.main.code[0].value


def test_a_state_that_the_token_view_lacks_is_said(screen):
    app = screen(mode="Sound", token="999", scale="huge")
    said = " ".join(warning.value for warning in app.warning)
    assert all(word in said for word in ("'Sound'", "'999'", "'huge'"))
    assert browser_views(app)["token_view"]["state"] == {}


def test_thumbnails_show_every_head_on_the_prompt_in_view(screen, bundled, first_words):
    app = screen(view="thumbnails", text=first_words, layer="1", head="2")
    drawn = browser_views(app)["thumbnails"]
    ids = bundled.encode(first_words)
    exact = capture(bundled, [ids], stats=("pattern",))["pattern"].values[0]
    shape = (4, 8, len(ids), len(ids))
    assert drawn["picked"] == [1, 2]
    found = unpacked(drawn["maps"], "u1").reshape(shape)
    np.testing.assert_allclose(found, np.ceil(255 * np.sqrt(exact)), atol=1)


def test_a_filter_that_the_run_lacks_is_said(screen):
    app = screen(type="mover")
    assert "'mover'" in " ".join(warning.value for warning in app.warning)
    assert app.multiselect(key="type").value == []


def test_an_empty_dashboard_says_what_to_do(tmp_path, dashboard):
    assert "headscope demo" in dashboard(tmp_path / "nothing").info[0].value


def test_table_and_scatter_show_every_head(screen):
    table = screen(view="table").main.dataframe[0].value
    assert len(table) == 32
    assert table["name"].iloc[-1] == "L3H7"
    assert not screen(view="scatter").exception


def test_tables_of_the_heads_are_offered_wide_and_long(screen):
    app = screen()
    for _ in range(2):
        labels = [one.proto.label for one in app.get("download_button")]
        assert labels == ["CSV", "Parquet", "JSON"]
        app.checkbox(key="long").check().run()
        assert not app.exception
