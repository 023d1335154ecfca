"""Fails as told, inside the entry point of the command line: HOW FAILING_RANK|all."""

import threading
import time

import click

from hpcasync.cli import main as command_group
from hpcasync.errors import UserError
from hpcasync.launch.ranks import rank_from_environment


@click.command()
@click.argument("how")
@click.argument("failing")
def command(how: str, failing: str) -> None:
    place = rank_from_environment()
    assert place is not None
    is_failing = failing in ("all", str(place.world_rank))
    if how == "user-error-before-mpi" and is_failing:
        raise UserError("bad option")
    from mpi4py import MPI

    assert MPI.COMM_WORLD.rank == place.world_rank
    assert MPI.COMM_WORLD.size == place.num_ranks
    MPI.COMM_WORLD.Barrier()
    if is_failing and how == "thread":
        threading.Thread(target=fail, args=(place.world_rank,)).start()
    elif is_failing and how == "exception":
        fail(place.world_rank)
    elif is_failing:
        raise UserError("bad option", everywhere=how == "user-error-everywhere")
    time.sleep(600)  # a healthy rank: it must be ended long before


def fail(world_rank: int) -> None:
    raise ZeroDivisionError(f"by rank {world_rank}")


if __name__ == "__main__":
    from hpcasync.__main__ import main

    command_group.cli = command  # type: ignore[assignment]
    main()
