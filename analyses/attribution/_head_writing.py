"""What heads write into the residual stream at every token, and the loss without each of them."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analyses._interventions import head_sets, next_token_loss
from headscope.analyses._interventions.batched_edits import ablate_rows
from headscope.analyses._runtime.results import marked
from headscope.analyses._stats.bootstrap import Array
from headscope.probes.models.model import Model

# Tokens whose outputs are in the residual stream's width at once.
CHUNK = 1024


def measure(
    capture: xr.Dataset, weights: Float[Tensor, "layer head size residual"]
) -> tuple[Array, Array, Array, Array]:
    """Measure norms and projections of what heads write, averaged over the tokens of every prompt.

    Returned are the shares of the norms and of the output (prompt, layer, head), how evenly the
    norms are spread (prompt, layer), and the norms at the tokens of the first prompt (layer, head,
    query); NaN in layers without an attention map.
    """
    z = capture["z"].transpose("prompt", "layer", "head", "query", ...)
    lengths = capture["length"].values
    prompts, layers, heads = z.shape[:3]
    share, output = np.full((2, prompts, layers, heads), np.nan)
    balance = np.full((prompts, layers), np.nan)
    first = np.full((layers, heads, int(lengths[0])), np.nan)
    for prompt in range(prompts):
        for layer in range(layers):
            if bool(weights[layer].isnan().any()):
                continue
            outputs = z[prompt, layer, :, : int(lengths[prompt])].values
            norms, projected = write_norms(
                torch.from_numpy(np.ascontiguousarray(outputs)), weights[layer]
            )
            if prompt == 0:
                first[layer] = norms
            total = norms.sum(0)
            shares = norms / np.where(total > 0, total, 1.0)
            logs = np.log(np.where(shares > 0, shares, 1.0))
            share[prompt, layer] = shares.mean(1)
            balance[prompt, layer] = (-(shares * logs).sum(0) / np.log(max(heads, 2))).mean()
            output[prompt, layer] = projected.mean(1)
    return share, output, balance, first


def write_norms(
    z: Float[Tensor, "head query size"], weights: Float[Tensor, "head size residual"]
) -> tuple[Array, Array]:
    """Return the norm of what each head writes, and its share of the sum (head, query) each.

    A share is the projection on the sum over its squared length; the shares of a token sum to 1.
    Where the sum is zero they are 0.
    """
    norms, shares = [], []
    for part in torch.split(z.double(), CHUNK, dim=1):
        outputs = [part[head] @ weights[head].double() for head in range(len(z))]
        whole = torch.stack(outputs).sum(0)
        size = whole.square().sum(-1)
        norms.append(torch.stack([output.norm(dim=-1) for output in outputs]))
        dots = torch.stack([(output * whole).sum(-1) for output in outputs])
        shares.append(torch.where(size > 0, dots / size.clamp_min(1e-300), 0.0))
    return torch.cat(norms, dim=1).numpy(), torch.cat(shares, dim=1).numpy()


def loss_without(
    model: Model, ids: Sequence[Sequence[int]], heads: Bool[Tensor, "layer head"]
) -> Array:
    """Return what the next-token loss gains with each head at zero (prompt, layer, head).

    NaN where ``heads`` leaves one out.
    """
    sets = head_sets.masks(model, [[head] for head in marked(heads.numpy())])
    clean = np.array([next_token_loss.mean_loss(model, prompt) for prompt in ids])
    ablated = next_token_loss.sweep_losses(
        model, ids, head_sets.first_layers(sets),
        lambda numbers, prompts: ablate_rows(sets[numbers].repeat_interleave(len(prompts), dim=0)),
    )  # fmt: skip
    result = np.full((len(ids), model.layers, model.heads), np.nan)
    result[:, heads.numpy()] = ablated - clean[:, None]
    return result
