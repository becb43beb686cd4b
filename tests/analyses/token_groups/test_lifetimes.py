import numpy as np
import pytest
from architectures import eager_maps
from constructed import INDUCTION, PREVIOUS, SINK, UNIFORM, repeated

from headscope.analyses._runtime.runner import execute
from headscope.analyses.token_groups._lifetime import received
from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read

pytestmark = pytest.mark.requirement("A20")


@pytest.fixture(scope="module")
def lives(circuit):
    return execute("lifetimes", circuit, repeated(n=3, length=12), options={"window": 2})


def test_what_a_key_receives_is_that_of_the_models_own_maps(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=1, seed=1)
    (ids,) = read(bundled, task).ids
    maps = eager_maps(bundled.module, ids).numpy()
    result = received(bundled, ids, 4, np.full(bundled.layers, np.nan))
    count = len(ids)
    back = np.subtract.outer(np.arange(count), np.arange(count))
    np.testing.assert_allclose(result.total, maps.sum(-2), atol=1e-4)
    np.testing.assert_allclose(result.near, (maps * (back < 4)).sum(-2), atol=1e-4)
    for key in (0, 7, count - 6):
        keys_seen = np.arange(key + 4, count) + 1
        far = maps[..., key + 4 :, key].mean(-1) * keys_seen.mean()
        np.testing.assert_allclose(result.far[..., key], far, atol=1e-3)
        end = maps[..., -4:, key].mean(-1) * (count - 1.5)
        np.testing.assert_allclose(result.end[..., key], end, atol=1e-4)
    np.testing.assert_array_equal(result.far[..., -4:], 0.0)


@pytest.mark.parametrize(
    ("head", "lifetime", "share"),
    [(PREVIOUS, "window", 1.0), (UNIFORM, "global", 1.0), (SINK, "window", 18 / 19)],
)
def test_planted_heads_give_tokens_the_life_that_follows(lives, head, lifetime, share):
    # 25 tokens, 6 of them too near the end to be judged.
    result = lives["lifetime_tokens"].sel(layer=head[0], head=head[1])
    assert float(result.sel(lifetime=lifetime)) == pytest.approx(share, abs=1e-6)


def test_a_sink_is_attended_to_the_end_and_what_is_read_once_from_afar_does_not(lives):
    sink = lives["lifetime_mass"].sel(layer=SINK[0], head=SINK[1])
    assert float(sink.sel(lifetime="global")) > 0.99
    assert float(lives["near_mass"].sel(layer=PREVIOUS[0], head=PREVIOUS[1])) > 0.99
    result = lives["lifetime_tokens"].sel(layer=INDUCTION[0], head=INDUCTION[1])
    # The second half reads words 2 to 13 once each, the last two of them at the end of the text;
    # the first half rests on the first token.
    assert float(result.sel(lifetime="local")) == pytest.approx(11 / 19, abs=1e-6)
    assert float(result.sel(lifetime="global")) == pytest.approx(2 / 19, abs=1e-6)
    # Only the sink and the even heads attend to the first token until the end.
    assert float(lives["token_global"][0]) == pytest.approx(5 / 8)


def test_a_window_takes_nothing_from_heads_whose_tokens_are_window_tokens(lives):
    loss = lives["window_loss"]
    assert loss.attrs["heads"]["window heads limited"] == ["L0H0"]
    intact, window, _ = loss.values
    assert window == pytest.approx(intact, abs=1e-4)


def test_heads_that_attend_far_lose_by_a_window(bundled):
    task = tasks.make("recall", tokenizer=bundled.tokenizer, n=16, seed=2, pairs=6)
    options = {"window": 4, "least_mass": 0.5}
    result = execute("lifetimes", bundled, task, options=options)
    intact, near, far = result["window_loss"].values
    assert far - intact > 5 * (near - intact)
    assert result.attrs["verdict"] == "supported"


def test_short_prompts_and_models_without_order_are_refused(circuit):
    with pytest.raises(HeadscopeError, match="6 tokens is shorter than 8, four windows of 2"):
        execute("lifetimes", circuit, [[0, 5, 6, 7, 8, 9]], options={"window": 2})
