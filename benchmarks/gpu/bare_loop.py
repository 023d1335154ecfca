"""A Transformer of torch's own modules, as one would write it without this program: what its speed is compared with."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcasync.config.model import ModelConfig

_LENGTH = 32


def bare_batch(tokens: int, pieces: int, device: str) -> tuple[Tensor, Tensor]:
    """Source [B, 32] and target [B, 33] without padding, of `tokens` tokens a side."""
    rows = tokens // _LENGTH
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(1, pieces, (rows, _LENGTH), generator=generator)
    target = torch.randint(1, pieces, (rows, _LENGTH + 1), generator=generator)
    return source.to(device), target.to(device)


class BareTransformer(nn.Module):
    """Pre-norm, one embedding for both sides and the output."""

    def __init__(self, config: ModelConfig, pieces: int) -> None:
        super().__init__()
        self.dim = config.dim
        self.embedding = nn.Embedding(pieces, config.dim)
        self.transformer = nn.Transformer(
            config.dim, config.heads, config.encoder_layers, config.decoder_layers, config.ffn_dim, config.dropout,
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.register_buffer("positions", torch.randn(_LENGTH, config.dim))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_LENGTH))

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Label-smoothed cross entropy per token."""
        scale = math.sqrt(self.dim)
        read, written = (self.embedding(side) * scale + self.positions for side in (source, target[:, :-1]))
        hidden = self.transformer(read, written, tgt_mask=self.mask, tgt_is_causal=True)
        logits = functional.linear(hidden, self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), label_smoothing=0.1)
