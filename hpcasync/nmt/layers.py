"""The layers of the Transformer: over the rows of a packed batch, or over one position with cached keys and values."""

import torch
from torch import Tensor, nn

from hpcasync.config.model import ModelConfig
from hpcasync.nmt.attention import cross_attention, self_attention
from hpcasync.nmt.dropout import add_dropout
from hpcasync.nmt.linear import Linear
from hpcasync.nmt.packing import Packing


class Residual(nn.Module):
    """The frame of a sub-layer: normalisation, dropout and the residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = config.dropout
        self.is_pre_norm = config.norm == "pre"

    def before(self, stream: Tensor) -> Tensor:
        """The input of the sub-layer."""
        return self.norm(stream) if self.is_pre_norm else stream

    def after(self, stream: Tensor, output: Tensor) -> Tensor:
        """The residual stream after the sub-layer."""
        stream = add_dropout(stream, output, self.dropout, self.training)
        return stream if self.is_pre_norm else self.norm(stream)


class FeedForward(nn.Module):
    """Position-wise feed-forward sub-layer with ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.residual = Residual(config)
        self.inner = Linear(config.dim, config.ffn_dim)
        self.outer = Linear(config.ffn_dim, config.dim)

    def forward(self, stream: Tensor) -> Tensor:
        hidden = self.inner(self.residual.before(stream), relu=True)
        return self.residual.after(stream, self.outer(hidden))


class SelfAttention(nn.Module):
    """Self-attention sub-layer; query, key and value are one projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.residual = Residual(config)
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.project = Linear(config.dim, config.dim, num_fused=3)
        self.outer = Linear(config.dim, config.dim)

    def forward(self, stream: Tensor, packing: Packing, *, causal: bool) -> Tensor:
        projected = packing.pad(self.project(self.residual.before(stream)))
        # Padding is on the right: causality alone hides it from all tokens.
        mask = None if causal else packing.mask
        dropout = self.attention_dropout if self.training else 0.0
        output = self_attention(projected, self.heads, mask, causal=causal, dropout=dropout)
        return self.residual.after(stream, self.outer(packing.pack(output)))

    def step(self, stream: Tensor, cache: Tensor, position: int) -> Tensor:
        """One position of N rows, [N, dim]; cache [N, 2, capacity, heads, head_dim] is written at `position`."""
        query, *key_value = self.project(self.residual.before(stream)).chunk(3, dim=-1)
        cache[:, :, position] = torch.stack(key_value, dim=1).view(len(stream), 2, self.heads, -1)
        output = cross_attention(query[:, None], cache[:, :, : position + 1].transpose(1, 2), None)
        return self.residual.after(stream, self.outer(output[:, 0]))


class CrossAttention(nn.Module):
    """Attention to the encoder's output; keys and values come from the decoder's one projection of it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.residual = Residual(config)
        self.attention_dropout = config.attention_dropout
        self.project = Linear(config.dim, config.dim)
        self.outer = Linear(config.dim, config.dim)

    def forward(self, stream: Tensor, packing: Packing, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """[n, dim] -> [n, dim]; memory: [B, S, 2, heads, head_dim], memory_mask: [B, S] bool or None."""
        query = packing.pad(self.project(self.residual.before(stream)))
        dropout = self.attention_dropout if self.training else 0.0
        output = packing.pack(cross_attention(query, memory, memory_mask, dropout=dropout))
        return self.residual.after(stream, self.outer(output))


class EncoderLayer(nn.Module):
    """Self-attention, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, stream: Tensor, packing: Packing) -> Tensor:
        output: Tensor = self.feed_forward(self.self_attention(stream, packing, causal=False))
        return output


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, stream: Tensor, packing: Packing, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """[n, dim] -> [n, dim]; memory: [B, S, 2, heads, head_dim], memory_mask: [B, S] bool or None."""
        stream = self.self_attention(stream, packing, causal=True)
        output: Tensor = self.feed_forward(self.cross_attention(stream, packing, memory, memory_mask))
        return output

    def step(self, stream: Tensor, cache: Tensor, position: int, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """One position of N rows, [N, dim]; cache: see SelfAttention.step; memory: [N, S, 2, heads, head_dim]."""
        stream = self.self_attention.step(stream, cache, position)
        packing = Packing(len(stream), 1, None, None)
        output: Tensor = self.feed_forward(self.cross_attention(stream, packing, memory, memory_mask))
        return output
