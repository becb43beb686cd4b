"""The head page: landing, card, tabs, examples, terms, vocabulary, finder and pinned heads."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from browser_views import browser_views, unpacked
from streamlit.testing.v1 import AppTest

from headscope.app.dashboard import prompt_examples
from headscope.app.dashboard.jobs import QUEUE
from headscope.app.pipeline import capture_run
from headscope.app.report import head_summary
from headscope.app.report.scores import Score
from headscope.probes import capture, pattern
from headscope.probes.storage import run_folder


@pytest.fixture
def screen(demo_run: Path, dashboard):
    """Open the dashboard on the demo run with some link parameters."""
    return partial(dashboard, demo_run)


def title(app: AppTest) -> str:
    return app.main.subheader[1].value


def test_a_run_opens_at_the_first_head_of_what_it_has_shown(screen, demo_run):
    """Three prompts show no head to be important, so induction leads."""
    induction = run_folder.open(demo_run).results()["head_types"]["induction"].values
    layer, head = np.unravel_index(np.nanargmax(induction), induction.shape)
    app = screen()
    assert title(app) == f"L{layer}H{head}"
    assert app.selectbox(key="by").value == "head_types.induction"
    assert not app.query_params
    other = screen(by="sinks.sink")
    sink = run_folder.open(demo_run).results()["sinks"]["sink"].values
    assert title(other) == "L{}H{}".format(*np.unravel_index(np.nanargmax(sink), sink.shape))


def test_scores_are_found_by_their_titles_analyses_and_evidence(screen):
    app = screen(by="importance.zero_ablation")
    options = app.selectbox(key="by").options
    assert "importance ◆ Lost on ioi without the head (set to zero) · zero_ablation" in options
    assert "head_types ○ Attention to the token after an earlier copy · induction" in options
    groups = [option.split()[0] for option in options]
    assert groups == sorted(groups), "scores of an analysis stand together"
    assert any(one.value.endswith("importance.zero_ablation") for one in app.main.caption)


def test_every_tab_opens_from_its_link(screen):
    for tab in ("Attention", "Examples", "Scores", "Query-key", "Vocabulary", "What if"):
        app = screen(tab=tab, layer="1", head="2")
        assert not app.error, tab
        assert f"tab={tab.replace(' ', '+')}" in app.main.code[0].value


def test_the_finder_lists_the_first_heads_and_keeps_to_the_filter(screen, demo_run):
    app = screen(by="head_types.induction", first="5")
    (group,) = browser_views(app)["finder"]["groups"]
    induction = run_folder.open(demo_run).results()["head_types"]["induction"].values
    order = np.argsort(-induction, axis=None)[:5]
    expected = ["L{}H{}".format(*np.unravel_index(at, induction.shape)) for at in order]
    assert [row["name"] for row in group["rows"]] == expected
    assert [row["prefix"] for row in group["rows"]] == list("12345")
    app.number_input(key="first").set_value(3).run()
    assert len(browser_views(app)["finder"]["groups"][0]["rows"]) == 3
    named = run_folder.open(demo_run).results()["head_types"].attrs["heads_by_type"]["bos"]
    filtered = browser_views(screen(by="head_types.induction", type="bos"))["finder"]
    assert {row["name"] for row in filtered["groups"][0]["rows"]} <= set(named)


def test_pinned_heads_are_compared_on_the_prompt_in_view(screen, bundled, demo_run):
    app = screen(layer="1", head="2", by="head_types.induction", prompt="1")
    app.button(key="pin").click().run()
    app.button(key="go_Right").click().run()
    app.button(key="pin").click().run()
    shown = browser_views(app)["pinned"]
    assert shown["names"] == ["L1H2", "L1H3"]
    ids = run_folder.open(demo_run).prompts()[1]
    exact = capture(bundled, [ids], stats=("pooled_max",), tile=1)["pooled_max"].values[0, 1, 2:4]
    maps = unpacked(shown["maps"], "u1").reshape(2, *shown["map_shape"])
    size = maps.shape[-1]
    if len(ids) <= size:
        np.testing.assert_allclose(maps, np.ceil(255 * np.sqrt(exact)), atol=1)
    table = app.main.table[0].value
    assert list(table.columns) == ["score", "L1H2", "L1H3"]
    assert "Attention to the token after an earlier copy" in table["score"][0]
    assert "pins=L1H2&pins=L1H3" in app.main.code[0].value
    again = screen(pins="L1H3")
    assert browser_views(again)["pinned"]["names"] == ["L1H3"]
    again.button(key="unpin_L1H3").click().run()
    assert "pinned" not in browser_views(again)


def test_an_example_opens_its_prompt_at_the_token(screen, demo_run, bundled):
    app = screen(tab="Examples", layer="2", head="5")
    shown = browser_views(app)["examples"]
    assert [group["title"] for group in shown["groups"]] == ["Largest", "Deciles of all positions"]
    best = shown["groups"][0]["rows"][0]
    prompt, position = best["id"]
    ids = run_folder.open(demo_run).prompts()[prompt]
    exact = pattern(capture(bundled, [ids], stats=("lse",), keep=("q", "k")), 2, 5).values
    assert float(best["prefix"]) == pytest.approx(exact[position, 1:].max(), rel=0.01)
    assert len(best["words"]) > best["at"]
    every = []
    for ids in run_folder.open(demo_run).prompts():
        result = pattern(capture(bundled, [ids], stats=("lse",), keep=("q", "k")), 2, 5).values
        every.append(result[1:, 1:].max())
    assert float(best["prefix"]) == pytest.approx(max(every), rel=0.01)


def test_examples_share_the_prompts_and_deciles_are_of_all_positions():
    rng = np.random.default_rng(3)
    values = rng.random((20, 50))
    top, deciles = prompt_examples.examples(values)
    assert len({decile.prompt for decile in top}) == 10
    assert [decile.value for decile in top] == sorted(values.max(1))[::-1][:10]
    for share, decile in zip(prompt_examples.DECILES, deciles, strict=True):
        assert decile.value == pytest.approx(np.quantile(values, share), abs=0.01)
        assert values[decile.prompt, decile.position] == decile.value
    assert prompt_examples.examples(np.full((2, 3), np.nan)) == ([], [])


def test_a_run_that_keeps_too_little_states_it(bundled):
    made = capture(bundled, [[0, 5, 6, 5]], stats=("entropy", "offset_mass"))
    known = prompt_examples.statistics(made)
    assert list(known) == ["entropy", "offset_mass[0]", "offset_mass[1]"]
    binned = capture(bundled, [list(range(40))], stats=("entropy",), bins=4)
    with pytest.raises(ValueError, match="every token"):
        prompt_examples.statistics(binned)


def test_examples_state_which_positions_a_capture_without_second_weights_leaves_out(
    dashboard, tmp_path, monkeypatch
):
    monkeypatch.setattr("headscope.app.pipeline.needed", lambda model: ("max_weight", "first_mass"))
    run = capture_run(tmp_path / "run", "headscope/bundled", task="story", number=2, seed=1)
    weights, first = (run.capture[name][..., 1:] for name in ("max_weight", "first_mass"))
    on_first = (weights == first).sum(["prompt", "query"])
    layer, head = np.unravel_index(int(on_first.values.argmax()), on_first.shape)
    count, positions = prompt_examples.unknown(run.capture, int(layer), int(head))
    assert count == int(on_first.max()) > 0
    assert positions == int(weights[:, layer, head].count())
    app = dashboard(run.path, tab="Examples", layer=str(layer), head=str(head))
    [caption] = [text.value for text in app.main.caption if "left out" in text.value]
    assert caption.startswith(f"{count} of {positions} positions are left out")
    assert "topk" in caption


def test_the_terms_of_a_query_and_a_key_are_in_the_link(screen, demo_run, bundled):
    app = screen(tab="Query-key", layer="2", head="5", prompt="1", query_token="6", key_token="2")
    ids = run_folder.open(demo_run).prompts()[1]
    exact = pattern(capture(bundled, [ids], stats=("lse",), keep=("q", "k")), 2, 5).values
    (output,) = [one.value for one in app.main.markdown if "Σ qᵢ·kᵢ" in one.value]
    weight = float(re.findall(r"\*\*([\d.e-]+)\*\*", output)[-1])
    assert weight == pytest.approx(exact[6, 2], rel=0.01)
    rows = browser_views(app)["query_keys"]["groups"][0]["rows"]
    assert [row["id"] for row in rows] == np.argsort(-exact[6], kind="stable")[: len(rows)].tolist()
    later = screen(tab="Query-key", layer="2", head="5", query_token="2", key_token="6")
    assert any("weight is exactly 0" in one.value for one in later.main.markdown)


def test_the_vocabulary_of_a_head_is_a_job(screen):
    app = screen(tab="Vocabulary", layer="2", head="5")
    assert app.main.table[0].value.shape[1] == 3
    app.button(key="vocabulary_run").click().run()
    assert QUEUE.wait(90)
    app.run()
    assert not app.exception
    tables = [one.value for one in app.main.dataframe]
    assert [list(table.columns) for table in tables] == [
        ["token", "promotes", "logit"], ["query", "key", "logit"]
    ]  # fmt: skip
    assert all(len(table) == 20 for table in tables)
    assert not [one for one in app.button if one.key == "vocabulary_run"]


def score(values, evidence="correlational", key="one.two", units="logits", **attrs) -> Score:
    array = xr.DataArray(
        np.asarray(values, dtype=float), dims=("layer", "head"), name="two",
        attrs={"long_name": key, "units": units, "evidence": evidence, **attrs},
    )  # fmt: skip
    return Score(key, array, None, None)


def important(n: int, mean: float, lower: float, upper: float, heads: list[str]):
    """A result of importance with one head of an effect, and its score as the dashboard has it."""
    values = np.zeros((2, 4))
    values[1, 2] = mean
    grid = ("layer", "head")
    attrs = {"evidence": "causal", "units": "logits", "scale": "diverging", "long_name": "Lost"}
    if n < 16:
        attrs["effect"] = "too_few"
    result = xr.Dataset(
        {
            "mean_ablation": (grid, values, attrs),
            "intact": ((), 6.93, {"long_name": "Intact logit difference", "units": "logits"}),
            "null_ablation": ((), 1.42),
        },
        attrs={"n_prompts": n, "task": "ioi", "important_heads": heads},
    )
    ends = [xr.DataArray(np.where(values != 0, end, 0.0), dims=grid) for end in (lower, upper)]
    actual = Score("importance.mean_ablation", result["mean_ablation"], *ends, frozenset(heads))
    return {"importance": result}, {actual.key: actual}


@pytest.mark.parametrize(
    ("n", "ends", "heads", "said"),
    [
        (32, (3.08, 2.71, 3.44), ["L1H2"],
         "Mean ablation lowers the ioi logit difference by 3.08 (95 % interval [2.71, 3.44]) of "
         "6.93, 1st of 8; above the null (1.42) (n = 32)."),
        (32, (-3.08, -3.44, -2.71), [],
         "Mean ablation raises the ioi logit difference by 3.08 (95 % interval [2.71, 3.44]) of "
         "6.93, 1st of 8; not above the null (1.42) (n = 32)."),
        (32, (0.1, -0.2, 0.4), [],
         "Mean ablation changes the ioi logit difference by -0.100 [-0.400, 0.200] of 6.93: no "
         "detectable change (the 95 % interval holds 0), 1st of 8; not above the null (1.42) "
         "(n = 32)."),
        (4, (3.08, 2.71, 3.44), [],
         "Mean ablation lowers the ioi logit difference by 3.08 (95 % interval [2.71, 3.44]) of "
         "6.93, 1st of 8; too few prompts (of at least 16) to tell it from chance (n = 4)."),
    ],
)  # fmt: skip
def test_one_sentence_states_what_an_ablation_does(n, ends, heads, said):
    results, scores = important(n, *ends, heads)
    assert head_summary.causal_sentence(results, scores, 1, 2) == said


def test_a_run_without_an_intervention_states_it():
    scores = {"one.two": score([[0.1, 0.2]])}
    assert "No causal number" in head_summary.causal_sentence({}, scores, 0, 1)


def test_a_disagreement_is_of_the_top_tenth_and_the_lower_half():
    rng = np.random.default_rng(0)
    causal = rng.permutation(40).reshape(4, 10)
    layer, head = np.argwhere(causal == 39)[0]
    flipped = score(39 - causal)
    scores = {"a.b": score(causal, "causal", "a.b"), "c.d": flipped}
    output = head_summary.disagreement(scores, layer, head)
    assert "40th of 40" in output
    assert "1st of 40" in output
    assert not head_summary.disagreement(scores | {"c.d": score(causal)}, layer, head)
    shares = score(39 - causal, units="share")
    assert not head_summary.disagreement(scores | {"c.d": shares}, layer, head)
    middle = tuple(np.argwhere(causal == 25)[0])
    assert not head_summary.disagreement(scores, *middle)


def test_bars_are_the_best_score_of_each_family_and_ties_are_no_top_rank():
    tied = np.ones((2, 5))
    first = np.arange(10.0).reshape(2, 5)
    scores = {
        "sinks.sink": score(tied, key="sinks.sink"),
        "sinks.other": score(first, key="sinks.other"),
        "entropy.entropy": score(-first, key="entropy.entropy"),
        "importance.gate": score(first, key="importance.gate"),
    }
    result = head_summary.highest(scores, 1, 4)
    assert [one.score.key for one in result] == [
        "sinks.other",
        "importance.gate",
        "entropy.entropy",
    ]
    assert [one.below for one in result] == [1.0, 1.0, 0.0]
    assert head_summary.standing(scores["sinks.sink"], 1, 4).below == 0
    assert head_summary.standing(scores["sinks.sink"], 1, 4).rank_text == "1st (10 tied) of 10"


def test_what_an_intervention_has_shown_leads():
    shown = SimpleNamespace(with_effect=frozenset({"L0H0"}))
    none = SimpleNamespace(with_effect=frozenset())
    scores = {"a.b": none, "head_types.induction": none, "patching.noising": shown}
    assert head_summary.leading(scores) == "patching.noising"
    assert head_summary.leading({**scores, "importance.mean_ablation": shown}) == head_summary.MAIN
    assert (
        head_summary.leading({"a.b": none, "head_types.induction": none}) == "head_types.induction"
    )
    assert head_summary.leading({"a.b": none}) == "a.b"
