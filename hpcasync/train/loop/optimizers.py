"""The optimizers of a model's parameters, by configuration."""

from functools import partial

import torch

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server.adam import EagerAdam, EagerAdamW, NesterovAdam, NesterovAdamW
from hpcasync.ps.server.muon import Muon, cost_of_element, num_operations
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
    matrices = _matrices(model)
    starts = [start for _, start in flat.bounds[1:]] + [flat.num_elements]
    groups: list[ParameterGroup] = []
    for (parameter, _), stop in zip(flat.bounds, starts, strict=True):
        if id(parameter) in matrices:
            rows, columns = parameter.shape
            make_muon = _muon_factory(config, (rows, columns))
            cost = cost_of_element((rows, columns))
            groups.append(ParameterGroup(stop, make_muon, is_whole=True, cost=cost))
            continue
        if groups and not groups[-1].is_whole:
            groups.pop()  # this one reaches further
        groups.append(ParameterGroup(stop, make))
    return groups


def matrix_operations(config: OptimizerConfig, model: torch.nn.Module) -> int:
    """Additions and multiplications of Muon's iterations at an update; `model` may be on torch's meta device."""
    return sum(map(num_operations, _matrices(model).values())) if config.name == "muon" else 0


def _matrices(model: torch.nn.Module) -> dict[int, tuple[int, int]]:
    """Shapes of what Muon steps: the weights of linear layers, by the parameter's id."""
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    attentions = (module for module in model.modules() if isinstance(module, torch.nn.MultiheadAttention))
    weights += [module.in_proj_weight for module in attentions if module.in_proj_weight is not None]
    return {id(weight): (weight.shape[0], weight.shape[1]) for weight in weights}


def _muon_factory(config: OptimizerConfig, shape: tuple[int, int]) -> OptimizerFactory:
    return partial(
        Muon, shape=shape, lr=config.learning_rate, nesterov=config.nesterov, weight_decay=config.weight_decay
    )


def optimizer_factory(config: OptimizerConfig) -> OptimizerFactory:
    """A function that builds Adam or AdamW, which muon has for all but matrices; the rate is set for every update."""
    assert config.name != "auto", "chosen where a Config is validated"
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
