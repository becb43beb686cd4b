"""What a model's own eager attention gives: maps, logits and scores of heads."""

import numpy as np
import torch
from scipy.stats import spearmanr

STATISTICS = ("entropy", "max_weight", "first_mass")


def eager_outputs(model, prompts, **options):
    """Return maps (prompt, layer, head, query, key) in float64 and what the model puts out.

    ``prompts`` are token ids, all of one length; ``options`` go to the model's forward pass.
    """
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        ids = torch.tensor(prompts)
        output = model.module(ids, output_attentions=True, return_dict=True, **options)
    model.module.set_attn_implementation(before)
    return torch.stack(output.attentions, 1).double().numpy(), output


def check_statistics(got, maps, atol=2e-5):
    """Hold the `STATISTICS` of a capture against maps."""
    rows = -np.where(maps > 0, maps * np.log(np.maximum(maps, 1e-300)), 0).sum(-1)
    np.testing.assert_allclose(got["entropy"].values, rows, atol=2e-4)
    np.testing.assert_allclose(got["max_weight"].values, maps.max(-1), atol=atol)
    np.testing.assert_allclose(got["first_mass"].values, maps[..., 0], atol=atol)


def head_scores(maps, prompts, name):
    """Mean weight on the token before, or on those after earlier copies, query by query."""
    if name == "previous_token":
        return np.diagonal(maps, -1, 3, 4).mean((0, 3))
    means = []
    for ids, rows in zip(prompts, maps, strict=True):
        result = []
        for query, token in enumerate(ids):
            after = [key + 1 for key in range(query) if ids[key] == token]
            if after:
                result.append(rows[:, :, query, after].sum(-1))
        means.append(np.mean(result, 0))
    return np.mean(means, 0)


def check_heads(scores, maps, prompts, name):
    """Hold the scores (layer, head) of one head type, and its five best heads, against maps."""
    expected = head_scores(maps, prompts, name)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert spearmanr(scores.ravel(), expected.ravel()).statistic >= 0.99
    assert set(np.argsort(scores.ravel())[-5:]) == set(np.argsort(expected.ravel())[-5:])
