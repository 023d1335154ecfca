"""A worker's computation: the summed gradient of one or several micro-batches."""

import time
from collections.abc import Callable

import torch

from hpcasync.config.schema import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.nmt.model import TranslationModel
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.ps.worker.push_checks import is_finite
from hpcasync.train.loop.exchange import Contribution

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class GradientStep:
    """Computes gradients of the training loss, summed over target tokens, into the flat gradient vector.

    Dropout is seeded by the ticket of a batch: a gradient depends on the parameters and the ticket alone, not on which
    worker computes it, in which mode, or after how many restarts.
    """

    def __init__(self, config: Config, model: TranslationModel, flat: FlatParameters, plan: BatchPlan) -> None:
        self._model = model
        self._flat = flat
        self._plan = plan
        self._seed = config.seed
        self._label_smoothing = config.optimizer.label_smoothing
        self._num_batches = config.accumulate.local
        self._device = flat.parameters.device
        self._dtype = _AUTOCAST[config.precision]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "fp16")
        # GradScaler unscales the gradients of an optimizer's parameters: here, the flat vector.
        self._carrier = torch.optim.SGD([torch.nn.Parameter(flat.parameters)], lr=0.0)

    def run(self, draw: Callable[[], int | None], before_last: Callable[[], None] = lambda: None) -> Contribution:
        """Compute the gradient of up to accumulate.local batches; fewer, even none, where `draw` has no more.

        `before_last` is called before the backward pass of the last of them.

        A gradient that is not finite is given the weight 0.
        """
        self._flat.gradient.zero_()
        tickets: list[int] = []
        target_tokens = source_tokens = 0
        loss_sum: torch.Tensor | float = 0.0
        compute_seconds = 0.0
        while len(tickets) < self._num_batches and (ticket := draw()) is not None:
            started = time.perf_counter()
            batch = self._plan.batch(ticket).to(self._device)
            if len(tickets) == self._num_batches - 1:
                before_last()
            loss_sum = loss_sum + self._backward(ticket, batch.source, batch.target_input, batch.target_output)
            tickets.append(ticket)
            target_tokens += batch.num_target_tokens
            source_tokens += batch.num_source_tokens
            compute_seconds += time.perf_counter() - started
        if tickets and not self._finish():
            target_tokens = 0
        return Contribution(tuple(tickets), target_tokens, source_tokens, float(loss_sum), compute_seconds)

    def _backward(
        self, ticket: int, source: torch.Tensor, target_input: torch.Tensor, target_output: torch.Tensor
    ) -> torch.Tensor:
        torch.manual_seed(self._seed * 1_000_003 + ticket)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            loss, negative_log_likelihood = self._model.summed_loss(
                source, target_input, target_output, self._label_smoothing
            )
        torch.autograd.backward(self._scaler.scale(loss))
        return negative_log_likelihood

    def _finish(self) -> bool:
        """Unscale; return whether the gradient is finite."""
        if self._scaler.is_enabled():
            self._carrier.param_groups[0]["params"][0].grad = self._flat.gradient
            self._scaler.unscale_(self._carrier)
            self._scaler.update()
        return is_finite(self._flat.gradient)
