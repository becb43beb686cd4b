import numpy as np
import pytest
import torch
from constructed import KEYS, NAMES, PREVIOUS, SINK, UNIFORM, VALUES, WORDS
from refusals import check_message

from headscope.analyses import blocks
from headscope.analyses._runtime.runner import execute
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Blocks, load, save
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A10")

TILE, LENGTHS = 4, (30, 21)
SHARES = ("window_share", "stripe_share", "rest_share")


@pytest.fixture(scope="module")
def captured(circuit):
    words = np.random.default_rng(0).permutation([*KEYS, *NAMES, *VALUES])
    ids = [[0, *(WORDS.index(word) for word in words[: size - 1])] for size in LENGTHS]
    return capture(circuit, ids, stats=("pooled_mean", "pattern"), tile=TILE)


@pytest.fixture(scope="module")
def result(captured, circuit):
    return blocks.run(captured, circuit, window=1, stripes=1, causal_prompts=0)


def rows(weights: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Pool one map by hand: queries of each row of blocks, and its shares."""
    starts = range(0, len(weights), TILE)
    result = []
    for start in starts:
        part = weights[start : start + TILE]
        shares = [part[:, at : at + TILE].sum(-1).mean() for at in starts]
        result.append((len(part), np.array(shares)))
    return result


def test_blocks_window_and_stripes_agree_with_the_dense_maps(captured, result):
    patterns = captured["pattern"].values.astype(float)
    for place in np.ndindex(2, 4):
        expected = []
        for prompt, size in enumerate(LENGTHS):
            pooled = rows(patterns[prompt, *place, :size, :size])
            counts = [
                next(k for k in range(1, 99) if np.sort(row)[::-1][:k].sum() >= 0.9 - 1e-5)
                for _, row in pooled
            ]
            weights = np.array([queries for queries, _ in pooled]) / size
            table = np.stack([row for _, row in pooled])
            diagonal = table.diagonal().copy()
            np.fill_diagonal(table, 0)
            expected.append((weights @ counts, weights @ diagonal, (weights @ table).max()))
        actual = [result[name].values[place] for name in ("blocks_needed", *SHARES[:2])]
        np.testing.assert_allclose(actual, np.mean(expected, axis=0), atol=1e-5)
    np.testing.assert_allclose(sum(result[name] for name in SHARES), 1, atol=1e-5)


def test_planted_heads_are_a_window_a_stripe_and_neither(result):
    window, stripe, rest = (result[name].values for name in SHARES)
    # The token before lies in the block before for one query in four, but for the first block.
    expected = np.mean([1 - (-(-size // TILE) - 1) / size for size in LENGTHS])
    np.testing.assert_allclose(window[PREVIOUS], expected, atol=2e-3)
    np.testing.assert_allclose(window[SINK], np.mean([TILE / size for size in LENGTHS]), atol=1e-3)
    np.testing.assert_allclose(window[SINK] + stripe[SINK], 1, atol=1e-3)
    assert result["stripes_needed"].values[SINK] == 1
    assert rest[UNIFORM] > 0.3
    held = result["mass_in_blocks"].values
    np.testing.assert_allclose(held[SINK][0], 1, atol=1e-3)
    assert held[UNIFORM][0] < 0.6


def test_the_needed_blocks_are_enough_for_the_bundled_model_and_random_ones_are_not(bundled):
    task = tasks.make("needle", tokenizer=bundled.tokenizer, n=16, seed=1, length=160)
    result = execute("blocks", bundled, task)
    whole, needed, random = result["block_loss"].values
    assert abs(needed - whole) < 0.02
    assert random - whole > 0.05
    assert float(result["block_density"].mean()) < 0.7
    assert result.attrs["verdict"] == "supported"


def test_the_edit_hides_blocks_as_a_dense_mask_does(bundled, tmp_path):
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand((bundled.layers, bundled.heads, 3, 3), generator=generator) > 0.4
    seen |= torch.eye(3, dtype=torch.bool)
    ids = torch.randint(2, 400, (1, 12), generator=generator)
    members = (0,) * 4 + (1,) * 4 + (2,) * 4
    edit = Blocks(members, seen)
    captured = capture(bundled, ids.tolist(), stats=("pattern",), edits=(edit,))
    weights = torch.from_numpy(captured["pattern"].values[0])
    mask = seen.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert bool((weights.masked_select(~mask) == 0).all())
    # The first layer's logits do not depend on the edit, so its rows are the old ones cut down.
    plain = torch.from_numpy(capture(bundled, ids.tolist(), stats=("pattern",))["pattern"].values)
    cut = plain[0, 0].masked_fill(~mask[0], 0.0)
    torch.testing.assert_close(weights[0], cut / cut.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    save((edit,), tmp_path / "edits.safetensors")
    (back,) = load(tmp_path / "edits.safetensors")
    torch.testing.assert_close(logits(bundled, ids, (back,)), logits(bundled, ids, (edit,)))


def test_bad_input_is_refused(bundled):
    alone = torch.eye(2, dtype=torch.bool).expand(bundled.layers, bundled.heads, 2, 2)
    check_message(r"Blocks.members: give every position", Blocks, (0, 2), alone)
    with pytest.raises(HeadscopeError, match=r"Blocks.members: 2 positions"):
        logits(bundled, torch.tensor([[0, 5, 6]]), (Blocks((0, 1), alone),))
    with pytest.raises(HeadscopeError, match=r"Blocks.seen: shape"):
        logits(bundled, torch.tensor([[0, 5]]), (Blocks((0, 1), alone[:1]),))
    check_message(r"Blocks.seen: .*give True and False", Blocks, (0, 1), alone.float())
