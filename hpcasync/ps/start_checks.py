"""What ranks compare before windows are made: that they train the same, and that the optimizer can be cut in pieces."""

import zlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from mpi4py import MPI

from hpcasync.errors import UserError
from hpcasync.ps.server.adam import EagerAdam
from hpcasync.ps.server.parameter_groups import OptimizerFactory, Optimizers, groups_of
from hpcasync.ps.worker.flat_parameters import owner_of

# Of the vector that an optimizer is tried on: two blocks of a multiple of what one instruction holds.
_TRIAL_ELEMENTS = 64
_TRIAL_STEPS = 3


def require_same_training(
    comm: MPI.Intracomm, parameters: torch.Tensor, options: dict[str, Any], server_ranks: Sequence[int]
) -> None:
    """Compare the module, the options and, on servers, the initial parameters of all ranks (collective).

    Raises:
        UserError: on every rank, naming what differs and where.
    """
    owner = owner_of(parameters)
    layout = [] if owner is None else [*owner.layout, *owner.buffers.layout]
    layout.append(f"{parameters.numel()} elements of {str(parameters.dtype).removeprefix('torch.')}")
    # Every server cuts its shard out of its own vector.
    is_cut = len(server_ranks) > 1 and comm.rank in server_ranks
    values = zlib.crc32(parameters.detach().cpu().contiguous().numpy().data) if is_cut else None
    everywhere = comm.allgather((zlib.crc32("\n".join(layout).encode()), options, values))
    layouts, all_options, all_values = zip(*everywhere, strict=True)
    if other := _first_other(layouts):
        both = zip_longest(comm.bcast(layout, root=0), comm.bcast(layout, root=other), fillvalue="nothing more")
        mine, theirs = next(pair for pair in both if len(set(pair)) > 1)
        raise UserError(
            f"ranks have different modules: where rank 0 has {mine}, rank {other} has {theirs}; build the same module, "
            "with the same parts trainable, on every rank",
            everywhere=True,
        )
    if other := _first_other(all_options):
        first, different = all_options[0], all_options[other]
        key = next(key for key, value in first.items() if different[key] != value)
        raise UserError(
            f"ranks have different options: rank 0 has {key}={first[key]}, rank {other} has {key}={different[key]}; "
            "give the same EngineOptions on every rank",
            everywhere=True,
        )
    if other := _first_other([all_values[rank] for rank in server_ranks]):
        raise UserError(
            f"servers have different initial parameters: those of rank {server_ranks[0]} and rank "
            f"{server_ranks[other]} differ; call torch.manual_seed with one number on every rank before the module is "
            "built, or load the same file on all",
            everywhere=True,
        )


def _first_other(values: Sequence[object]) -> int:
    """Where the first value is that is not the first one; 0 if all are the same."""
    return next((number for number, value in enumerate(values) if value != values[0]), 0)


def require_elementwise(optimizers: Optimizers, device: torch.device) -> None:
    """Try every group's optimizer on a small vector, whole and in halves.

    Raises:
        UserError: it has other groups than one of all that it is given, cannot make a step on gradients alone, or steps
            an element by what is in others.
    """
    for group in groups_of(optimizers, 0):
        if not group.is_whole:
            _require_elementwise(group.make_optimizer, device)


def _require_elementwise(make_optimizer: OptimizerFactory, device: torch.device) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, device=device))
    if isinstance(optimizer := make_optimizer([parameter]), EagerAdam):
        _require_one_group(optimizer, parameter)
        return  # known to; and a step by torch would load its compiler
    whole = _trial(make_optimizer, [slice(0, _TRIAL_ELEMENTS)], device)
    if not torch.equal(whole, _trial(make_optimizer, [slice(0, _TRIAL_ELEMENTS)], device)):
        return  # it draws random numbers: nothing to compare
    half = _TRIAL_ELEMENTS // 2
    halves = _trial(make_optimizer, [slice(0, half), slice(half, _TRIAL_ELEMENTS)], device)
    if not torch.allclose(whole, halves, rtol=1e-4, atol=1e-7):
        raise UserError(
            "the optimizer steps an element by what is in other elements (as LAMB, LARS and Adafactor do): servers "
            "step blocks of the vector, whose results would depend on where they are cut; take one that works element "
            "by element, such as Adam, AdamW or SGD; gradients are clipped by clip_norm"
        )


def _trial(make_optimizer: OptimizerFactory, blocks: Sequence[slice], device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    start, *gradients = torch.randn(1 + _TRIAL_STEPS, _TRIAL_ELEMENTS, generator=generator).to(device)
    stepped = []
    for block in blocks:
        parameter = torch.nn.Parameter(start[block].clone())
        optimizer = make_optimizer([parameter])
        _require_one_group(optimizer, parameter)
        for gradient in gradients:
            parameter.grad = gradient[block].clone()
            optimizer.param_groups[0]["lr"] = 0.01
            try:
                optimizer.step()
            except (TypeError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"{type(optimizer).__name__} cannot make a step on a vector's gradient: {error}"
                ) from error
        stepped.append(parameter.detach())
    return torch.cat(stepped)


def _require_one_group(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> None:
    held = [[id(held) for held in group["params"]] for group in optimizer.param_groups]
    if held != [[id(parameter)]]:
        raise UserError(
            f"the optimizer has {len(held)} groups of {[len(ids) for ids in held]} parameters, and servers need one "
            "of all: they give it blocks of the flat vector, which have neither the shapes nor the names of the "
            "module's parameters (p.ndim is always 1), and set one learning rate; leave groups out: Adam(parameters, …)"
        )
