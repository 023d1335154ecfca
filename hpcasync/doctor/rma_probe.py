"""Run on two ranks by `hpcasync doctor`: put, get and fetch_and_op into windows, with every value checked.

Rank 0 prints one line of JSON. A wrong value raises, which ends the job with an error.
"""

import json
import time
from array import array

import numpy
from mpi4py import MPI

from hpcasync.comm.gpu_memory import takes_gpu_memory
from hpcasync.comm.mpi import library_name, thread_level

_NUM_VALUES = 1 << 20
_NUM_TICKETS = 1000


def main() -> None:
    """Run all operations between rank 0 and rank 1."""
    world = MPI.COMM_WORLD
    assert world.size == 2, f"2 ranks were started and mpi4py sees {world.size}: mpirun is another MPI's"
    put_seconds, get_seconds = _exchange_values(world)
    ticket_seconds = _draw_tickets(world)
    hosts = sorted(set(world.allgather(MPI.Get_processor_name())))
    if world.rank == 0:
        gigabytes = _NUM_VALUES * 4 / 1e9
        facts = {
            "library": library_name(),
            "hosts": hosts,
            "thread_level": thread_level(),
            "takes_gpu_memory": takes_gpu_memory(),
            "put_gigabytes_per_second": round(gigabytes / put_seconds, 2),
            "get_gigabytes_per_second": round(gigabytes / get_seconds, 2),
            "fetch_and_op_microseconds": round(ticket_seconds * 1e6, 1),
        }
        print(json.dumps(facts), flush=True)


def _exchange_values(world: MPI.Intracomm) -> tuple[float, float]:
    """Put a vector into the other rank's window, get one back. Returns the seconds of the second of two rounds."""
    window = MPI.Win.Allocate(_NUM_VALUES * 4, 4, comm=world)
    memory = numpy.asarray(window.tomemory()).view(numpy.float32)
    other = 1 - world.rank
    put_seconds = get_seconds = 0.0
    window.Lock_all()
    for round_index in range(2):
        values = numpy.arange(_NUM_VALUES, dtype=numpy.float32) + 10 * world.rank + round_index
        world.Barrier()
        started = time.perf_counter()
        window.Put(values, other)
        window.Flush(other)
        put_seconds = time.perf_counter() - started
        world.Barrier()
        window.Sync()
        expected = numpy.arange(_NUM_VALUES, dtype=numpy.float32) + 10 * other + round_index
        assert numpy.array_equal(memory, expected), "Put wrote other values than it was given"
        got = numpy.empty_like(values)
        started = time.perf_counter()
        window.Get(got, other)
        window.Flush(other)
        get_seconds = time.perf_counter() - started
        assert numpy.array_equal(got, values), "Get read other values than are there"
    window.Unlock_all()
    window.Free()
    return put_seconds, get_seconds


def _draw_tickets(world: MPI.Intracomm) -> float:
    """Both ranks count one counter up: every value must be drawn exactly once. Returns the seconds of one draw."""
    window = MPI.Win.Allocate(8 if world.rank == 0 else 0, 8, comm=world)
    if world.rank == 0:
        numpy.asarray(window.tomemory()).view(numpy.int64)[0] = 0
    one, ticket = array("q", [1]), array("q", [0])
    drawn: list[int] = []
    window.Lock_all()
    window.Sync()
    world.Barrier()
    started = time.perf_counter()
    for _ in range(_NUM_TICKETS):
        window.Fetch_and_op([one, MPI.INT64_T], [ticket, MPI.INT64_T], 0, 0, MPI.SUM)
        window.Flush(0)
        drawn.append(ticket[0])
    seconds = (time.perf_counter() - started) / _NUM_TICKETS
    window.Unlock_all()
    both = sorted(world.allreduce(drawn))
    assert both == list(range(2 * _NUM_TICKETS)), "Fetch_and_op gave a ticket twice, or to nobody"
    window.Free()
    return seconds


if __name__ == "__main__":
    main()
