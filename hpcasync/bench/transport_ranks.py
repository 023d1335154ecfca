"""What the ranks of `hpcasync bench transport` do: push and pull through the engine's own windows, and plain copies.

    mpirun -n SERVERS+WORKERS python -m hpcasync.bench.transport_ranks SERVERS NUM_ELEMENTS ROUNDS FORMAT

Servers do what a server does around a push, save for the arithmetic.
"""

import json
import socket
import sys
import time

import torch
from mpi4py import MPI

from hpcasync.bench.jobs import RESULT
from hpcasync.bench.memory import Memcpy
from hpcasync.choices import ParameterFormat as Form
from hpcasync.comm.mpi import gather_hosts, library_name
from hpcasync.comm.roles import assign_roles
from hpcasync.comm.shards import cut_shards
from hpcasync.comm.waiting import wait_for_all
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.transport.link import Link, LinkOptions
from hpcasync.ps.worker.client import Client

_LINE_BYTES = 64 << 20


def main(num_servers: int, num_elements: int, num_rounds: int, form: Form) -> None:
    """Measure, and print the result on the first worker."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    roles = assign_roles(gather_hosts(comm), num_servers)
    spans_hosts = len(set(roles.hosts)) > 1
    line_rate = _line_rate(comm, roles.server_ranks[0], roles.worker_ranks[0]) if spans_hosts else None
    link = Link(comm, roles, cut_shards(num_elements, num_servers), LinkOptions(gradients=form, parameters=form))
    is_worker = link.worker_index is not None
    workers = comm.Split(1 if is_worker else 0, comm.rank)
    assert isinstance(workers, MPI.Intracomm)
    comm.Barrier()
    samples = None
    if is_worker:
        samples = _measure(link, workers, num_elements, num_rounds)
    else:
        _serve(link)
    wait_for_all(comm)
    if samples is not None and workers.rank == 0:
        about = {"mpi": library_name(), "hosts": len(set(roles.hosts)), "line_rate": line_rate}
        print(RESULT + json.dumps(samples | about), flush=True)
    link.free()


def _measure(link: Link, workers: MPI.Intracomm, num_elements: int, num_rounds: int) -> dict[str, list[float]]:
    """GB/s of payload over all workers, that start together: each sample is bytes of all over the slowest's time."""
    client = Client(link)
    gradient, parameters = torch.ones(num_elements), torch.zeros(num_elements)
    memcpy = Memcpy(num_elements)
    samples: dict[str, list[float]] = {"push": [], "pull": [], "memcpy": []}
    total_bytes = link.parameter_dtype.itemsize * num_elements * workers.size / 1e9
    client.pull(parameters)
    num_warm_up = link.num_slots + 1  # every slot is written once: the first touch of a page is the kernel's time
    for number in range(num_rounds + num_warm_up):
        seconds = []
        record = PushRecord(0, 1, 0.0, 0, 0.0, (number,))
        for action in (
            lambda record=record: client.push(gradient, record, is_checked=True),
            lambda: client.pull(parameters),
            memcpy.gigabytes_per_second,
        ):
            client.wait()
            workers.Barrier()
            started = time.perf_counter()
            action()
            seconds.append(workers.allreduce(time.perf_counter() - started, op=MPI.MAX))
        if number >= num_warm_up:
            for name, value in zip(samples, seconds, strict=True):
                samples[name].append(total_bytes / value)
    client.finish()
    return samples


def _serve(link: Link) -> None:
    """Free slots, and publish a version (without copying) with every push."""
    own = link.comm.rank
    is_coordinator = own == link.coordinator_rank
    handled = [0] * link.num_workers
    version = 0
    waiting = link.control.make_wait()
    while True:
        announced = [
            link.control.read(link.coordinator_rank, ControlWords.announced(worker))
            for worker in range(link.num_workers)
        ]
        finished = [
            link.control.read(link.coordinator_rank, ControlWords.finished(worker))
            for worker in range(link.num_workers)
        ]
        if all(finished):
            return
        for worker, sequence in enumerate(announced):
            if sequence == handled[worker]:
                continue
            waiting.reset()
            handled[worker] = sequence
            link.control.tell_worker(worker, ControlWords.consumed(worker), sequence)
            if is_coordinator:
                version += 1
                link.begin_writing(version)
                link.control.store(own, ControlWords.PUBLISHED, version)
                link.control.tell_worker(worker, ControlWords.handled(worker), sequence)
        link.make_progress()
        waiting.wait()


def _line_rate(comm: MPI.Intracomm, server: int, worker: int) -> float | None:
    """GB/s of one plain TCP stream from the worker's host to the server's."""
    address = None
    listener = None
    if comm.rank == server:
        listener = socket.create_server(("", 0))
        address = (_address_towards_peers(), listener.getsockname()[1])
    address = comm.bcast(address, root=server)
    rate: float | None = None
    if comm.rank == worker:
        block = bytes(1 << 20)
        with socket.create_connection(address, timeout=30) as connection:
            started = time.perf_counter()
            for _ in range(_LINE_BYTES // len(block)):
                connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
            rate = _LINE_BYTES / (time.perf_counter() - started) / 1e9
    elif listener is not None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 20):
                pass
            connection.sendall(b".")
        listener.close()
    rate = comm.bcast(rate, root=worker)
    return rate


def _address_towards_peers() -> str:
    """This host's own address: that of its name, or of the interface that leads out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostbyname(socket.gethostname())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "bf16" if sys.argv[4] == "bf16" else "fp32")
