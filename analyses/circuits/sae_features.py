"""Sparse autoencoder features of a layer's head outputs, and what each one does.

An autoencoder on the outputs z of all heads of a layer, given or trained on the first half of the
prompts, is measured on the second half: variance explained and, spliced into the model, the loss
that is recovered, each beside as many principal components and as many random directions, and
beside the mean and zero in place of z. The features of most energy have a page each: where they
fire, which heads write them, the words that they promote through the output projection, and what
the model loses without them.

Sources: Kissane et al., Interpreting Attention Layer Outputs with Sparse Autoencoders (2406.17759);
Gao et al., Scaling and evaluating sparse autoencoders (2406.04093).
"""

from typing import Annotated

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import tokens
from headscope.analyses._runtime.options import AtLeast, Between, OneOf, require_one_text
from headscope.analyses._runtime.results import GRID, SHARE, Results, require
from headscope.analyses._runtime.verdict import LEAST_NATS, Verdict, causal_verdict
from headscope.analyses._sparse_autoencoders import evaluation, splicing
from headscope.analyses._sparse_autoencoders.autoencoder import KINDS, SparseAutoencoder
from headscope.analyses._sparse_autoencoders.baselines import moments, random_directions
from headscope.analyses._sparse_autoencoders.model_training import train
from headscope.analyses._sparse_autoencoders.site import Site, stream
from headscope.analyses._sparse_autoencoders.training import Settings
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import exceeds_zero
from headscope.analyses.circuits import _feature_pages
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
QUICK = {"features": 64, "k": 4, "steps": 30, "shown": 2, "causal_prompts": 2}
SUPPORTS = {"hybrid", "sigmoid"}

CODES = ("sparse autoencoder", "principal components", "random directions")
CONDITIONS = ("intact", *CODES, "mean", "zero")


def run(
    capture: xr.Dataset,
    model: Model,
    sae: SparseAutoencoder | None = None,
    *,
    layer: Annotated[int, AtLeast(-1)] = -1,
    kind: Annotated[str, OneOf(KINDS)] = "topk",
    features: Annotated[int, AtLeast(2)] = 512,
    k: Annotated[int, AtLeast(1)] = 16,
    sparsity: Annotated[float, AtLeast(0)] = 0.1,
    steps: Annotated[int, AtLeast(1)] = 500,
    chosen: str = "",
    most_density: Annotated[float, Between(0, 1)] = 0.1,
    shown: Annotated[int, Between(1, 64)] = 8,
    examples: Annotated[int, Between(1, 16)] = 4,
    reach: Annotated[int, Between(1, 64)] = 8,
    words: Annotated[int, Between(1, 32)] = 6,
    causal_prompts: Annotated[int, AtLeast(1)] = 16,
    causal_tokens: Annotated[int, AtLeast(2)] = 256,
    seed: int = 0,
) -> xr.Dataset:
    """Measure a sparse autoencoder on head outputs, and describe its strongest features.

    Parameters
    ----------
    capture, model
        Capture of the prompts, for their tokens, and its model.
    sae
        Autoencoder, such as `saelens.load` reads; without one it is trained on the first half of
        the prompts, which is quick and rough.
    layer
        Layer whose head outputs it is trained on; −1 is the middle one.
    kind
        Activation of the one that is trained: relu, topk, batchtopk or jumprelu.
    features
        Features of the one that is trained.
    k
        How many of them fire on a token; relu does not read it.
    sparsity
        Weight of the penalty on activations (relu) or on L0 away from k (jumprelu).
    steps
        Steps of its training.
    chosen
        Features to describe, as 3,17; without any, those of most energy (summed squares).
    most_density
        Share of tokens beyond which a feature comes after all others in that order: a feature that
        fires nearly everywhere has no telling examples.
    shown
        How many features are described.
    examples
        Examples of each, the strongest of 16 tokens in a row.
    reach
        Tokens shown on either side of an example.
    words
        Words that name a feature.
    causal_prompts
        Prompts of the second half that the autoencoder and the ablated features are spliced into.
    causal_tokens
        Tokens of each, from the first on.
    seed
        Seed of training, random directions and bootstrap.

    Returns
    -------
    Dataset with ``explained_variance`` (code; share), ``loss`` (condition; nats a token),
    ``loss_recovered`` and ``recovered_from_mean`` (code; share of what zero, or the mean, in place
    of z costs), ``l0`` and ``dead`` (features on a token; share of features that never fire),
    ``density`` (feature; share of tokens), ``written`` (layer, head; features), ``by_head``
    (described, head; share of the squared norm of the decoder), ``lost`` (described; nats a token
    without the feature), ``words_lost`` (described; logits) and ``examples`` (described, example,
    query; activation around the strongest tokens). The coordinates ``promotes`` and ``suppresses``
    name the words of every described feature, ``writer`` the head that writes most of it.
    """
    require(capture, NEEDS, "sae_features")
    require_one_text(capture.attrs.get("attention", "self"), "sae_features")
    model.check_predicts()
    prompts = [ids for ids in tokens(capture) if len(ids) > 1]
    if len(prompts) < 2:
        raise NotApplicable(
            "prompts: sae_features fits on half of them and measures on the others; give two of "
            "two tokens or more"
        )
    half = len(prompts) // 2
    fitted, unseen = prompts[:half], prompts[half:]
    trained = sae is None
    if sae is None:
        settings = Settings(
            kind=kind, features=features, k=min(k, features), sparsity=sparsity, steps=steps,
            seed=seed,
        )  # fmt: skip
        sae = train(model, fitted, _site(model, layer), settings)
    sae.check(model.heads, model.geometry.value_size)
    site = sae.site
    site.check(model.geometry)

    fires = evaluation.firing(stream(model, unseen, site), sae, len(unseen), examples)
    rank = max(1, min(round(float(fires.fired.sum() / fires.tokens.sum())), sae.size))
    reference = moments(batch for _, batch in stream(model, fitted, site))
    mean = reference.mean.float()
    codes: dict[str, splicing.Rewrite] = {
        CODES[0]: sae,
        CODES[1]: reference.components(rank),
        CODES[2]: random_directions(mean, sae.features, rank, seed),
    }
    squares = evaluation.squares(stream(model, unseen, site), mean, codes, len(unseen))

    short = [ids[:causal_tokens] for ids in unseen[:causal_prompts]]
    described = _chosen_features(chosen, fires, shown, most_density)
    if not described:
        raise NotApplicable("sae: none of its features fires on the prompts; give another one")
    pages = _feature_pages.describe(model, sae, described, unseen, fires, reach, words, examples)
    rewrites = [lambda z: z, *codes.values(), mean.expand_as, torch.zeros_like]
    losses, *lost = _feature_pages.splice(model, sae, pages, short, rewrites)

    source = "the first half of the prompts" if trained else "elsewhere"
    about = (
        f"{sae.kind}, {sae.features} features on z of {site}, trained on {source}; measured on "
        f"{len(unseen)} other prompts"
    )
    spliced = f"spliced into {len(short)} prompts of up to {causal_tokens} tokens; {about}"
    comparison = f"{rank} numbers a token each; {about}"
    results = Results(capture, seed=seed, source="2406.17759", convention=about)
    results.add_interval(
        "explained_variance", ("code",),
        evaluation.share_kept(squares[:, :-1], squares[:, -1:], seed=seed),
        "Variance explained", "share", "diverging", None, 1,
        convention=f"1 − squared error / that of the mean of the first half; {comparison}",
    )  # fmt: skip
    _add_losses(results, losses, spliced)
    _add_firing(results, model, sae, fires, about)
    pages.add(results, *lost)
    return results.dataset(
        {
            "code": list(CODES), "condition": list(CONDITIONS),
            "feature": [str(at) for at in range(sae.features)], **pages.coordinates(),
        },
        _verdict(losses, results),
        sae={"kind": sae.kind, "features": sae.features, "k": sae.k, "hook_name": site.hook_name,
             "head": site.head, "trained_here": trained},
    )  # fmt: skip


def _add_losses(results: Results, losses: Array, spliced: str) -> None:
    """Add the loss with z replaced, and the share of the loss that each code recovers."""
    results.add_mean(
        "loss", ("condition",), losses, "Loss with z replaced", "nats", "sequential", 0,
        convention=f"−log p a token; {spliced}", evidence="causal",
    )  # fmt: skip
    over = losses - losses[:, :1]
    for name, against, baseline in (
        ("loss_recovered", -1, "zero"), ("recovered_from_mean", -2, "the mean"),
    ):  # fmt: skip
        costs = bool(exceeds_zero(over[:, against] - LEAST_NATS))
        recovered = evaluation.share_kept(over[:, 1:4], over[:, [against]], seed=results.seed)
        ends = [np.where(costs, end, np.nan) for end in recovered]
        results.add_interval(
            name, ("code",), ends, f"Loss recovered, of what {baseline} in place of z costs",
            "share", "diverging", None, 1, evidence="causal",
            convention=f"1 − loss added / loss added by {baseline}, where that differs from "
            f"{LEAST_NATS:g} nats; {spliced}",
        )  # fmt: skip


def _add_firing(
    results: Results, model: Model, sae: SparseAutoencoder, fires: evaluation.Firing, about: str
) -> None:
    """Add how often features fire, and which heads write them."""
    results.add_mean("l0", (), fires.l0, "Features that fire on a token", "features",
                     "sequential", 0)  # fmt: skip
    count = int(fires.tokens.sum())
    silent = (fires.fired.sum(0) == 0).mean()
    results.add("dead", (), silent, "Features that never fire", *SHARE,
                convention=f"on {count} tokens, no interval; {about}")  # fmt: skip
    alive = fires.energy > 0
    results.add(
        "written", GRID, _features_by_head(model, sae, alive), "Features written by head",
        "features", "sequential", 0,
        convention="of those that fire, how many have the largest part of their decoder row in the "
        f"head; other layers were not measured; exact count, no interval; {about}",
    )  # fmt: skip
    results.add_mean("density", ("feature",), fires.density, "Share of tokens it fires on", *SHARE)


def _site(model: Model, layer: int) -> Site:
    attending = model.geometry.attending
    return Site(attending[len(attending) // 2] if layer < 0 else layer)


def _chosen_features(chosen: str, fires: evaluation.Firing, shown: int, most: float) -> list[int]:
    """List the features to describe: the named ones, or those of most energy that fire at all."""
    if not chosen:
        everywhere = fires.fired.sum(0) / fires.tokens.sum() > most
        order = np.lexsort((-fires.energy, everywhere))
        return [int(at) for at in order if fires.energy[at] > 0][:shown]
    features = len(fires.energy)
    named = [at.strip() for at in chosen.split(",")]
    if not all(at.isdecimal() and int(at) < features for at in named):
        raise InvalidInput(f"chosen: {chosen!r}; give features from 0 to {features - 1}, as 3,17")
    return list(dict.fromkeys(map(int, named)))


def _features_by_head(model: Model, sae: SparseAutoencoder, alive: NDArray[np.bool_]) -> Array:
    """Count the features that each head writes most of (layer, head); NaN in other layers."""
    counts = np.full((model.layers, model.heads), np.nan)
    heads = sae.site.heads(model.heads)
    parts = sae.decoder[torch.from_numpy(alive)].view(int(alive.sum()), len(heads), -1)
    largest = parts.square().sum(2).argmax(1).numpy()
    counts[sae.site.layer, heads] = np.bincount(largest, minlength=len(heads))
    return counts


def _verdict(losses: Array, results: Results) -> Verdict:
    """Conclude whether the model predicts better with the autoencoder than with other codes."""
    above = losses[:, 2:4] - losses[:, 1:2]
    added = (losses[:, 1:] - losses[:, :1]).mean(0)
    text = (
        f"in place of z the autoencoder adds {amount(added[0])} nats a token to the loss, "
        f"principal components {amount(added[1])} and random directions {amount(added[2])}, with "
        f"as many numbers a token ({amount(float(results['l0'].values))}); zero adds "
        f"{amount(added[-1])}"
    )
    return causal_verdict(above, text)
