"""Vectors on a GPU, and the servers' shards: workers pull and push, rejected gradients in between.

    mpirun -n 4 python -m mpi4py check_device_vectors.py cpu|cuda

With windows of MPI, whose pages are locked, they are copied there directly; if that is refused, and between two nodes,
by way of other host memory. `cpu` takes vectors of the CPU for ones of a device, so that the same copies are made, as
late as a device may make them. Within a node mapped gradients are computed where servers read them. Every version is
one number. Two servers: on two nodes each worker has one of them beside it. At last one worker in a fixed order of
pushes: the same bits by every way.
"""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch
from mpi4py import MPI
from pretended_nodes import on_nodes

from hpcasync.choices import GradientFormat, ParameterFormat, WindowKind
from hpcasync.comm.copy_stream import CopyStream
from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import wait_for_all
from hpcasync.comm.windows import DataWindow
from hpcasync.ps import engine
from hpcasync.ps.engine import Engine, EngineOptions, EngineSetup
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.transport import link
from hpcasync.ps.transport.link import Link, LinkOptions
from hpcasync.ps.transport.sum_messages import SumMessages
from hpcasync.ps.worker.bucketed_push import GradientStream
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.device_copy import DeviceCopy
from hpcasync.ps.worker.flat_parameters import FlatParameters

NUM_UPDATES = 40
RATE = 2.0**-4
LATE_RANK = 3


Lock = Literal["granted", "refused", "late"]


@dataclass(frozen=True)
class Case:
    """A way that vectors take."""

    overlap: str
    gradients: GradientFormat
    window: WindowKind
    num_nodes: int = 1
    host_sums: bool = False
    lock: Lock = "granted"
    takes_gpu_memory: bool = False
    group: int = 2
    num_updates: int = NUM_UPDATES
    parameters: ParameterFormat = "fp32"
    topk: float = 1.0
    is_in_order: bool = False


CASES = (
    Case("none", "fp32", "mpi"),
    Case("push", "fp32", "mpi"),
    Case("push", "bf16", "mpi"),
    Case("none", "fp32", "mpi", lock="refused"),
    Case("push", "fp32", "mpi", lock="refused"),
    Case("push", "bf16", "mpi", lock="refused"),
    Case("none", "fp32", "mpi", lock="late", group=1),
    Case("push", "bf16", "mpi", lock="late"),
    Case("none", "fp32", "mapped"),
    Case("push", "fp32", "mapped"),
    Case("push", "bf16", "mapped"),
    Case("none", "fp32", "mpi", 2),
    Case("push", "bf16", "mpi", 2, lock="late", num_updates=16),
    Case("none", "fp32", "mapped", 2),
    Case("push", "bf16", "mapped", 2),
    Case("push", "bf16", "mapped", 2, parameters="bf16", takes_gpu_memory=True, num_updates=16),
    Case("none", "fp32", "mpi", 2, takes_gpu_memory=True, num_updates=16),
    Case("none", "fp32", "mpi", 2, lock="refused", takes_gpu_memory=True, num_updates=16),
    Case("none", "topk", "mapped", 2),
    Case("none", "fp32", "mapped", 2, host_sums=True),
    Case("push", "bf16", "mapped", 2, host_sums=True),
    Case("none", "bf16", "mpi", 2, host_sums=True),
)


class LateStream(CopyStream):
    """Copies no vector before it is waited for, and one worker's a while later: the other makes updates meanwhile."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._left: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._num_waits = 0

    def copy(self, out: torch.Tensor, values: torch.Tensor) -> None:
        if values.dtype == torch.float64:  # a record, which is on the host
            super().copy(out, values)
        else:
            self._left.append((out, values))

    def wait(self) -> None:
        if self._left and MPI.COMM_WORLD.rank == LATE_RANK:
            self._num_waits += 1
            time.sleep(0.03 * (self._num_waits % 2))
        for out, values in self._left:
            super().copy(out, values)
        self._left.clear()
        super().wait()


class Window(DataWindow):
    """A window whose pages are locked, or not, as a case says; on a CPU its copies are those of a GPU."""

    case = CASES[0]

    def lock_pages(self, ranks: Sequence[int], device: torch.device) -> str | None:
        if not any(self.memory(rank).numel() for rank in ranks):
            return None
        if self.case.lock == "refused":
            return "as the case says"
        refusal = super().lock_pages(ranks, device)
        self._copies = (LateStream if self.case.lock == "late" else CopyStream)(device)
        return refusal


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

    def lies_there(self, vector: torch.Tensor) -> bool:
        return self._link.is_mapped

    def reaches(self, vector: torch.Tensor) -> bool:
        return self._link.is_mapped or self._link.data.reaches(torch.device("cuda"))

    def sends(self, vector: torch.Tensor) -> bool:
        return False

    def receives(self, vector: torch.Tensor) -> bool:
        return Window.case.takes_gpu_memory and self.reaches(vector)


class HostLink(Link):
    """A link whose sums leave this host as those of a GPU do, by way of other memory."""

    def make_sum_messages(self, device: torch.device) -> SumMessages:
        assert self._messages is not None
        return LateSums(self._messages, self._sum_dtype, device, is_direct=False)


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


def work(client: Client, module: torch.nn.Module, flat: FlatParameters, case: Case) -> None:
    """The gradient of the sum of all parameters is 1 everywhere; in order, it depends on ticket and parameters."""
    with ThreadPoolExecutor(1) as executor:
        stream = GradientStream(client, flat, executor) if case.overlap == "push" else None
        while not client.should_stop():
            version = client.pull(flat.parameters)
            lowest, highest = torch.aminmax(flat.parameters)
            assert case.is_in_order or lowest == highest == -RATE * version, (version, lowest, highest)
            ticket = client.draw()
            flat.gradient.zero_()
            if stream is not None:
                stream.begin()
            loss = torch.stack([parameter.sum() for parameter in module.parameters()]).sum()
            if case.is_in_order:
                factors = torch.randn(flat.parameters.shape, generator=torch.Generator().manual_seed(ticket))
                parts = zip(module.parameters(), flat.views(factors.to(flat.parameters.device)), strict=True)
                loss = torch.stack([(parameter * (factor + parameter)).sum() for parameter, factor in parts]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            record = PushRecord(version, 0 if ticket % 5 == 3 else 1, 0.0, 0, 0.0, (ticket,))
            is_pushed = client.push(flat.gradient, record) if stream is None else stream.end(record).result()
            if not (is_pushed and client.wait()):
                break
    client.finish()


def run(comm: MPI.Intracomm, case: Case, device: str) -> torch.Tensor | None:
    """A job; returns the final parameters at its coordinator."""
    if comm.rank == 0:
        print(case, flush=True)
    Window.case = case
    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    flat = FlatParameters(module.to(device))
    options = EngineOptions(
        num_servers=2,
        pushes_per_update=case.group,
        pull="applied" if case.is_in_order else "handled",
        clip_norm=1e6,
        link=LinkOptions(
            gradients=case.gradients,
            topk=case.topk,
            parameters=case.parameters,
            window=case.window,
            host_sums=case.host_sums,
        ),
    )
    comm = on_nodes(comm, case.num_nodes)
    own = Engine(comm, flat.parameters, sgd, options, EngineSetup(server_device=torch.device(device)))
    observer = MinimalObserver(RATE, case.num_updates)
    if own.is_server:
        own.serve(observer, observer)
    else:
        if case.window == "mapped":
            own.client.place_gradients(flat)
        own.start()
        work(own.client, module, flat, case)
    own.close()
    if not own.is_coordinator:
        return None
    final = observer.final
    assert final is not None
    assert case.is_in_order or final.min() == final.max() == -RATE * case.num_updates
    assert own.counts.num_dropped >= case.num_updates // 5
    return final


def check_bits(comm: MPI.Intracomm, device: str) -> None:
    """Every way that vectors take gives the parameters that the first one gives."""
    formats: list[tuple[GradientFormat, ParameterFormat]] = [("fp32", "fp32"), ("bf16", "bf16"), ("topk", "fp32")]
    for gradients, parameters in formats:
        case = Case("none", gradients, "mpi", group=1, num_updates=8, parameters=parameters, topk=0.3, is_in_order=True)
        overlaps = ("none",) if gradients == "topk" else ("none", "push")
        locks: list[Lock] = ["refused", "granted", "late"]
        ways = itertools.product(overlaps, locks)
        finals = [run(comm, replace(case, overlap=overlap, lock=lock), device) for overlap, lock in ways]
        for final in finals:
            assert final is None or (finals[0] is not None and torch.equal(final, finals[0])), (gradients, parameters)


def main(device: str) -> None:
    torch.set_num_threads(1)
    link.__dict__["DataWindow"] = Window
    if device == "cpu":
        engine.__dict__["Client"], engine.__dict__["Link"] = HostClient, HostLink
    world = MPI.COMM_WORLD
    for case in CASES:
        run(world, case, device)
    three = world.Split(world.rank == world.size - 1, world.rank)
    assert isinstance(three, MPI.Intracomm)
    if three.size > 1:
        check_bits(three, device)
    wait_for_all(world)
    if world.rank == 0:
        print("device vectors passed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
