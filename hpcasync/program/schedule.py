"""The program's own optimizer and scheduler as settings of the servers' optimizers, by version."""

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hpcasync.errors import UserError
from hpcasync.program.scheduler_calls import SchedulerCalls
from hpcasync.ps.server.parameter_groups import ParameterGroup
from hpcasync.ps.worker.flat_parameters import FlatParameters

# How a step is computed where the program's parameters are; the servers' may be elsewhere.
_OF_DEVICE: dict[str, Any] = {"foreach": None, "fused": None, "capturable": False}


class Schedule:
    """What the optimizer's groups are set to for each update: every rank steps its own scheduler as updates are made.

    Args:
        optimizer: of the program; its groups hold the settings.
        schedulers: of the program, stepped from now on by this alone: their `step` only tells `calls`.
        calls: of the program.

    Attributes:
        batches_per_update, batches_per_step: of training, and from one step of the schedulers to the next.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedulers: Sequence[LRScheduler], calls: SchedulerCalls
    ) -> None:
        self._optimizer = optimizer
        self._steps: list[Callable[[], None]] = []
        for number, scheduler in enumerate(schedulers):
            if isinstance(scheduler, ReduceLROnPlateau) or not callable(getattr(scheduler, "step", None)):
                raise UserError(
                    f"{type(scheduler).__name__} is no scheduler that counts steps: servers know no validation loss; "
                    "take one of torch.optim.lr_scheduler that does"
                )
            if getattr(scheduler, "optimizer", optimizer) is not optimizer:
                raise UserError(f"the {type(scheduler).__name__} is of another optimizer than the one that joins")
            self._steps.append(scheduler.step)
            scheduler.step = partial(_only_note, calls, number)  # type: ignore[method-assign]
        self.batches_per_update = self.batches_per_step = 1
        self._num_steps = 0
        self._first_version = self._first_batches = 0
        self._lock = threading.Lock()
        self._known = self._values()

    def begin(self) -> None:
        """From now on the groups' settings are changed by the schedulers alone."""
        self._known = self._values()

    def require_untouched(self) -> None:
        """Raises a UserError where the program has changed its optimizer's groups: servers step copies of them."""
        groups = self._values()
        if len(groups) != len(self._known):
            raise UserError("the optimizer has got another group of parameters: give it all before it joins")
        for number, (known, values) in enumerate(zip(self._known, groups, strict=True)):
            for name in known.keys() & values.keys():
                if values[name] != known[name]:
                    raise UserError(
                        f"the program has set {name} of the optimizer's group {number} to {values[name]} (it was "
                        f"{known[name]}), which the servers, who make the steps, do not see: give hpcasync.join a "
                        "scheduler that does it, such as torch.optim.lr_scheduler.LambdaLR(optimizer, function)"
                    )

    def _values(self) -> list[dict[str, Any]]:
        """Of each group what can be compared."""
        plain = (bool, int, float, str, tuple)
        groups = map(_for_any_device, self._optimizer.param_groups)
        return [{name: value for name, value in group.items() if isinstance(value, plain)} for group in groups]

    def go_on(self, version: int, num_batches: int) -> None:
        """The run resumes: so many batches are in a version, however many an update had when they were trained on."""
        self._first_version, self._first_batches = version, num_batches

    def settings(self, group: int, version: int) -> dict[str, Any]:
        """What a group is set to for the update that makes a version; versions come in ascending order."""
        with self._lock:
            num_batches = self._first_batches + (version - 1 - self._first_version) * self.batches_per_update
            while self._num_steps < num_batches // self.batches_per_step:
                self._step()
            values = self._optimizer.param_groups[group]
            return {name: value for name, value in _for_any_device(values).items() if name != "params"}

    def _step(self) -> None:
        setattr(self._optimizer, "_opt_called", True)  # noqa: B010 - torch warns otherwise: servers make its steps
        self._num_steps += 1
        try:
            for step in self._steps:
                step()
        except ValueError as error:
            raise UserError(f"the scheduler has no step {self._num_steps}: {error}") from error
        self._known = self._values()

    def rate(self, version: int) -> float:
        """The learning rate of the first group for the update that makes a version."""
        return float(self.settings(0, version)["lr"])

    def groups(self, flat: FlatParameters) -> list[ParameterGroup]:
        """The groups as the servers step them; `flat` holds parameters in the order of the groups."""
        starts = {id(parameter): start for parameter, start in flat.bounds}
        firsts = {
            number: min(own)
            for number, group in enumerate(self._optimizer.param_groups)
            if (own := [starts[id(parameter)] for parameter in group["params"] if id(parameter) in starts])
        }
        stops = [*list(firsts.values())[1:], flat.num_elements]
        return [
            ParameterGroup(
                stop,
                partial(_same_kind, self._optimizer, number),
                lambda _, version, number=number: self.settings(number, version),  # type: ignore[misc]
            )
            for number, stop in zip(firsts, stops, strict=True)
        ]


def parameters_in_order(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The trainable parameters of a module, group after group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if foreign := [parameter for parameter in order if id(parameter) not in names]:
        raise UserError(
            f"the optimizer has {len(foreign)} parameter(s) that are not the model's, the first of shape "
            f"{tuple(foreign[0].shape)}: join the module that holds all of them"
        )
    held = {id(parameter) for parameter in order}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise UserError(
                f"{name} is trainable, but in no group of the optimizer: add it, or say {name}.requires_grad_(False)"
            )
    return [parameter for parameter in order if parameter.requires_grad]


def _same_kind(
    optimizer: torch.optim.Optimizer, group: int, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer like this one, with its group's settings, for other parameters.

    A copy rather than a new one: classes differ in what they are built from.
    """
    other = copy.copy(optimizer)
    for name, value in vars(optimizer).items():
        if name not in vars(other) and name not in ("step", "zero_grad"):
            setattr(other, name, value)
    other.state = defaultdict(dict)
    other.param_groups = [{**_for_any_device(optimizer.param_groups[group]), "params": parameters}]
    return other


def _for_any_device(settings: dict[str, Any]) -> dict[str, Any]:
    """A group's settings; a rate that is a tensor, as compiled and captured steps have, as a number."""
    values = {name: _OF_DEVICE.get(name, value) for name, value in settings.items()}
    return {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _only_note(calls: SchedulerCalls, number: int, *_: Any, **__: Any) -> None:
    """The schedulers of a job are stepped with its updates."""
    calls.note(number)
