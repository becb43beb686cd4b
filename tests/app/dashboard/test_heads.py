"""The Heads screen, run by Streamlit's own test harness: its state is the link."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser_views import browser_views, dense_overview, read_codes, unpacked, weights
from streamlit.testing.v1 import AppTest

from headscope.analyses._runtime import taxonomy
from headscope.app.dashboard import cache
from headscope.app.dashboard.components import head_filters
from headscope.app.pipeline import capture_run
from headscope.probes import Model, capture, pattern
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import encode
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


def test_what_a_link_asks_for_in_vain_is_reported(screen):
    app = screen(by="sinks.nothing", layer="99", head="1", prompt="77")
    assert title(app).endswith("H1")
    output = " ".join(warning.value for warning in app.warning)
    assert "sinks.nothing" in output
    assert "'99'" in output
    assert "'77'" in output


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


def long(app: AppTest) -> dict[str, Any]:
    return browser_views(app)["long_view"]


def test_a_long_text_has_an_overview_and_an_exact_window(screen, bundled, long_text):
    app = screen(layer="1", head="3", queries="700-827", keys="640-743", text=long_text)
    assert not app.warning
    ids = bundled.encode(long_text)
    result = capture(bundled, [ids], stats=("lse",), keep=("q", "k"))
    exact = pattern(result, 1, 3).values.astype(float)
    view = long(app)
    assert (view["tile"], view["length"]) == (-(-len(ids) // 256), len(ids))
    expected = dense_overview(exact, view["tile"])
    for name in ("pooled_max", "pooled_mean"):
        pooled = read_codes(view["maps"][name]).reshape(view["blocks"], -1)
        np.testing.assert_allclose(pooled, expected[name], rtol=5.1e-3, atol=1e-6)
    assert view["state"] == {"queries": [700, 828], "keys": [640, 744]}

    window = browser_views(app)["token_view"]
    np.testing.assert_allclose(weights(window), exact[700:828, 640:744], rtol=5.1e-3, atol=2e-5)
    words = bundled.to_str_tokens(ids)
    assert (window["queries"][7], window["keys"][5]) == (words[707], words[645])
    assert window["first"] == [700, 640]
    code = app.main.code[1].value
    assert "queries=slice(700, 828), keys=slice(640, 744), model=model" in code
    shown = app.main.code[0].value
    assert all(part in shown for part in ("queries=700-827", "keys=640-743"))


def test_a_long_text_opens_whole_and_a_shorter_one_drops_the_window(screen, bundled, long_text):
    app = screen(text=long_text, map="pooled_mean", find="the")
    assert not app.warning
    assert long(app)["state"] == {"map": "pooled_mean", "find": "the"}
    assert "token_view" not in browser_views(app)
    tile = -(-len(bundled.encode(long_text)) // 256)
    assert f"tile={tile})" in app.main.code[1].value
    app = screen(text=long_text, queries="700-827", keys="0-99")
    app.text_area(key="text").set_value(" ".join(long_text.split()[:600])).run()
    assert "queries = '700-827'" in " ".join(warning.value for warning in app.warning)
    assert long(app)["state"] == {}
    app.text_area(key="text").set_value(" ".join(long_text.split()[:20])).run()
    assert not app.exception
    assert "token_view" in browser_views(app)
    assert "long_view" not in browser_views(app)


@pytest.mark.parametrize(("queries", "keys"), [("5000-5099", "0-9"), ("0-9", ""), ("0-599", "x")])
def test_a_window_outside_the_text_is_reported(queries, keys, screen, long_text):
    app = screen(text=long_text, queries=queries, keys=keys, map="nothing")
    output = " ".join(warning.value for warning in app.warning)
    assert queries in output
    assert "'nothing'" in output
    assert long(app)["state"] == {}


def test_a_long_prompt_of_a_task_names_its_parts(tmp_path, bundled, dashboard):
    made = tasks.make("needle", tokenizer=bundled.tokenizer, n=2, length=700)
    run = capture_run(tmp_path / "run", "headscope/bundled", prompts=made)
    spans = encode(made, bundled.tokenizer).spans[1]
    (needle,) = spans["needle"]
    app = dashboard(Path(run.path), prompt="1")
    assert long(app)["roles"]["needle"] == [[needle[0], needle[-1] + 1]]
    assert set(long(app)["roles"]) == {"needle", "key", "query", "value"}
    app.text_area(key="text").set_value(made.prompts[0].clean).run()
    assert long(app)["roles"] == {}


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
def test_heads_of_several_types_are_any_or_all_of_them(screen, demo_run):
    named = run_folder.open(demo_run).results()["head_types"].attrs["heads_by_type"]
    induction, previous = set(named["induction"]), set(named["previous_token"])
    assert induction & previous != induction | previous
    app = screen(view="table")
    app.multiselect(key="type").set_value(["induction", "previous-token"]).run()
    assert set(app.main.dataframe[0].value["name"]) == induction | previous
    app.segmented_control(key="types").set_value(head_filters.ALL).run()
    assert set(app.main.dataframe[0].value["name"]) == induction & previous
    assert "types=all+of+them" in app.main.code[0].value


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
    for result, offered in (
        (every, ["causal"]),
        (frozenset(), ["correlational only"]),
        (frozenset({"L1H0"}), ["causal", "correlational only"]),
    ):
        scores = {"one": SimpleNamespace(with_effect=result)}
        assert head_filters.causal(scores) == result
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


def test_a_state_that_the_token_view_lacks_is_reported(screen):
    app = screen(mode="Sound", token="999", scale="huge")
    output = " ".join(warning.value for warning in app.warning)
    assert all(word in output for word in ("'Sound'", "'999'", "'huge'"))
    assert browser_views(app)["token_view"]["state"] == {}


def test_thumbnails_show_every_head_on_the_prompt_in_view(screen, bundled, first_words):
    app = screen(view="thumbnails", text=first_words, layer="1", head="2")
    drawn = browser_views(app)["thumbnails"]
    ids = bundled.encode(first_words)
    exact = capture(bundled, [ids], stats=("pattern",))["pattern"].values[0]
    shape = (4, 8, len(ids), len(ids))
    assert drawn["picked"] == [1, 2]
    result = unpacked(drawn["maps"], "u1").reshape(shape)
    np.testing.assert_allclose(result, np.ceil(255 * np.sqrt(exact)), atol=1)


def test_a_filter_that_the_run_lacks_is_reported(screen):
    app = screen(type="mover")
    assert "'mover'" in " ".join(warning.value for warning in app.warning)
    assert app.multiselect(key="type").value == []


def test_an_empty_dashboard_states_what_to_do(tmp_path, dashboard):
    assert "headscope demo" in dashboard(tmp_path / "nothing").info[0].value


def test_table_and_scatter_show_every_head(screen):
    table = screen(view="table").main.dataframe[0].value
    assert len(table) == 32
    assert table["name"].iloc[-1] == "L3H7"
    assert not screen(view="scatter").exception


def test_tables_of_the_heads_are_offered_wide_and_long(screen):
    app = screen()
    assert not app.get("download_button")
    app.session_state["download"] = True
    app.run()
    for _ in range(2):
        labels = [one.proto.label for one in app.get("download_button")]
        assert labels == ["CSV", "Parquet", "JSON"]
        app.checkbox(key="long").check().run()
        assert not app.exception
