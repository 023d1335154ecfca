"""Multi-head attention over fused projections.

On a GPU this is torch's scaled_dot_product_attention. On the CPU torch has a fused kernel only without dropout, and
neither that nor its plain path suits the short sentences of translation: see `_CpuAttention`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hpcasync.nmt.dropout import keep_mask


def self_attention(
    projected: Tensor, num_heads: int, mask: Tensor | None, *, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Attention of a sequence to itself.

    Args:
        projected: [B, T, 3 * dim], query, key and value side by side.
        mask: [B, T] bool, True where a key may be attended to; None: everywhere.
        causal: position t attends to positions 0..t only.
        dropout: probability of dropping an attention weight.

    Returns:
        [B, T, dim]
    """
    batch, length, _ = projected.shape
    projected = projected.view(batch, length, 3, num_heads, -1)
    if _is_cpu_training(projected):
        heads: Tensor = _CpuAttention.apply(_to_heads(projected), None, _bias(mask, length, causal, projected), dropout)  # type: ignore[no-untyped-call]
        return _from_heads(heads, batch)
    query, key, value = projected.unbind(2)
    return attend(query, key, value, mask, causal=causal, dropout=dropout)


def cross_attention(query: Tensor, memory: Tensor, mask: Tensor | None, *, dropout: float = 0.0) -> Tensor:
    """Attention of one sequence to another.

    Args:
        query: [B, T, dim]. memory: [B, S, 2, heads, head_dim], key and value.
        mask: [B, S] bool, True where a key may be attended to; None: everywhere.
        dropout: probability of dropping an attention weight.

    Returns:
        [B, T, dim]
    """
    batch, length, _ = query.shape
    query = query.view(batch, length, 1, *memory.shape[3:])
    if _is_cpu_training(query):
        bias = _bias(mask, length, False, query)
        heads: Tensor = _CpuAttention.apply(_to_heads(query), _to_heads(memory), bias, dropout)  # type: ignore[no-untyped-call]
        return _from_heads(heads, batch)
    key, value = memory.unbind(2)
    return attend(query[:, :, 0], key, value, mask, dropout=dropout)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention by torch.

    Args:
        query: [B, T, heads, head_dim]. key, value: [B, S, heads, head_dim]. mask: [B, S] bool.

    Returns:
        [B, T, dim]
    """
    output = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None, None, :],
        dropout_p=dropout,
        is_causal=causal,
    )
    return output.transpose(1, 2).flatten(2)


def _is_cpu_training(x: Tensor) -> bool:
    is_eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return is_eager and x.requires_grad and x.dtype in (torch.float32, torch.float64)


def _to_heads(projected: Tensor) -> Tensor:
    """[B, T, n, heads, head_dim] -> [n, B * heads, T, head_dim], contiguous."""
    return projected.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _from_heads(heads: Tensor, batch: int) -> Tensor:
    """[B * heads, T, head_dim] -> [B, T, dim]"""
    return heads.view(batch, -1, *heads.shape[1:]).transpose(1, 2).flatten(2)


def _bias(mask: Tensor | None, length: int, causal: bool, like: Tensor) -> Tensor | None:
    """What is added to the scores [B, heads, S, T], keys before queries: 0 or minus infinity; None if 0 everywhere."""
    minus_infinity = float("-inf")
    bias = None
    if mask is not None:
        bias = like.new_zeros(mask.shape).masked_fill_(~mask, minus_infinity)[:, None, :, None]
    if causal:
        future = like.new_full((length, length), minus_infinity).tril_(-1)
        bias = future if bias is None else bias + future
    return bias


class _CpuAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(head_dim) + bias), dropout, times v, for many short sequences on the CPU.

    The scores are kept with keys before queries, so that the softmax runs over the middle dimension: torch's kernel for
    the last one falls back to scalar code below 16 keys. Fused inputs give fused gradients without a copy.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key_value: Tensor | None, bias: Tensor | None, dropout: float) -> Tensor:
        """query: [1, N, T, D] with key_value [2, N, S, D], or [3, N, T, D] without; N = B * heads -> [N, T, D]."""
        q, k, v = _unbind(query, key_value)
        scores = torch.bmm(k, q.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
        if bias is not None:
            by_sentence = scores if bias.dim() == 2 else scores.view(len(bias), -1, *scores.shape[1:])
            by_sentence.add_(bias)
        weights = torch.softmax(scores, 1)
        kept, ctx.scale = keep_mask(weights.shape, dropout) if dropout else (None, 1.0)
        dropped = weights if kept is None else (weights * kept).mul_(ctx.scale)
        ctx.save_for_backward(query, key_value, weights, dropped, kept)
        return torch.bmm(dropped.transpose(1, 2), v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value, weights, dropped, kept = ctx.saved_tensors
        q, k, v = _unbind(query, key_value)
        grad_query = torch.empty_like(query)
        grad_key_value = None if key_value is None else torch.empty_like(key_value)
        grad_q, grad_k, grad_v = _unbind(grad_query, grad_key_value)
        torch.bmm(dropped, grad, out=grad_v)
        grad_weights = torch.bmm(v, grad.transpose(1, 2))
        if kept is not None:
            grad_weights.mul_(kept).mul_(ctx.scale)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, 1, weights.dtype)
        grad_scores.mul_(q.shape[-1] ** -0.5)
        torch.bmm(grad_scores.transpose(1, 2), k, out=grad_q)
        torch.bmm(grad_scores, q, out=grad_k)
        return grad_query, grad_key_value, None, None


def _unbind(query: Tensor, key_value: Tensor | None) -> tuple[Tensor, ...]:
    return query.unbind(0) if key_value is None else (query[0], *key_value.unbind(0))
