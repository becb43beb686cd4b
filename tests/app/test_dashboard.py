"""The Heads screen, run by Streamlit's own test harness: its state is the link."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from headscope.app import loading

MAIN = str(Path(loading.__file__).with_name("main.py"))


@pytest.fixture
def screen(demo_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Open the dashboard on the demo run with some link parameters."""
    monkeypatch.setenv(loading.VARIABLE, str(demo_run))
    monkeypatch.setattr("sys.argv", ["main.py"])

    def opened(**link: str) -> AppTest:
        app = AppTest.from_file(MAIN, default_timeout=60)
        for field, value in link.items():
            app.query_params[field] = value
        app.run()
        assert not app.exception
        return app

    return opened


def title(app: AppTest) -> str:
    return app.main.subheader[1].value


def test_a_link_opens_the_same_view(screen) -> None:
    app = screen(by="head_types.induction", layer="2", head="5", prompt="1")
    assert title(app) == "L2H5"
    assert "Attention to the token after an earlier copy" in app.main.subheader[0].value
    assert app.selectbox(key="prompt").value == 1
    shown = app.main.code[0].value
    assert all(part in shown for part in ("by=head_types.induction", "layer=2", "head=5"))
    assert not app.warning


def test_what_a_link_asks_for_in_vain_is_said(screen) -> None:
    app = screen(by="sinks.nothing", layer="99", head="1", prompt="77")
    assert title(app) == "L0H1"
    said = " ".join(warning.value for warning in app.warning)
    assert "sinks.nothing" in said
    assert "'99'" in said
    assert "'77'" in said


def test_arrows_move_between_heads_and_stop_at_the_edge(screen) -> None:
    app = screen(layer="0", head="6")
    for key, expected in (("Right", "L0H7"), ("Right", "L0H7"), ("Down", "L1H7"), ("Left", "L1H6")):
        app.button(key=f"go_{key}").click().run()
        assert title(app) == expected
    assert app.query_params["head"] in ("6", ["6"])


def test_scores_have_ranks_and_the_causal_ones_come_first(screen) -> None:
    app = screen(layer="1", head="1")
    causal, correlational = app.main.table[0].value, app.main.table[1].value
    assert any("set to zero" in title for title in causal["score"])
    assert all(" of 32" in rank for rank in causal["rank"])
    assert any("first token" in title for title in correlational["score"])


def test_own_text_replaces_the_prompt(screen) -> None:
    app = screen()
    words = app.main.caption[-1].value.split()[:3]
    app.text_area(key="text").set_value(" ".join(words)).run()
    assert not app.error
    assert repr([" ".join(words)]) in app.main.code[1].value


@pytest.mark.parametrize(
    ("text", "said"), [("zebra xylophone", "'zebra', 'xylophone'"), ("the " * 2000, "tokens")]
)
def test_own_text_that_cannot_be_read_is_refused(screen, text: str, said: str) -> None:
    app = screen()
    app.text_area(key="text").set_value(text).run()
    assert not app.exception
    assert said in app.error[0].value


def test_an_empty_dashboard_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(loading.VARIABLE, str(tmp_path / "nothing"))
    monkeypatch.setattr("sys.argv", ["main.py"])
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    assert "headscope demo" in app.info[0].value


def test_table_and_scatter_show_every_head(screen) -> None:
    table = screen(view="table").main.dataframe[0].value
    assert len(table) == 32
    assert table["name"].iloc[-1] == "L3H7"
    assert not screen(view="scatter").exception
