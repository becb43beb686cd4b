"""A sparse autoencoder on head outputs, and the discrete code of every output.

O'Neill & Bui, Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in Language
Models (2405.12522).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Outputs in a training step.
BATCH = 512


class Dictionary(nn.Module):
    """One ReLU layer with unit-norm encoder and decoder rows and a bias tied between them."""

    def __init__(self, size: int, features: int, generator: torch.Generator) -> None:
        super().__init__()
        start = nn.functional.normalize(torch.randn(features, size, generator=generator), dim=-1)
        self.encoder = nn.Parameter(start.clone())
        self.decoder = nn.Parameter(start.clone())
        self.bias = nn.Parameter(torch.zeros(size))

    def encode(self, outputs: Float[Tensor, "... size"]) -> Float[Tensor, "... feature"]:
        """Return how strongly each feature fires, 0 or more."""
        return torch.relu((outputs - self.bias) @ self.encoder.T)

    def decode(self, active: Float[Tensor, "... feature"]) -> Float[Tensor, "... size"]:
        """Return the head output that the features stand for."""
        return active @ self.decoder + self.bias

    @torch.no_grad()
    def rescale(self) -> None:
        """Rescale every row to norm 1."""
        for rows in (self.encoder, self.decoder):
            rows.copy_(nn.functional.normalize(rows, dim=-1))


def fit(
    outputs: Float[Tensor, "example size"],
    *,
    features: int,
    epochs: int,
    rate: float,
    sparsity: float,
    generator: torch.Generator,
) -> Dictionary:
    """Train a dictionary on head outputs, in ``epochs`` steps of Adam.

    All outputs are in each step, of more than `BATCH` so many drawn at random. The loss is
    ``MSE + λ · mean |f|``, λ being ``sparsity``. No epochs give the random directions, drawn from
    ``generator``, that training starts from.
    """
    dictionary = Dictionary(outputs.shape[-1], features, generator)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=rate)
    batch = outputs
    with torch.enable_grad():
        for _ in range(epochs):
            if len(outputs) > BATCH:
                batch = outputs[torch.randperm(len(outputs), generator=generator)[:BATCH]]
            active = dictionary.encode(batch)
            loss = nn.functional.mse_loss(dictionary.decode(active), batch)
            optimizer.zero_grad()
            (loss + sparsity * active.mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            dictionary.rescale()
    return dictionary


@torch.no_grad()
def discretize(
    dictionary: Dictionary, outputs: Float[Tensor, "prompt head size"]
) -> Int[Tensor, "prompt head"]:
    """Return the strongest feature of every head output; 0 also where none fires."""
    return dictionary.encode(outputs).argmax(-1)
