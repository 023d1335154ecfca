"""A worker's computation: the summed gradient of one or several micro-batches."""

import math
import time
from collections.abc import Callable

import torch

from hpcasync.config.schema import Config
from hpcasync.data.batches import Batch, BatchPlan
from hpcasync.nmt.model import TranslationModel
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.ps.worker.push_checks import is_finite
from hpcasync.train.loop.precision import precision_on

_FP16_SCALE = 2.0**16
# Below it a gradient that is not finite is not for lack of range.
_LEAST_SCALE = 2.0**-24
_AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class GradientStep:
    """Computes gradients of the training loss, summed over target tokens, into the flat gradient vector.

    Dropout is seeded by the ticket of a batch: a gradient depends on the parameters and the ticket alone, not on which
    worker computes it, in which mode, or after how many restarts.

    Attributes:
        gradient: what `run` has computed; `flat.gradient`, which is checked when it is read, and that once a step.
    """

    def __init__(self, config: Config, model: TranslationModel, flat: FlatParameters, plan: BatchPlan) -> None:
        self._model = model
        self._flat = flat
        self._plan = plan
        self._seed = config.seed
        self._label_smoothing = config.optimizer.label_smoothing
        self._num_batches = config.accumulate.local
        self._device = flat.parameters.device
        precision = precision_on(self._device, config.precision)
        self._dtype = _AUTOCAST[precision]
        prefetch = config.data.prefetch
        self._prefetches = self._device.type != "cpu" if prefetch is None else prefetch
        self._ahead: tuple[int, Batch] | None = None
        if self._device.type == "cuda":
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = precision != "fp32"  # of recurrent layers; by default it is
        # torch's first scale suits mean losses. Ours is a sum over tokens, and overflows with it by so many times.
        first_scale = _FP16_SCALE / 2 ** math.ceil(math.log2(config.data.batch_tokens))
        is_fp16 = precision == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=first_scale, enabled=is_fp16)
        # GradScaler unscales the gradients of an optimizer's parameters: here, the flat vector. Only for that: an
        # optimizer loads torch's compiler, which a worker has no other use for.
        self._carrier = torch.optim.SGD([torch.nn.Parameter(flat.parameters)], lr=0.0) if is_fp16 else None
        self.gradient = flat.gradient

    def run(
        self,
        draw: Callable[[], int | None],
        before_last: Callable[[], None] = lambda: None,
        next_ticket: Callable[[], int | None] = lambda: None,
        *,
        version: int = 0,
    ) -> PushRecord:
        """Compute the gradient of up to accumulate.local batches; fewer, even none, where `draw` has no more.

        `before_last` is called before the backward pass of the last of them. `next_ticket` says what `draw` will give
        then; that batch is made while a GPU computes, which is told to compute and does not wait for it. `version` is
        that of the parameters, for the record.

        A gradient that is not finite is given the weight 0. In fp16 it is computed again with a smaller scale first.
        """
        self.gradient = self._flat.gradient.zero_()
        tickets: list[int] = []
        num_tokens = num_source_tokens = 0
        loss_sum: torch.Tensor | float = 0.0
        compute_seconds = 0.0
        while len(tickets) < self._num_batches and (ticket := draw()) is not None:
            started = time.perf_counter()
            batch = self._batch(ticket)
            if len(tickets) == self._num_batches - 1:
                before_last()
            loss_sum = loss_sum + self._backward(ticket, batch)
            tickets.append(ticket)
            num_tokens += batch.num_target_tokens
            num_source_tokens += batch.num_source_tokens
            compute_seconds += time.perf_counter() - started
        started = time.perf_counter()
        if self._prefetches and len(tickets) == self._num_batches and (following := next_ticket()) is not None:
            self._ahead = following, self._batch(following)
        is_finite = self._finish() if tickets else True
        while not is_finite and self._scaler.is_enabled() and self._scaler.get_scale() > _LEAST_SCALE:
            self.gradient.zero_()
            for ticket in tickets:
                self._backward(ticket, self._plan.batch(ticket).to(self._device))
            is_finite = self._finish()
        # A GPU has the gradient only now: before, it was told to compute it.
        compute_seconds += time.perf_counter() - started
        weight = num_tokens if is_finite else 0
        return PushRecord(version, weight, float(loss_sum), num_source_tokens, compute_seconds, tuple(tickets))

    def _batch(self, ticket: int) -> Batch:
        """On the device; it may have been made ahead."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == ticket else self._plan.batch(ticket).to(self._device)

    def _backward(self, ticket: int, batch: Batch) -> torch.Tensor:
        torch.manual_seed(self._seed * 1_000_003 + ticket)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            loss, negative_log_likelihood = self._model.summed_loss(
                batch.source, batch.target_input, batch.target_output, self._label_smoothing, batch.target_rows
            )
        torch.autograd.backward(self._scaler.scale(loss))
        return negative_log_likelihood

    def _finish(self) -> bool:
        """Unscale; return whether the gradient is finite."""
        if self._carrier is not None:
            self._carrier.param_groups[0]["params"][0].grad = self.gradient
            self._scaler.unscale_(self._carrier)
            self._scaler.update()
        return is_finite(self.gradient)
