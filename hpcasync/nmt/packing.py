"""Padded batches without their padding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Packing costs copies around each attention, a few per cent of a layer: worth it only above this share of padding.
_MIN_PADDING = 0.03


class _PackRows(torch.autograd.Function):
    """[batch * length, ...] -> [n, ...]"""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = len(padded)
        return padded.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, rows, grad), None


class _PadRows(torch.autograd.Function):
    """[n, ...] -> [batch * length, ...], zeros where there is padding."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, rows: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(rows)
        return packed.new_zeros(num_rows, *packed.shape[1:]).index_copy_(0, rows, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return grad.index_select(0, rows), None, None


def select_rows(padded: Tensor, rows: Tensor) -> Tensor:
    """Rows [n] int64, each at most once, of a tensor [N, ...] -> [n, ...]"""
    selected: Tensor = _PackRows.apply(padded, rows)  # type: ignore[no-untyped-call]
    return selected


@dataclass(frozen=True)
class Packing:
    """Which positions of a [batch, length] tensor are kept when it is flattened.

    Attributes:
        rows: [n] int64, ascending flat positions that hold tokens; None: all positions are kept, padding included.
        mask: [batch, length] bool, True where there is a token; None: there is no padding.
    """

    batch: int
    length: int
    rows: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, tokens: Tensor, pad_id: int, *, packs: bool = True) -> "Packing":
        """The packing of tokens [batch, length].

        On a GPU nothing is packed: the number of tokens is known there only after waiting for it. Nor unless `packs`.
        """
        batch, length = tokens.shape
        mask = tokens != pad_id
        if tokens.device.type != "cpu" or not packs:
            return cls(batch, length, None, mask)
        rows = mask.view(-1).nonzero().view(-1)
        if len(rows) == mask.numel():
            return cls(batch, length, None, None)
        is_worth_it = len(rows) < (1 - _MIN_PADDING) * mask.numel()
        return cls(batch, length, rows if is_worth_it else None, mask)

    def starts(self, device: torch.device) -> Tensor:
        """[n] bool, True at the first position of each sequence."""
        rows = torch.arange(self.batch * self.length, device=device) if self.rows is None else self.rows
        return rows.remainder(self.length) == 0

    def pack(self, padded: Tensor) -> Tensor:
        """[batch, length, ...] -> [n, ...]"""
        flat = padded.flatten(0, 1)
        if self.rows is None:
            return flat
        return select_rows(flat, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """[n, ...] -> [batch, length, ...], zeros at the positions that were left out."""
        if self.rows is not None:
            packed = _PadRows.apply(packed, self.rows, self.batch * self.length)  # type: ignore[no-untyped-call]
        return packed.view(self.batch, self.length, *packed.shape[1:])
