"""Token embeddings with sinusoidal positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcasync.errors import UserError


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Sines in the first half of the dimensions, cosines in the second: [num_positions, dim] float32.

    Source: Vaswani et al. 2017, section 3.5; halves instead of interleaving as in tensor2tensor, an equivalent order.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / max(half - 1, 1)))
    angles = torch.arange(num_positions)[:, None] * frequencies
    positions = torch.zeros(num_positions, dim)
    positions[:, :half] = angles.sin()
    positions[:, half : 2 * half] = angles.cos()
    return positions


class PositionTable(nn.Module):
    """Sinusoidal positions up to the model's longest sequence; not part of the parameters or the state dict."""

    table: Tensor

    def __init__(self, max_length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_positions(max_length, dim), persistent=False)

    def forward(self, start: int, stop: int) -> Tensor:
        """Positions [stop - start, dim]."""
        if stop > len(self.table):
            raise UserError(
                f"a sequence of {stop} tokens is longer than model.max_length {len(self.table)}: "
                "shorten or filter the input, or train with a larger model.max_length"
            )
        return self.table[start:stop]


class TokenEmbedding(nn.Module):
    """Embeddings scaled by sqrt(dim), so that they can be shared with the output projection (Vaswani et al. 3.4)."""

    def __init__(self, num_pieces: int, dim: int, pad_id: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_pieces, dim))
        self.scale = math.sqrt(dim)
        nn.init.normal_(self.weight, std=dim**-0.5)
        with torch.no_grad():
            self.weight[pad_id] = 0.0

    def forward(self, tokens: Tensor, positions: Tensor, zeroed: Tensor | None = None) -> Tensor:
        """Embeddings and positions, [n, dim].

        Args:
            tokens: [n] int64.
            positions: [n, dim] or [1, dim], added after scaling.
            zeroed: [n] bool, tokens that have a vector of zeros instead; None: none has.
        """
        vectors = functional.embedding(tokens, self.weight)
        if zeroed is not None:
            vectors = vectors.masked_fill(zeroed[:, None], 0.0)
        return torch.add(positions, vectors, alpha=self.scale)
