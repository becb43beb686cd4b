"""Planted directions are found by every kind, and the activations are what they are said to be."""

import itertools

import pytest
import torch
from refusals import check_message

from headscope.analyses._sparse_autoencoders.autoencoder import (
    KINDS,
    SparseAutoencoder,
    batch_top_k,
    jump,
    step,
    top_k,
)
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.analyses._sparse_autoencoders.training import (
    Settings,
    Training,
    fit,
    geometric_median,
    spread,
)
from headscope.analyses._sparse_autoencoders.vector_buffer import VectorBuffer

SIZE, DIRECTIONS, ACTIVE = 32, 48, 3
SPARSITY = {"relu": 0.3, "topk": 0.0, "batchtopk": 0.0, "jumprelu": 0.1}


def planted(count=8192, seed=0, scale=3.0):
    """Vectors that are sums of about three of 48 directions, around a point away from zero."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(DIRECTIONS, SIZE, generator=torch.Generator().manual_seed(7)), dim=1
    )
    fires = torch.rand(count, DIRECTIONS, generator=generator) < ACTIVE / DIRECTIONS
    strengths = 1 + torch.rand(count, DIRECTIONS, generator=generator)
    return directions, scale * (fires * strengths) @ directions + 2.0


def endless(vectors, batch=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in itertools.count():
        yield vectors[torch.randint(len(vectors), (batch,), generator=generator)]


def train(vectors, kind, **changed):
    settings = {
        "kind": kind, "features": 64, "k": ACTIVE, "sparsity": SPARSITY[kind], "steps": 1500,
        "rate": 3e-3,
    }  # fmt: skip
    return fit(endless(vectors), vectors[:4096], Site(0), Settings(**settings | changed))


def best_cosines(sae, directions):
    return (directions @ sae.decoder.T).max(1).values


@pytest.mark.parametrize("kind", KINDS)
def test_planted_directions_are_found_and_are_not_in_vectors_without_them(kind):
    directions, vectors = planted()
    sae = train(vectors, kind)
    assert best_cosines(sae, directions).mean() > 0.95
    # Gaussian vectors of the same mean and covariance hold no directions.
    mean, covariance = vectors.mean(0), torch.cov(vectors.T)
    normal = torch.randn(len(vectors), SIZE, generator=torch.Generator().manual_seed(1))
    null = train(mean + normal @ torch.linalg.cholesky(covariance).T, kind)
    assert best_cosines(null, directions).mean() < 0.65
    _, other = planted(2048, seed=5)
    left = (other - sae(other)).square().sum() / (other - other.mean(0)).square().sum()
    assert left < 0.2
    active = sae.encode(other)
    assert (active >= 0).all()
    l0 = (active > 0).sum(1).float().mean()
    assert ACTIVE * 0.8 < l0 < ACTIVE * 1.7
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(64))


def test_the_same_seed_gives_the_same_autoencoder_and_another_scale_the_same_directions():
    _, vectors = planted(2048)
    first, again, second = (train(vectors, "topk", steps=60, seed=at) for at in (0, 0, 1))
    assert torch.equal(first.decoder, again.decoder)
    assert not torch.equal(first.decoder, second.decoder)
    large = train(1000 * vectors, "topk", steps=60)
    torch.testing.assert_close(large(1000 * vectors), 1000 * first(vectors), rtol=1e-2, atol=1.0)


def test_topk_keeps_exactly_k_and_batchtopk_k_on_average():
    scores = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) + 0.1
    kept = top_k(scores, 5)
    assert ((kept > 0).sum(1) == 5).all()
    smallest = torch.where(kept > 0, kept, torch.inf).amin(1)
    assert (torch.where(kept > 0, 0, scores).amax(1) <= smallest).all()
    kept = batch_top_k(scores, 5)
    fired = (kept > 0).sum(1)
    assert fired.sum() == 5 * 40
    assert fired.min() < 5 < fired.max()
    assert kept[kept > 0].min() >= scores[kept == 0].max()


def test_batchtopk_fires_k_times_on_average_after_training_too():
    _, vectors = planted()
    sae = train(vectors, "batchtopk", steps=400)
    assert sae.threshold.unique().numel() == 1
    active = sae.encode(planted(2048, seed=3)[1])
    assert (active > 0).sum(1).float().mean() == pytest.approx(ACTIVE, rel=0.2)
    assert (active > 0).sum(1).unique().numel() > 1


def test_the_gradients_of_jumprelu_are_those_of_the_smoothed_step():
    """Around θ the step is a ramp as wide as the kernel; its slope is a finite difference."""
    width = 0.2
    scores = torch.linspace(0.05, 1.0, 39).double()[:, None].requires_grad_(True)
    threshold = torch.tensor([0.43], dtype=torch.float64, requires_grad=True)

    def ramp(theta):
        return ((scores.detach() - theta) / width + 0.5).clamp(0, 1)

    weights = torch.randn(39, 1, generator=torch.Generator().manual_seed(0)).double()
    (weights * step(scores, threshold, width)).sum().backward()
    bump = 1e-7
    numeric = ((ramp(0.43 + bump) - ramp(0.43 - bump)) * weights).sum() / (2 * bump)
    torch.testing.assert_close(threshold.grad[0], numeric, rtol=1e-5, atol=1e-6)
    assert scores.grad is None or not scores.grad.any()

    threshold.grad = None
    (weights * jump(scores, threshold, width)).sum().backward()
    torch.testing.assert_close(threshold.grad[0], 0.43 * numeric, rtol=1e-5, atol=1e-6)
    assert torch.equal(scores.grad, weights * (scores > 0.43))


def test_a_batch_of_tied_scores_does_not_break_the_threshold():
    kept = batch_top_k(torch.zeros(4, 6), 2)
    assert not kept.any()


def test_dead_features_come_back_by_the_auxiliary_loss():
    """Half of the encoder is silenced; without the loss it stays so."""
    from headscope.analyses._sparse_autoencoders import training

    _, vectors = planted(4096)

    def dead_share(weight, monkeypatch):
        start = training._start

        def silenced(*given):
            sae = start(*given)
            sae.encoder_bias.data[32:] = -2.0
            return sae

        monkeypatch.setattr(training, "_start", silenced)
        monkeypatch.setattr(training, "AUXILIARY", weight)
        sae = train(vectors, "topk", steps=600)
        return float((~(sae.encode(vectors) > 0).any(0)).float().mean())

    with pytest.MonkeyPatch.context() as patch:
        without = dead_share(0.0, patch)
    with pytest.MonkeyPatch.context() as patch:
        revived = dead_share(1 / 32, patch)
    assert without > 0.4
    assert revived < without - 0.2


def test_the_geometric_median_is_that_of_the_least_distances():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    points[:20] += 50
    median = geometric_median(points)
    total = (points - median).norm(dim=1).sum()
    for axis in torch.eye(3):
        for side in (-0.01, 0.01):
            assert (points - median - side * axis).norm(dim=1).sum() > total
    assert median.norm() < 1 < points.mean(0).norm()


def test_spread_makes_the_variance_one():
    vectors = 7 * torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) + 3
    scaled = vectors / spread(vectors)
    assert float(scaled.var(0, correction=0).sum()) == pytest.approx(1, abs=1e-4)
    check_message("vectors: all are the same", spread, torch.ones(5, 3))


def numbered(rows, part=10):
    """A stream of vectors that say their own number, and where it was begun."""
    begun = []

    def stream(first):
        begun.append(first)
        return iter(torch.arange(float(rows))[:, None].split(part)[first:])

    return stream, begun


def test_a_short_stream_is_run_once_and_drawn_over_and_over():
    stream, begun = numbered(100)
    batches = VectorBuffer(stream, 1000, 20, torch.Generator().manual_seed(0))
    assert len(batches.held) == 100
    drawn = torch.cat([next(batches) for _ in range(15)]).flatten()
    assert (torch.bincount(drawn.long(), minlength=100) == 3).all()
    assert len(begun) == 1
    assert not torch.equal(drawn[:100], drawn[100:200])


def test_a_long_stream_passes_through_a_buffer_of_bounded_size():
    stream, begun = numbered(1000)
    batches = VectorBuffer(stream, 100, 20, torch.Generator().manual_seed(0), uses=2)
    assert batches.held.flatten().tolist() == list(range(100))
    seen = torch.cat([next(batches) for _ in range(5 * 19)]).flatten()
    assert len(begun) == 1
    assert set(seen.long().tolist()) == set(range(1000))
    for _ in range(20):
        next(batches)
    assert len(begun) == 2


@pytest.mark.parametrize("rows", [70, 1000])
@pytest.mark.parametrize("steps", [0, 3, 17, 43])
def test_a_buffer_goes_on_from_its_state_in_the_order_that_it_would_have_had(rows, steps):
    """The stream has an order of its own, drawn from the same generator."""

    def begin(state=None):
        generator = torch.Generator().manual_seed(5)

        def stream(first):
            order = torch.randperm(rows, generator=generator)
            return iter(order[:, None].float().split(7)[first:])

        return VectorBuffer(stream, 100, 16, generator, 2, state)

    whole = begin()
    for _ in range(steps):
        next(whole)
    state = {name: part.clone() for name, part in whole.state().items()}
    again = begin(state)
    for _ in range(200):
        assert torch.equal(next(whole), next(again))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_from_its_state_to_the_same_weights(kind):
    _, vectors = planted(2048)
    settings = Settings(kind, 64, 3, 0.1, steps=140, batch=64, rate=3e-3)
    batches = [next(endless(vectors, 64, seed)) for seed in range(settings.steps)]
    training = Training.begin(vectors, Site(0), settings)
    for batch in batches[:110]:  # some features are silent by then
        training.step(batch)
    state = {name: part.clone() for name, part in training.state().items()}
    again = Training.resume(state, Site(0), settings)
    for batch in batches[110:]:
        training.step(batch)
        again.step(batch)
    assert training.complete
    assert again.complete
    first, second = (each.result().state_dict() for each in (training, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Without the moments of Adam it is another one.
    bare = {name: part for name, part in state.items() if not name.startswith("adam.")}
    without = Training.resume(bare, Site(0), settings)
    for batch in batches[110:]:
        without.step(batch)
    assert not torch.equal(without.result().decoder, first["decoder"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "gated"}, "kind: 'gated' is not one of"),
        ({"k": 65}, "k: 65 of 64 features"),
        ({"steps": 0}, "steps: 0 is too small"),
    ],
)
def test_settings_without_meaning_are_refused(changed, message):
    settings = Settings(**{"features": 64, **changed})
    check_message(message, settings.check)
    check_message("kind: no 'gated'", SparseAutoencoder, "gated", 4, 8, Site(0))
