import itertools

import numpy as np
import pytest
from constructed import DUPLICATE, PREVIOUS, SINK, UNIFORM, repeated
from refusals import check_refusal

from headscope.analyses import positionality
from headscope.analyses._measurements import without_first
from headscope.probes import capture
from headscope.probes.interventions import Window
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A18")

KEEP = ("q", "k")


@pytest.fixture(scope="module")
def story(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=40, seed=3)
    return capture(bundled, task, stats=(*positionality.NEEDS, "pattern"), keep=KEEP)


def test_heads_that_follow_positions_score_one_and_a_head_that_follows_words_does_not(circuit):
    # Each prompt says its words twice, from the same place on: only the first copy is random.
    prompts = [list(np.random.default_rng(seed).integers(5, 35, 24)) for seed in range(6)]
    prompts = [[0, *map(int, ids)] for ids in prompts]
    cap = capture(circuit, prompts, stats=positionality.NEEDS, keep=KEEP)
    result = positionality.run(cap, circuit, frozen=1)
    scores = result["positionality"].values
    for head in (PREVIOUS, SINK, UNIFORM):
        assert scores[head] == pytest.approx(1.0, abs=1e-3)
        assert result["variance"].values[head] < 1e-3
    assert scores[DUPLICATE] < 0.8
    assert result["variance"].values[DUPLICATE] > 0.05


def test_the_scores_are_those_of_the_whole_maps(bundled, story):
    result = positionality.run(story, bundled, queries=1000, skip=4)
    length = int(story["length"].min())
    maps = story["pattern"].values[:, 1, 3, 4:length].astype(float)
    maps = np.nan_to_num(maps)
    own = (maps**2).sum(-1)
    pairs = list(itertools.permutations(range(len(maps)), 2))
    shared = np.mean([(maps[a] * maps[b]).sum(-1) for a, b in pairs], axis=0)
    expected = (shared / own.mean(0)).mean()
    assert float(result["positionality"].values[1, 3]) == pytest.approx(expected, abs=1e-4)
    variance = maps.var(axis=0, ddof=1).sum(-1).mean()
    assert float(result["variance"].values[1, 3]) == pytest.approx(variance, abs=1e-4)


def test_what_the_first_token_leaves_is_compared_by_itself(bundled, story):
    result = positionality.run(story, bundled, queries=1000, skip=4)
    length = int(story["length"].min())
    maps = np.nan_to_num(story["pattern"].values[:, 1, 3, 4:length].astype(float))
    rest = maps.sum(-1, keepdims=True) - maps[..., :1]
    assert rest.min() > 1e-3
    maps[..., 0] = 0
    maps /= rest
    pairs = itertools.permutations(range(len(maps)), 2)
    shared = np.mean([(maps[a] * maps[b]).sum(-1) for a, b in pairs], axis=0)
    expected = (shared / (maps**2).sum(-1).mean(0)).mean()
    actual = result["positionality_without_first"].values[1, 3]
    assert float(actual) == pytest.approx(expected, abs=1e-4)
    variance = maps.var(axis=0, ddof=1).sum(-1).mean()
    assert float(result["variance_without_first"].values[1, 3]) == pytest.approx(variance, abs=1e-4)


def test_a_head_that_rests_on_the_first_token_is_not_called_positional(circuit, monkeypatch):
    prompts = [[0, *map(int, np.random.default_rng(seed).integers(5, 35, 24))] for seed in range(6)]
    cap = capture(circuit, prompts, stats=positionality.NEEDS, keep=KEEP)
    monkeypatch.setattr(without_first, "LARGE", -1.0)
    result = positionality.run(cap, circuit, frozen=2)
    assert next(iter(result)) == "positionality_without_first"
    # The sink leaves nothing to compare, and its whole rows are all alike.
    assert np.isnan(result["positionality_without_first"].values[SINK])
    assert result["positionality"].values[SINK] == pytest.approx(1.0, abs=1e-3)
    assert all("L0H1" not in heads for heads in result.attrs["heads_by_type"].values())
    assert "lies on the first token" in result.attrs["note"]


def test_positional_heads_do_without_the_text_and_the_others_do_not(bundled, story):
    result = positionality.run(story, bundled)
    most_mean, most_gone, least_mean, least_gone = result["moved"].values
    assert most_mean < 0.2 * most_gone
    assert least_mean > 0.5 * least_gone
    assert result.attrs["verdict"] == "supported"


def test_long_prompts_and_a_lack_of_peers_leave_the_check_out(random_llama):
    lengths = {"shorter": [20, 12], "equal": [14, 14]}
    notes = {}
    for name, given in lengths.items():
        ids = [np.random.default_rng(size).integers(1, 30, size).tolist() for size in given]
        cap = capture(random_llama, ids, stats=positionality.NEEDS, keep=KEEP)
        result = positionality.run(cap, random_llama, skip=2)
        notes[name] = result.attrs["note"]
        assert ("moved" in result) == (name == "equal")
    assert "no two prompts" in notes["shorter"]


def test_bad_input_is_refused(random_llama):
    one = capture(random_llama, [[1, 2, 3]], stats=positionality.NEEDS, keep=KEEP)
    check_refusal("prompts", positionality.run, one, random_llama)
    edits = (Window(heads=((0, 0),), recent=2),)
    edited = capture(random_llama, repeated(n=2, length=4), positionality.NEEDS, KEEP, edits=edits)
    check_refusal("edits", positionality.run, edited, random_llama)
