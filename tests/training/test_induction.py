"""The recipe of the series: its rows, and what it does to gradients."""

from itertools import pairwise

import pytest
import torch

from headscope_training.induction import evaluation, rows
from headscope_training.induction.recipe import RECIPE, normalize_gradient
from headscope_training.words import SPECIAL, vocabulary


def test_text_depends_on_the_word_before_alone():
    drawn = rows.text(8, 50, torch.Generator().manual_seed(1))
    after, shares = rows.successors()
    assert float(shares.sum()) == pytest.approx(1)
    for row in drawn.tolist():
        for word, following in pairwise(row):
            assert following in after[word - len(SPECIAL)]
    assert int(drawn.min()) >= len(SPECIAL)
    assert int(drawn.max()) < len(vocabulary())


def test_half_of_a_batch_repeats_and_only_what_can_be_foreseen_counts():
    ids, weights, _ = RECIPE.draw(3)
    assert ids.shape == (rows.BATCH, rows.LENGTH + 1)
    assert bool((ids[:, 0] == 0).all())
    for row, weight in zip(ids[: rows.BATCH // 2, 1:], weights, strict=False):
        period = int((weight == 0).sum())
        assert rows.PERIODS[0] <= period <= rows.PERIODS[1]
        assert torch.equal(row[period:], row[:-period])
    assert bool((weights[rows.BATCH // 2 :, 1:] == 1).all())
    assert torch.equal(ids, RECIPE.draw(3).ids)


def test_rows_that_are_measured_were_not_trained_on():
    texts, again = evaluation.held_out()
    assert torch.equal(again[:, 1 : evaluation.PERIOD + 1], again[:, evaluation.PERIOD + 1 :])
    seen = RECIPE.draw(0).ids
    for row in (*texts, *again):
        assert not any(torch.equal(row[1:33], other[1:33]) for other in seen)


def test_heads_of_one_matrix_keep_their_share_of_its_step():
    weight = torch.nn.Parameter(torch.zeros(4, 3))
    weight.grad = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.0]))[:, :3].clone()
    before = weight.grad.clone()
    normalize_gradient(weight)
    torch.testing.assert_close(weight.grad.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(weight.grad / weight.grad.max(), before / before.max())
