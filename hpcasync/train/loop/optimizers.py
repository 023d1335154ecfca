"""The optimizers of a model's parameters, by configuration."""

from collections.abc import Iterator
from functools import partial

import torch

from hpcasync.config.schema import OptimizerConfig
from hpcasync.ps.server.adam import EagerAdam, EagerAdamW, NesterovAdam, NesterovAdamW
from hpcasync.ps.server.muon import Muon
from hpcasync.ps.server.parameter_groups import OptimizerFactory, Optimizers, ParameterGroup
from hpcasync.ps.worker.flat_parameters import FlatParameters

_KINDS: dict[tuple[bool, bool], type[torch.optim.Adam]] = {
    (False, False): EagerAdam,
    (True, False): EagerAdamW,
    (False, True): NesterovAdam,
    (True, True): NesterovAdamW,
}


def make_optimizers(config: OptimizerConfig, model: torch.nn.Module, flat: FlatParameters) -> Optimizers:
    """What steps the flat vector of a model; with muon each weight of a linear layer is a group of its own."""
    make = optimizer_factory(config)
    if config.name != "muon":
        return make
    groups: list[ParameterGroup] = []
    for shape, stop in _runs(model, flat):
        if shape is not None:
            groups.append(ParameterGroup(stop, _muon_factory(config, shape), is_whole=True))
        elif groups and not groups[-1].is_whole:
            groups[-1] = ParameterGroup(stop, make)
        else:
            groups.append(ParameterGroup(stop, make))
    return groups


def _runs(model: torch.nn.Module, flat: FlatParameters) -> Iterator[tuple[tuple[int, int] | None, int]]:
    """Of each parameter in the vector: its shape, if it is a linear layer's weight, and where the next one begins."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    starts = [start for _, start in flat.bounds] + [flat.num_elements]
    for (parameter, _), stop in zip(flat.bounds, starts[1:], strict=True):
        rows, columns = parameter.shape if id(parameter) in linear else (0, 0)
        yield ((rows, columns) if rows else None), stop


def _muon_factory(config: OptimizerConfig, shape: tuple[int, int]) -> OptimizerFactory:
    return partial(
        Muon, shape=shape, lr=config.learning_rate, nesterov=config.nesterov, weight_decay=config.weight_decay
    )


def optimizer_factory(config: OptimizerConfig) -> OptimizerFactory:
    """A function that builds Adam or AdamW, which muon has for all but matrices; the rate is set for every update."""
    kind = _KINDS[config.name != "adam", config.nesterov]

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return kind(
            parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    return make
