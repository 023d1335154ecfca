"""Windows on every rank: atomics from all ranks, transfers of all sizes, visibility by one atomic write, freeing.

Arguments, in turn: `nodes` for the nodes as they are, `scattered` to take every rank for a node of its own, so that Put
does what store does within a node.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mpi4py import MPI

from hpcasync.comm import futex, wake_ups
from hpcasync.comm.mapped_window import MappedWindow
from hpcasync.comm.shared_words import SharedControlWindow
from hpcasync.comm.streams import PIECE_BYTES, IncomingStream, OutgoingStream
from hpcasync.comm.waiting import make_progress, wait_for_all
from hpcasync.comm.wake_ups import ANYTHING, WakeUps, WakeUpWait
from hpcasync.comm.windows import ControlWindow, DataWindow

Kind = type[ControlWindow] | type[SharedControlWindow]
MakeWindow = Callable[[MPI.Intracomm, MPI.Intracomm, int], DataWindow | MappedWindow]
NUM_WORDS = 5
NUM_ADDS = 200
LARGE_BYTES = 300_000
NUM_MESSAGES = 50
NUM_ROUNDS = 500


def check_atomics(comm: MPI.Intracomm, kind: Kind) -> None:
    # Only even ranks have words, as only servers do.
    window = kind(comm, NUM_WORDS if comm.rank % 2 == 0 else 0)
    targets = range(0, comm.size, 2)
    drawn = [window.add(0, 1, 1) for _ in range(NUM_ADDS)]
    for target in targets:
        for _ in range(NUM_ADDS):
            window.add(target, 2, 3)
    everybody = comm.allgather(drawn)
    assert sorted(number for numbers in everybody for number in numbers) == list(range(comm.size * NUM_ADDS))
    assert all(numbers == sorted(numbers) for numbers in everybody)
    for target in targets:
        assert window.read(target, 2) == 3 * NUM_ADDS * comm.size
        assert window.read(target, 4) == 0
    comm.Barrier()
    if comm.rank == comm.size - 1:
        window.store(0, 3, -(2**62))
    comm.Barrier()
    assert window.read(0, 3) == -(2**62)
    if comm.rank == 0:
        assert window.local().tolist() == [0, comm.size * NUM_ADDS, 3 * NUM_ADDS * comm.size, -(2**62), 0]
    comm.Barrier()
    window.free()


def check_wake_ups(comm: MPI.Intracomm) -> None:
    """A word goes round all ranks, who sleep until it is theirs: nobody looks again, a wake-up that is missed hangs."""
    turn, everybody = SharedControlWindow(comm, 1 if comm.rank == 0 else 0), WakeUps(comm)
    for number in range(comm.rank, comm.size * NUM_ROUNDS, comm.size):
        waiting = WakeUpWait(everybody, 1 + number % 2)
        while turn.read(0, 0) < number:
            waiting.wait()
        after = (comm.rank + 1) % comm.size
        everybody.wake(after, 3)  # nothing that it waits for
        turn.store(0, 0, number + 1)
        everybody.wake(after, 1 + (number + 1) % 2 if number % 3 else ANYTHING)
    comm.Barrier()
    # All wait for rank 0, which waits for all.
    told = SharedControlWindow(comm, comm.size + 1 if comm.rank == 0 else 0)
    for number in range(1, NUM_ROUNDS + 1):
        waiting = WakeUpWait(everybody)
        if comm.rank > 0:
            told.store(0, comm.rank, number)
            everybody.wake(0)
            while told.read(0, comm.size) < number:
                waiting.wait()
            continue
        while min(told.local()[1 : comm.size], default=number) < number:
            waiting.wait()
        told.store(0, comm.size, number)
        for rank in range(1, comm.size):
            everybody.wake(rank)
    comm.Barrier()
    for window in (told, everybody, turn):
        window.free()


def make_mapped(comm: MPI.Intracomm, node_comm: MPI.Intracomm, num_bytes: int) -> MappedWindow:
    # The control windows order memory here.
    return MappedWindow(comm, node_comm, num_bytes, torch.device("cpu"), lambda: None)


def check_transfers(comm: MPI.Intracomm, node_comm: MPI.Intracomm, make_window: MakeWindow) -> None:
    """Every rank writes to every rank, and reads what the others on its node were written."""
    part = LARGE_BYTES + 64
    window = make_window(comm, node_comm, comm.size * part)
    assert window.is_local(comm.rank) and window.memory(comm.rank).numel() == comm.size * part
    values = torch.arange(LARGE_BYTES // 4, dtype=torch.float32) + 1000 * comm.rank
    for target in range(comm.size):
        large, small = values + target, torch.tensor([comm.rank, target], dtype=torch.float64)
        window.write(target, comm.rank * part, large)
        window.write(target, comm.rank * part + LARGE_BYTES, small)
        window.flush(target)
    comm.Barrier()
    window.sync()
    own = window.memory(comm.rank)
    for origin in range(comm.size):
        expected = torch.arange(LARGE_BYTES // 4, dtype=torch.float32) + 1000 * origin + comm.rank
        assert torch.equal(own[origin * part : origin * part + LARGE_BYTES].view(torch.float32), expected)
    for target in filter(window.is_local, range(comm.size)):
        for origin in range(comm.size):
            out = torch.empty(LARGE_BYTES // 4)
            window.read(target, origin * part, out)
            assert torch.equal(out, torch.arange(LARGE_BYTES // 4, dtype=torch.float32) + 1000 * origin + target)
            pair = torch.empty(2, dtype=torch.float64)
            window.read(target, origin * part + LARGE_BYTES, pair)
            assert pair.tolist() == [origin, target]
    comm.Barrier()
    window.free()


def check_streams(comm: MPI.Intracomm) -> None:
    """Every rank sends to every other at once: nothing, less than a piece, a piece, several and a bit."""
    messages = comm.Dup()
    for num_bytes in (0, 1000, PIECE_BYTES, 6 * PIECE_BYTES + 24):
        sources = {rank: torch.full((num_bytes,), 16 * comm.rank + rank, dtype=torch.uint8) for rank in others(comm)}
        arrived: dict[int, list[tuple[int, int]]] = {rank: [] for rank in others(comm)}
        targets = {rank: torch.empty(num_bytes, dtype=torch.uint8) for rank in others(comm)}
        streams: list[OutgoingStream | IncomingStream] = []
        for rank in others(comm):
            streams.append(IncomingStream(messages, rank, 1, targets[rank], partial(note, arrived[rank])))
            streams.append(OutgoingStream(messages, rank, 1, num_bytes, partial(piece_of, sources[rank])))
        while not all([stream.advance() for stream in streams]):
            time.sleep(0)
        for rank in others(comm):
            assert torch.equal(targets[rank], torch.full_like(targets[rank], 16 * rank + comm.rank))
            bounds = [0, *(stop for _, stop in arrived[rank])]
            assert list(itertools.pairwise(bounds)) == arrived[rank] and bounds[-1] == num_bytes
    messages.Free()


def note(bounds: list[tuple[int, int]], start: int, stop: int) -> None:
    bounds.append((start, stop))


def piece_of(memory: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return memory[start:stop]


def others(comm: MPI.Intracomm) -> list[int]:
    return [rank for rank in range(comm.size) if rank != comm.rank]


def check_message_passing(comm: MPI.Intracomm, node_comm: MPI.Intracomm, kind: Kind, make_window: MakeWindow) -> None:
    """What is announced by an atomic write after a flush is there: rank 0 is written to by all others."""
    is_target = comm.rank == 0
    control = kind(comm, 2 * comm.size if is_target else 0)
    data = make_window(comm, node_comm, comm.size * LARGE_BYTES if is_target else 0)
    if is_target:
        receive_all(comm, control, data)
    else:
        for number in range(1, NUM_MESSAGES + 1):
            values = torch.full((LARGE_BYTES // 4,), float(number))
            data.write(0, comm.rank * LARGE_BYTES, values)
            data.flush(0)
            control.store(0, comm.rank, number)
            while control.read(0, comm.size + comm.rank) < number:
                time.sleep(0)
    wait_for_all(comm)
    data.free()
    control.free()


def receive_all(
    comm: MPI.Intracomm, control: ControlWindow | SharedControlWindow, data: DataWindow | MappedWindow
) -> None:
    seen = [NUM_MESSAGES, *([0] * (comm.size - 1))]
    while min(seen) < NUM_MESSAGES:
        for origin in range(1, comm.size):
            announced = int(control.local()[origin])
            if announced > seen[origin]:
                data.sync()
                values = data.memory(0)[origin * LARGE_BYTES : (origin + 1) * LARGE_BYTES].view(torch.float32)
                assert values.min() == values.max() == announced, (origin, announced, values.min(), values.max())
                seen[origin] = announced
                control.store(0, comm.size + origin, announced)
        make_progress(comm)
        time.sleep(0)


def main(placement: str) -> None:
    comm = MPI.COMM_WORLD
    is_scattered = placement == "scattered"
    node_comm = comm.Split(comm.rank, comm.rank) if is_scattered else comm.Split_type(MPI.COMM_TYPE_SHARED)
    assert isinstance(node_comm, MPI.Intracomm)
    kinds: list[Kind] = [ControlWindow]
    if node_comm.size == comm.size:
        kinds.append(SharedControlWindow)
        if futex.is_available():
            wake_ups.LONGEST_SECONDS = 3600.0
            check_wake_ups(comm)
    for kind in kinds:
        check_atomics(comm, kind)
    check_streams(comm)
    for kind in [ControlWindow, *kinds]:  # windows can be made again after they have been freed
        for make_window in (DataWindow, make_mapped) if node_comm.size == comm.size else (DataWindow,):
            check_transfers(comm, node_comm, make_window)
            check_message_passing(comm, node_comm, kind, make_window)
    assert not list(Path("/dev/shm").glob(f"hpcasync-window-{os.getpid()}-*")), (
        "names go as soon as all ranks have mapped the memory"
    )
    if comm.rank == 0:
        print(f"windows passed, {placement}", flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        main(each)
