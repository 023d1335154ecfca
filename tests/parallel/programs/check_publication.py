"""Pulls between nodes while versions are written over: rank 0 publishes while the others pull from it.

Pieces are so small that many versions are made during a pull. What arrives must be of one version nevertheless.
"""

import random
import time
from collections.abc import Callable

import torch
from mpi4py import MPI

from hpcasync.comm import streams
from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import make_progress, wait_for_all
from hpcasync.comm.windows import ControlWindow
from hpcasync.ps.transport.remote_pull import ParameterReceiver, ParameterSender

NUM_ELEMENTS = 20_000
NUM_PULLS = 25
PUBLISHED, FINISHED, PULLING = 0, 1, 2
LAST = 200  # versions are small numbers, which bfloat16 holds exactly

streams.PIECE_BYTES = 1024


def publish(
    comm: MPI.Intracomm, control: ControlWindow, sender: ParameterSender, write: Callable[[int], object]
) -> None:
    """Make versions now and then while somebody pulls, until all workers have finished."""
    generator, version = random.Random(1), 0
    while control.local()[FINISHED] < comm.size - 1:
        sender.advance()
        make_progress(comm)
        if control.local()[PULLING] and generator.random() < 0.2 and version < LAST:
            version += 1
            sender.before_writing(version)
            write(version)
            control.store(0, PUBLISHED, version)
        time.sleep(0)


def read(buffer: torch.Tensor, start: int, out: torch.Tensor) -> None:
    out.copy_(buffer[start : start + out.numel()])


def pull(control: ControlWindow, receiver: ParameterReceiver, version: int, out: torch.Tensor) -> bool:
    control.add(0, PULLING, 1)
    receiver.request(version, [(0, Shard(0, NUM_ELEMENTS))], out)
    while (has_version := receiver.advance()) is None:
        time.sleep(0)
    control.add(0, PULLING, -1)
    return has_version


def work(comm: MPI.Intracomm, control: ControlWindow, receiver: ParameterReceiver) -> int:
    """Pull until the last version is there, and at least some times; returns how many pulls were overtaken."""
    out = torch.empty(NUM_ELEMENTS)
    num_pulls = num_overtaken = version = 0
    while num_pulls < NUM_PULLS or version < LAST:
        version = control.read(0, PUBLISHED)
        if pull(control, receiver, version, out):
            assert bool((out == version).all()), f"a pull of {version} holds {out.min()} to {out.max()}"
            num_pulls += 1
            num_overtaken += control.read(0, PUBLISHED) >= version + 2
    assert not pull(control, receiver, 0, out), "a version was sent that had been written over"
    control.add(0, FINISHED, 1)
    return num_overtaken


def check(comm: MPI.Intracomm, dtype: torch.dtype) -> None:
    control = ControlWindow(comm, 3 if comm.rank == 0 else 0)
    buffers = torch.zeros(2, NUM_ELEMENTS, dtype=dtype)
    messages = comm.Dup()
    num_overtaken = 0
    comm.Barrier()
    if comm.rank == 0:
        raw = buffers.view(torch.uint8)
        sender = ParameterSender(messages, raw.shape[1], lambda version, start, out: read(raw[version % 2], start, out))
        sender.before_writing(0)
        publish(comm, control, sender, lambda version: buffers[version % 2].fill_(version))
    else:
        num_overtaken = work(comm, control, ParameterReceiver(messages, dtype))
    wait_for_all(comm)
    total = comm.allreduce(num_overtaken)
    assert total > 0, "no pull took as long as two updates: nothing was tested"
    messages.Free()
    control.free()


def main() -> None:
    comm = MPI.COMM_WORLD
    check(comm, torch.float32)
    check(comm, torch.bfloat16)
    if comm.rank == 0:
        print("publication passed", flush=True)


if __name__ == "__main__":
    main()
