"""Vectors on a GPU, and the servers' shards: workers pull and push, rejected gradients in between.

    mpirun -n 4 python -m mpi4py check_device_vectors.py cpu|cuda

With windows of MPI they travel by way of the host, with mapped ones between two nodes; `cpu` then takes vectors of the
CPU for ones of a device, so that the same copies are made, and as late as a device may make them. Within a node mapped
gradients are computed where servers read them. Every version is one number. Two servers: on two nodes each worker has
one of them beside it.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from mpi4py import MPI
from pretended_nodes import on_nodes

from hpcasync.choices import GradientFormat, WindowKind
from hpcasync.comm.shards import Shard
from hpcasync.ps import engine
from hpcasync.ps.engine import Engine, EngineOptions, EngineSetup
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.transport.link import Link, LinkOptions
from hpcasync.ps.transport.sum_messages import SumMessages
from hpcasync.ps.worker.bucketed_push import GradientStream
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.device_copy import DeviceCopy
from hpcasync.ps.worker.flat_parameters import FlatParameters

NUM_UPDATES = 40
RATE = 2.0**-4


@dataclass(frozen=True)
class Case:
    """A way that vectors take."""

    overlap: str
    gradients: GradientFormat
    window: WindowKind
    num_nodes: int = 1
    host_sums: bool = False


CASES = (
    Case("none", "fp32", "mpi"),
    Case("push", "fp32", "mpi"),
    Case("push", "bf16", "mpi"),
    Case("none", "fp32", "mapped"),
    Case("push", "fp32", "mapped"),
    Case("push", "bf16", "mapped"),
    Case("none", "fp32", "mpi", 2),
    Case("none", "fp32", "mapped", 2),
    Case("push", "bf16", "mapped", 2),
    Case("none", "topk", "mapped", 2),
    Case("none", "fp32", "mapped", 2, host_sums=True),
    Case("push", "bf16", "mapped", 2, host_sums=True),
    Case("none", "bf16", "mpi", 2, host_sums=True),
)


class LateCopy(DeviceCopy):
    """What is to reach the host is not there before it has been waited for."""

    def to_host(self, vector: torch.Tensor, part: Shard, dtype: torch.dtype | None = None) -> Callable[[], None]:
        bounds = slice(part.start, part.stop)
        host = self.host(vector, dtype)[bounds].fill_(torch.nan)

        def wait() -> None:
            host.copy_(vector[bounds])

        return wait


class LateSums(SumMessages):
    """Sums are staged late, too."""

    def _staged(self, rank: int, total: torch.Tensor) -> torch.Tensor:
        memory = super()._staged(rank, total)
        self.late = [*self.__dict__.get("late", []), (memory, memory.clone())]
        return memory.fill_(torch.nan)

    def _wait_for_device(self) -> None:
        for memory, values in self.__dict__.pop("late", []):
            memory.copy_(values)


class HostClient(Client):
    """A client that takes vectors of the CPU for ones of a GPU."""

    def _copies(self, vector: torch.Tensor) -> DeviceCopy:
        self._device_copy = self._device_copy or LateCopy(vector.device)
        return self._device_copy

    def reaches(self, vector: torch.Tensor) -> bool:
        return self._link.is_mapped

    def sends(self, vector: torch.Tensor) -> bool:
        return False


class HostLink(Link):
    """A link whose sums leave this host as those of a GPU do, by way of other memory."""

    def make_sum_messages(self, device: torch.device) -> SumMessages:
        assert self._messages is not None
        return LateSums(self._messages, self._sum_dtype, device, is_direct=False)


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


def work(client: Client, module: torch.nn.Module, flat: FlatParameters, overlap: str) -> None:
    """The gradient of the sum of all parameters is 1 everywhere."""
    with ThreadPoolExecutor(1) as executor:
        stream = GradientStream(client, flat, executor) if overlap == "push" else None
        while not client.should_stop():
            version = client.pull(flat.parameters)
            lowest, highest = torch.aminmax(flat.parameters)
            assert lowest == highest == -RATE * version, (version, lowest, highest)
            ticket = client.draw()
            flat.gradient.zero_()
            if stream is not None:
                stream.begin()
            torch.stack([parameter.sum() for parameter in module.parameters()]).sum().backward()  # type: ignore[no-untyped-call]
            record = PushRecord(version, 0 if ticket % 5 == 3 else 1, 0.0, 0, 0.0, (ticket,))
            is_pushed = client.push(flat.gradient, record) if stream is None else stream.end(record).result()
            if not (is_pushed and client.wait()):
                break
    client.finish()


def run(case: Case, device: str) -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    flat = FlatParameters(module.to(device))
    link = LinkOptions(gradients=case.gradients, topk=1.0, window=case.window, host_sums=case.host_sums)
    options = EngineOptions(num_servers=2, pushes_per_update=2, clip_norm=1e6, link=link)
    comm = on_nodes(MPI.COMM_WORLD, case.num_nodes)
    own = Engine(comm, flat.parameters, sgd, options, EngineSetup(server_device=torch.device(device)))
    observer = MinimalObserver(RATE, NUM_UPDATES)
    if own.is_server:
        own.serve(observer, observer)
    else:
        if case.window == "mapped":
            own.client.place_gradients(flat)
        own.start()
        work(own.client, module, flat, case.overlap)
    own.close()
    if own.is_coordinator:
        final = observer.final
        assert final is not None and final.min() == final.max() == -RATE * NUM_UPDATES
        assert own.counts.num_dropped >= NUM_UPDATES // 5


def main(device: str) -> None:
    torch.set_num_threads(1)
    if device == "cpu":
        engine.__dict__["Client"], engine.__dict__["Link"] = HostClient, HostLink
    for case in CASES:
        if MPI.COMM_WORLD.rank == 0:
            print(case, flush=True)
        run(case, device)
    if MPI.COMM_WORLD.rank == 0:
        print("device vectors passed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
