"""Runs of an encoder–decoder model: from the command line to the screen."""

import numpy as np
import pytest
from browser_views import browser_views, weights

from headscope.app.pipeline import analyze_run, open_model
from headscope.kernels.errors import HeadscopeError
from headscope.probes import Pair, capture, pattern
from headscope.probes.storage import run_folder


def test_a_run_of_pairs_is_made_from_a_file(paired_folder, tmp_path, run_command):
    prompts = tmp_path / "pairs.jsonl"
    prompts.write_text('{"source": "w1 w2 w3", "target": "w4 w5"}\n')
    options = ("--prompts", prompts, "--attention", "cross", "--out", tmp_path / "run")
    run_command("capture", paired_folder, *options)
    made = run_folder.open(tmp_path / "run")
    assert made.manifest["attention"] == "cross"
    assert made.prompts() == [Pair([4, 5, 6], [0, 7, 8])]
    assert made.capture["key_token"].values.tolist() == [["w1", "w2", "w3"]]
    assert open_model(made).attention == "cross"


@pytest.mark.parametrize(
    ("line", "attention", "said"),
    [
        ('{"source": "w1", "target": "w2"}', "self", "'encoder', 'decoder', 'cross'"),
        ('{"source": "w1"}', "cross", '{"target": "..."}'),
        ('{"source": "w1", "target": " "}', "cross", "pairs.jsonl:1 is empty"),
        ('{"text": "w1"}', "decoder", "needs Pair(source=..., target=...)"),
    ],
)
def test_what_does_not_fit_is_one_line(line, attention, said, paired_folder, tmp_path, headscope):
    prompts = tmp_path / "pairs.jsonl"
    prompts.write_text(line + "\n")
    options = ("--prompts", prompts, "--attention", attention, "--out", tmp_path / "run")
    assert said in headscope("capture", paired_folder, *options).refusal()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("attention", ["cross", "decoder", "encoder"])
def test_analyses_of_what_comes_next_refuse_and_sinks_runs(attention, paired_runs):
    run = run_folder.open(paired_runs / attention)
    names = ("head_types", "importance", "rollout", "retrieval")
    outcome = analyze_run(run, names, number=2)
    for name in names:
        assert isinstance(outcome[name], HeadscopeError)
        assert f"{name} asks for the next word" in str(outcome[name])
    controls = analyze_run(run, ("sink_controls",), options={"sink_controls": {"prompts": "2"}})
    refused = isinstance(controls["sink_controls"], HeadscopeError)
    assert refused == (attention != "encoder")
    (run.path / "results" / "sink_controls.safetensors").unlink(missing_ok=True)
    assert "sinks" in run.results()


@pytest.mark.parametrize("attention", ["cross", "decoder", "encoder"])
def test_the_screen_shows_targets_down_and_sources_across(attention, paired_runs, dashboard):
    app = dashboard(paired_runs / attention, layer="1", head="2", prompt="1")
    assert app.main.subheader[1].value == "L1H2"
    drawn = browser_views(app)["token_view"]
    rows, columns = (
        ["w11", "w12", "w13"] if attention == "encoder" else ["<pad>", *words(19, 14)],
        ["<pad>", *words(19, 14)] if attention == "decoder" else ["w11", "w12", "w13"],
    )
    assert drawn["queries"] == rows
    assert drawn["keys"] == (columns if attention == "cross" else None)
    assert "opened.prompts()[1]" in app.main.code[1].value


def words(start: int, stop: int) -> list[str]:
    return [f"w{at}" for at in range(start, stop, -1)]


def test_a_pair_of_ones_own_is_drawn(paired_runs, dashboard):
    run = paired_runs / "cross"
    app = dashboard(run, layer="2", head="1")
    app.text_area(key="text").set_value("w30 w31 w32 w33").run()
    assert browser_views(app)["token_view"]["keys"][0] == "w1"
    app.text_area(key="target").set_value("w40").run()
    assert not app.error
    drawn = browser_views(app)["token_view"]
    assert drawn["keys"] == ["w30", "w31", "w32", "w33"]
    assert "Pair('w30 w31 w32 w33', 'w40')" in app.main.code[1].value
    model = open_model(run_folder.open(run))
    pair = Pair("w30 w31 w32 w33", "w40")
    own = pattern(capture(model, pair, stats=("lse",), keep=("q", "k")), 2, 1)
    assert own.shape == (2, 4)
    np.testing.assert_allclose(weights(drawn), own, rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(own.sum("key"), 1.0, atol=1e-5)
