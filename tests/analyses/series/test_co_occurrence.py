"""Attention starts everywhere alike, and moves to the words that tell the next one.

Tian et al., Scan and Snap (2305.16380), on the data and the model of that paper.
"""

import co_occurrence as toy
import numpy as np
import pytest
import torch
import xarray as xr
from checkpoint_series import follow

from headscope.analyses._stats.bootstrap import t_interval
from headscope.analyses.series import emergence, order
from headscope.probes import capture, load_model

STEPS = (0, 2, 5, 10, 20, 40, 80, 160, 320)
SHARES = dict(zip(("often", "sometimes", "rarely"), toy.DISTINCT_SHARES, strict=True))
COMMON = 1 - sum(toy.DISTINCT_SHARES)


def targets(rows: toy.Rows) -> dict[str, list[list[list[int]]]]:
    """Positions of the words of each kind, by how often they occur with the query's word."""
    result = {}
    for place, name in enumerate((*SHARES, "common")):
        kinds = [
            list(toy.COMMON) if name == "common" else [toy.distinct(word - toy.NEXT.start)[place]]
            for word in rows.following.tolist()
        ]
        result[name] = [
            [[]] * (toy.LENGTH - 1) + [[at for at, word in enumerate(row) if word in kind]]
            for row, kind in zip(rows.ids.tolist(), kinds, strict=True)
        ]
    return result


def held_rows(told: bool = True) -> toy.Rows:
    return toy.draw(160, torch.Generator().manual_seed(77), told=told)


def trained(told: bool = True, **options: float) -> tuple[object, xr.Dataset]:
    rows, last = held_rows(told), []

    def states():
        for step, module in toy.train(STEPS, told=told, **options):
            last[:] = [module]
            yield step, module

    return last, follow(states(), rows.ids.tolist(), targets(rows))


@pytest.fixture(scope="module")
def run():
    return trained()


def score(timeline: xr.Dataset, name: str) -> np.ndarray:
    return timeline[name].values[:, 0, 0]


@pytest.mark.requirement("E4")
def test_attention_moves_from_common_to_distinct_words(run):
    _, timeline = run
    # At first everywhere alike: every kind has its share of the text.
    for name, share in {**SHARES, "common": COMMON}.items():
        low, high = (float(timeline[f"{name}_{end}"][0, 0, 0]) for end in ("lower", "upper"))
        assert low - 0.03 < share < high + 0.03
    assert (np.diff(score(timeline, "often")) > 0).all()
    assert (np.diff(score(timeline, "common")) < 0).all()
    assert timeline["often_lower"][-1, 0, 0] > timeline["often_upper"][0, 0, 0] + 0.1
    assert timeline["common_upper"][-1, 0, 0] < timeline["common_lower"][0, 0, 0] - 0.1
    # One transition: the one rises as the other falls, between the same checkpoints.
    (rise,), (fall,) = (
        emergence(timeline, name, of="change").attrs["order"] for name in ("often", "common")
    )
    assert rise["lower"] <= fall["upper"]
    assert fall["lower"] <= rise["upper"]
    assert order(timeline, ["often", "common"]).attrs["verdict"] == "too_few"
    # Distinct words are dropped one after the other, those that occur less often first.
    peaks = [int(score(timeline, name).argmax()) for name in ("rarely", "sometimes", "often")]
    assert peaks == sorted(set(peaks))


@pytest.mark.requirement("E4")
def test_attention_keeps_what_occurs_together_most_often_and_drops_the_rest_in_that_order():
    """Scores of distinct words follow how often they occur with the next word, over seeds."""
    kinds = (*SHARES, "common")
    ends = []
    for seed in range(3):
        *_, (_, module) = toy.train(STEPS[:-1], seed=seed)
        rows = held_rows()
        result = capture(
            load_model(module), rows.ids.tolist(), stats=("target_mass",), targets=targets(rows)
        )["target_mass"].isel(layer=0, head=0, query=-1)
        counts = np.array([[len(keys[-1]) for keys in targets(rows)[kind]] for kind in kinds])
        mass = result.sel(target=list(kinds)).transpose("target", "prompt").values
        # Weight of one word against that of a common one: the difference of their scores.
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = np.log(mass / counts)
        ends.append(np.nanmean(weight - weight[-1], axis=1))
        # The scores that the weights hold, which no capture has read.
        table = module.transformer.h[0].attn.c_attn.weight.detach().double().numpy()
        width = table.shape[0]
        expected = []
        for query, word in zip(rows.ids[:, -1].tolist(), rows.following.tolist(), strict=True):
            own = table[toy.distinct(word - toy.NEXT.start), width + query]
            expected.append(own - np.log(np.exp(table[list(toy.COMMON), width + query]).mean()))
        np.testing.assert_allclose(ends[-1][:3], np.mean(expected, axis=0), atol=0.05)
    steps = -np.diff(np.array(ends), axis=1)
    assert (t_interval(steps, -np.inf, np.inf)[1] > 0).all()


@pytest.mark.requirement("E4")
def test_it_slows_down_before_one_word_takes_all(run):
    _, timeline = run
    often, steps = score(timeline, "often"), timeline["step"].values
    speed = np.diff(often) / np.diff(steps)
    # The decoder has to learn a little before the attention can; then it is fast, then slow.
    assert speed[0] < speed.max() / 2
    assert speed[-1] < speed.max() / 20
    assert often[-1] < 0.7
    assert float(timeline["sometimes"][-1, 0, 0]) > 0.1
    # The rates of the two layers say where it stops: early, where the decoder has the lead.
    _, ahead = trained(decoder_rate=1.0, attention_rate=0.1)
    assert ahead["often_upper"][-1, 0, 0] < timeline["often_lower"][-1, 0, 0] - 0.1
    assert abs(score(ahead, "often")[-1] - score(ahead, "often")[-3]) < 0.02


@pytest.mark.requirement("E4")
def test_attention_leaves_words_that_do_not_predict_the_next_one():
    """The control: distinct words occur with every next word alike."""
    _, timeline = trained(told=False)
    for name in SHARES:
        assert score(timeline, name).max() < score(timeline, name)[0] + 0.01
    # To words that tell nothing of one text attention does not move: it leaves them as noise.
    assert float(timeline["common_lower"][-1, 0, 0]) > float(timeline["common_upper"][0, 0, 0])
