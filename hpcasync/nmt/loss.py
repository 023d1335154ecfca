"""Label-smoothed cross entropy of a linear output layer, without keeping the logits.

The logits of a batch, [tokens, pieces], are by far its largest tensor. They are made in chunks of rows that stay in
the cache (CPU) or are large enough for a GPU's products; the gradient is computed from each chunk at once, in the
forward pass. On a GPU a kernel reads the logits of a chunk twice and writes them once, as their gradient, in the type
of the product: 8 bytes a logit in bf16 with those of the product, where torch's operations move 46 by way of float32.
"""

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpcasync import device_kernels

# Elements of a chunk of logits: 16 MiB of float32 on the CPU, where 4 to 32 MiB are equally fast; 128 MiB of bf16 on a
# GPU, where every chunk reads and writes the weight's gradient once.
_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
_MIN_CHUNK_ROWS = 64


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross entropy of softmax(hidden @ weight.T), summed over all rows.

    The smoothed target distribution gives 1 - label_smoothing to the target and label_smoothing evenly to all pieces
    (Szegedy et al. 2016, section 7; the definition of torch.nn.functional.cross_entropy).

    Args:
        hidden: [N, dim]. weight: [V, dim]. targets: [N] int64, every row counts.

    Returns:
        The smoothed loss (differentiable scalar) and the plain negative log likelihood in nats (detached), both float32
        unless `weight` is float64. Under autocast products are taken in its dtype, the softmax in float32.
    """
    device = hidden.device.type
    may_autocast = torch.amp.is_autocast_available(device)
    is_low = may_autocast and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_low else weight.dtype
    with torch.autocast(device, enabled=False) if may_autocast else nullcontext():
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            loss, negative_log_likelihood = _LinearCrossEntropy.apply(hidden, weight, targets, label_smoothing, dtype)  # type: ignore[no-untyped-call]
            return loss, negative_log_likelihood
        return _forward(hidden, weight, targets, label_smoothing, dtype, None)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        gradients = torch.empty_like(hidden, dtype=weight.dtype), torch.zeros_like(weight)
        loss, negative_log_likelihood = _forward(hidden, weight, targets, label_smoothing, dtype, gradients)
        ctx.save_for_backward(*gradients)
        ctx.hidden_dtype = hidden.dtype
        ctx.mark_non_differentiable(negative_log_likelihood)
        return loss, negative_log_likelihood

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # Usually a loss is not scaled: no copy of the gradients, then. A GPU would have to be waited for to know.
        if grad_loss.device.type != "cpu" or grad_loss != 1:
            gradients = [gradient * grad_loss for gradient in gradients]
        grad_hidden, grad_weight = gradients
        return grad_hidden.to(ctx.hidden_dtype), grad_weight, None, None, None


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    dtype: torch.dtype,
    gradients: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The two losses; gradients with respect to hidden and weight go to `gradients` (the second must be zeros).

    With p the softmax and V pieces, the loss of a row is logsumexp - (1 - s) logit[target] - s/V sum(logits), and its
    gradient with respect to the logits is p - (1 - s) onehot(target) - s/V. The last terms of both are the same for all
    pieces, so they are taken once from the sum of the weight's rows instead of from every logit.
    """
    num_pieces = len(weight)
    softmax_ = _softmax_by(hidden.device, weight.dtype)
    row_chunk = max(_CHUNK_ELEMENTS.get(hidden.device.type, 1 << 22) // num_pieces, _MIN_CHUNK_ROWS)
    weight_low, hidden_low = weight.to(dtype), hidden.to(dtype)
    weight_sum, uniform = weight.sum(0), label_smoothing / num_pieces
    chunk = hidden_low.new_empty(min(row_chunk, len(hidden)), num_pieces)
    log_normalisers = hidden.new_empty(len(hidden), 1, dtype=weight.dtype)
    target_logits = torch.empty_like(log_normalisers)
    for start in range(0, len(hidden), row_chunk):
        rows = slice(start, start + row_chunk)
        logits = torch.mm(hidden_low[rows], weight_low.t(), out=chunk[: len(hidden) - start])
        parts = log_normalisers[rows], target_logits[rows]
        softmax_(logits, targets[rows, None], 1 - label_smoothing, *parts, gradient=gradients is not None)
        if gradients is not None:
            gradients[0][rows] = torch.mm(logits, weight_low)
            gradients[1].addmm_(logits.t(), hidden_low[rows]) if dtype == weight.dtype else gradients[1].add_(
                torch.mm(logits.t(), hidden_low[rows])
            )
    if gradients is not None and label_smoothing:
        gradients[0].sub_(weight_sum, alpha=uniform)
        gradients[1].sub_(hidden.sum(0), alpha=uniform)
    negative_log_likelihood = (log_normalisers - target_logits).sum()
    logit_sum = torch.dot(hidden.sum(0).to(weight.dtype), weight_sum)
    loss = (log_normalisers - (1 - label_smoothing) * target_logits).sum() - uniform * logit_sum
    return loss, negative_log_likelihood


class _Softmax(Protocol):
    """See `hpcasync.device_kernels.cross_entropy.softmax_`."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        target_weight: float,
        log_normalisers: Tensor,
        target_logits: Tensor,
        *,
        gradient: bool,
    ) -> None: ...


def _softmax_by(device: torch.device, dtype: torch.dtype) -> _Softmax:
    if dtype != torch.float32 or not device_kernels.can_use(device):
        return _softmax_by_torch
    from hpcasync.device_kernels.cross_entropy import softmax_

    return softmax_


def _softmax_by_torch(
    logits: Tensor,
    targets: Tensor,
    target_weight: float,
    log_normalisers: Tensor,
    target_logits: Tensor,
    *,
    gradient: bool,
) -> None:
    wide = logits.to(log_normalisers.dtype)
    torch.gather(wide, 1, targets, out=target_logits)
    largest = wide.amax(1, keepdim=True)
    probabilities = wide.sub_(largest).exp_()
    total = probabilities.sum(1, keepdim=True)
    torch.add(largest, total.log(), out=log_normalisers)
    if gradient:
        probabilities.div_(total)
        probabilities.scatter_add_(1, targets, torch.full_like(total, -target_weight))
        if probabilities is not logits:
            logits.copy_(probabilities)
