"""The data windows between servers and workers: how each rank reaches what lies there, and nothing of what it means.

Parameters, gradients and records lie in them (`ps.transport.window_layout`). Versions, counts and flags are control
words (`ps.transport.control_channel`).
"""

from dataclasses import dataclass

import torch
from mpi4py import MPI

from hpcasync.choices import GradientFormat, ParameterFormat, WindowKind
from hpcasync.comm.gpu_memory import takes_gpu_memory
from hpcasync.comm.mapped_window import MappedWindow
from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import make_progress
from hpcasync.comm.windows import DataWindow
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.transport.control_channel import ControlChannel
from hpcasync.ps.transport.gradient_formats import SlotAddress, make_wire
from hpcasync.ps.transport.record_codec import record_bytes
from hpcasync.ps.transport.remote_pull import ParameterReceiver, ParameterSender
from hpcasync.ps.transport.sum_messages import SumMessages
from hpcasync.ps.transport.window_kind import is_mapped
from hpcasync.ps.transport.window_layout import Layout, Place, require_servers
from hpcasync.ps.transport.window_memory import Copies, RankMemory, memory_of, require_memory

_PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LinkOptions:
    """What the windows hold.

    Attributes:
        num_slots: pushes of a worker that not all servers have read yet, at most.
        max_tickets: most batches that one push covers.
        is_overlapped: the next gradient may be computed while one is being pushed.
        gradients, topk: how gradients travel (`ps.transport.gradient_formats`).
        parameters: how parameters travel.
        window: what windows are made of (`ps.transport.window_kind`).
        host_sums: between hosts only sums travel: each host's gradients are summed there (not with topk).
    """

    num_slots: int = 2
    max_tickets: int = 1
    is_overlapped: bool = False
    gradients: GradientFormat = "fp32"
    topk: float = 0.01
    parameters: ParameterFormat = "fp32"
    window: WindowKind = "auto"
    host_sums: bool = False


class Link:
    """The windows of a job (built collectively by all ranks of `comm`).

    Args:
        comm: all ranks.
        roles: at least one server and one worker.
        shards: of the flat parameter vector, one for each server.
        options: what the windows hold; the same on all ranks.
        device: where this worker computes, or this server holds its shard; default: CPU.
        private_copies: float32 copies of its shard that a server keeps beside its windows, counted in the memory check.
        mirrored_vectors: page-locked copies in host memory of a worker's vectors on a GPU; counted likewise where there
            are several hosts, or windows of MPI that cannot be page-locked: else they are not needed.
        may_lose_workers: the job goes on without workers that die; all ranks are on one host then.

    Attributes:
        control: versions, counts and flags.
        data: parameters, and what ranks of one host exchange.
        mpi_window: records, and what goes from one host to another; the same one, unless windows are mapped.
        spans_nodes: whether there are several hosts.
        takes_gpu_memory: MPI says that it sends and receives it.
        is_mapped: the data window is memory that ranks of a host map.
        sums_hosts: a host's gradients are summed there before they travel (`ps.server.host_sums`).
        summed_here: servers of other hosts that this server sums for.
        page_locks: for each rank with a GPU, why its copies cannot be made directly to and from the window of MPI, for
            which its pages must be locked; or nothing.

    Raises:
        UserError: on every rank, if a host or GPU has too little memory for the windows of its ranks, or mapped windows
            or sums of hosts are wanted where there cannot be any.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        roles: Roles,
        shards: list[Shard],
        options: LinkOptions,
        *,
        device: torch.device | None = None,
        private_copies: int = 0,
        mirrored_vectors: int = 0,
        may_lose_workers: bool = False,
    ) -> None:
        self.comm = comm
        self.roles = roles
        self.shards = shards
        self.num_slots = options.num_slots
        self.max_tickets = options.max_tickets
        self.parameter_dtype = _PARAMETER_DTYPES[options.parameters]
        is_server = roles.is_server(comm.rank)
        self.server_index = roles.server_ranks.index(comm.rank) if is_server else None
        self.worker_index = None if is_server else roles.worker_ranks.index(comm.rank)
        # The servers' own communicator, in order of server index; workers get none.
        self.server_comm = comm.Split(0 if is_server else MPI.UNDEFINED, self.server_index or 0)
        node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node_comm, MPI.Intracomm)
        self.spans_nodes = node_comm.size < comm.size
        self.takes_gpu_memory = takes_gpu_memory() is True
        assert not (self.spans_nodes and may_lose_workers)
        device = device or torch.device("cpu")
        self.is_mapped = is_mapped(options.window, comm.allgather(device.type))
        nodes = tuple(comm.allgather(node_comm.bcast(comm.rank)))
        self._layout = self._lay_out(options, nodes, may_lose_workers=may_lose_workers)
        self._require_memory(device, private_copies, mirrored_vectors if self.spans_nodes else 0)
        self.control = ControlChannel(comm, roles, spans_nodes=self.spans_nodes)
        self._open_data_windows(node_comm, device)
        self.page_locks = self._lock_pages(device)
        if any(self.page_locks.values()):
            is_staged = self.spans_nodes or bool(self.page_locks.get(comm.rank))
            self._require_memory(device, private_copies, mirrored_vectors if is_staged else 0, has_windows=True)
        # Within a host nothing waits for this rank's MPI; deaths are acknowledged in it.
        self._needs_progress = self.spans_nodes or may_lose_workers
        self._views: dict[tuple[object, int, int, int, torch.dtype], torch.Tensor] = {}
        self._open_messages()

    def _lay_out(self, options: LinkOptions, nodes: tuple[int, ...], *, may_lose_workers: bool) -> Layout:
        self.sums_hosts = options.host_sums and self.spans_nodes
        if self.sums_hosts:
            require_servers(self.roles, nodes)
        # Sums are rounded, not what is summed.
        self._sum_dtype = torch.bfloat16 if options.gradients == "bf16" else torch.float32
        gradients: GradientFormat = "fp32" if self.sums_hosts else options.gradients
        self.wire = make_wire(gradients, options.topk)
        layout = Layout(
            self.roles,
            nodes,
            self.shards,
            num_slots=options.num_slots,
            num_spare=2 if options.is_overlapped else 1,
            record_bytes=record_bytes(options.max_tickets),
            parameter_bytes=self.parameter_dtype.itemsize,
            slot_bytes=[self.wire.slot_bytes(shard.size) for shard in self.shards],
            # A GPU's memory may go with its process: there a gradient that was announced must not lie with its worker.
            is_in_place=gradients == "fp32" and not (self.is_mapped and may_lose_workers),
            is_mapped=self.is_mapped,
            sums_hosts=self.sums_hosts,
        )
        own = self.server_index
        self.summed_here = [] if own is None else layout.summed_by(own)
        every = range(self.num_workers if self.sums_hosts else 0)
        self._sources = [] if own is None else [layout.summing_server(own, layout.node_of(worker)) for worker in every]
        return layout

    def _open_data_windows(self, node_comm: MPI.Intracomm, device: torch.device) -> None:
        num_bytes, rank = self._layout.window_bytes(self.comm.rank), self.comm.rank
        self.data: DataWindow | MappedWindow
        if self.is_mapped:
            self.mpi_window = DataWindow(self.comm, node_comm, self._layout.beside_bytes(rank))
            self.data = MappedWindow(self.comm, node_comm, num_bytes, device, self.mpi_window.sync)
        else:
            self.mpi_window = self.data = DataWindow(self.comm, node_comm, num_bytes)

    def _lock_pages(self, device: torch.device) -> dict[int, str]:
        """Lock what this rank's GPU copies to or from; returns why that cannot be, or nothing, for ranks with a GPU."""
        own, is_server = self.comm.rank, self.server_index is not None
        near = [rank for rank in range(self.comm.size) if self.data.is_local(rank)]
        ranks = [rank for rank in near if rank == own or self.roles.is_server(rank) != is_server]
        if self.is_mapped:
            ranks = [own] if self.spans_nodes and is_server else []  # its slots, where other hosts put gradients
        refusals = self.comm.allgather(self.mpi_window.lock_pages(ranks, device))
        return {rank: why for rank, why in enumerate(refusals) if why is not None}

    def _open_messages(self) -> None:
        # Parameters that workers on other nodes pull are messages of their own communicator.
        self._messages = self.comm.Dup() if self.spans_nodes else None
        self._sender: ParameterSender | None = None
        self.receiver: ParameterReceiver | None = None
        if self._messages is not None and self.server_index is not None:
            num_bytes = self.shards[self.server_index].size * self.parameter_dtype.itemsize
            is_on_gpu = self.data.device.type == "cuda"
            device = self.data.device if self.takes_gpu_memory else None
            pin_memory = is_on_gpu and not self.takes_gpu_memory
            self._sender = ParameterSender(
                self._messages, num_bytes, self._read_own_buffer, device=device, pin_memory=pin_memory
            )
        elif self._messages is not None:
            self.receiver = ParameterReceiver(self._messages, self.parameter_dtype)

    def make_sum_messages(self, device: torch.device) -> SumMessages:
        """At a server: for the sums that hosts exchange; `device` is that of the sums."""
        assert self._messages is not None
        is_direct = device.type == "cpu" or self.takes_gpu_memory
        return SumMessages(self._messages, self._sum_dtype, device, is_direct=is_direct)

    def summing_server(self, worker: int) -> int | None:
        """At a server: who sums a worker's gradients for it, if they come from another host and are summed there."""
        return self._sources[worker] if self._sources else None

    @property
    def own_shard(self) -> Shard:
        """This server's."""
        assert self.server_index is not None
        return self.shards[self.server_index]

    @property
    def num_workers(self) -> int:
        """Workers of the job."""
        return len(self.roles.worker_ranks)

    @property
    def coordinator_rank(self) -> int:
        """World rank of server 0."""
        return self.roles.coordinator_rank

    @property
    def num_vectors(self) -> int:
        """Vectors in this worker's window in which gradients can be computed; 0 if no server reads them there."""
        assert self.worker_index is not None
        return self._layout.num_vectors(self.worker_index)

    def vector(self, sequence: int) -> torch.Tensor:
        """The one of them that servers read for a push: [num_elements] float32."""
        num_bytes = 4 * self.shards[-1].stop
        return self._view(self.comm.rank, self._layout.vector_offset(sequence), num_bytes, torch.float32)

    def slot_address(self, server: int, sequence: int) -> SlotAddress:
        """Where this worker writes a server's part of the gradient of a push."""
        assert self.worker_index is not None
        place = self._layout.gradient_place(server, self.worker_index, sequence)
        return SlotAddress(self._window_of(place), place.rank, place.offset)

    def slot(self, worker: int, sequence: int, server: int | None = None) -> torch.Tensor:
        """Where this server reads its part of the gradient of a push, or that of a server it sums for: uint8."""
        server = self.server_index if server is None else server
        assert server is not None
        place = self._layout.gradient_place(server, worker, sequence)
        num_bytes = self.wire.slot_bytes(self.shards[server].size)
        return self._view(place.rank, place.offset, num_bytes, torch.uint8, self._window_of(place))

    def _window_of(self, place: Place) -> DataWindow | MappedWindow:
        return self.mpi_window if place.is_beside else self.data

    def write_record(self, sequence: int, words: torch.Tensor) -> None:
        """Write the record of this worker's push at the coordinator: float64 words; complete after `complete_push`."""
        assert self.worker_index is not None
        self.mpi_window.write(self.coordinator_rank, self._layout.record_offset(self.worker_index, sequence), words)

    def complete_push(self) -> None:
        """Complete all that this worker has written."""
        for rank in self.roles.server_ranks:
            if self.is_mapped and self.data.is_local(rank):
                self.data.flush(rank)
            self.mpi_window.flush(rank)

    def own_record(self, worker: int, sequence: int) -> torch.Tensor:
        """Where the record of a push lies in the coordinator's memory: float64."""
        assert self.server_index == 0
        offset, num_bytes = self._layout.record_offset(worker, sequence), record_bytes(self.max_tickets)
        return self._view(self.comm.rank, offset, num_bytes, torch.float64, self.mpi_window)

    def read_buffer(self, server: int, version: int, out: torch.Tensor) -> None:
        """Copy a version of the shard of a server on this host to [size] float32 `out`, converting on the way."""
        rank = self.roles.server_ranks[server]
        self.data.read(rank, self._layout.buffer_offset(server, version), out, self.parameter_dtype)

    def own_buffer(self, version: int) -> torch.Tensor:
        """Where a version of the shard lies in this server's memory: [size] of `parameter_dtype`."""
        assert self.server_index is not None
        num_bytes = self.shards[self.server_index].size * self.parameter_dtype.itemsize
        offset = self._layout.buffer_offset(self.server_index, version)
        return self._view(self.comm.rank, offset, num_bytes, self.parameter_dtype)

    def _read_own_buffer(self, version: int, start: int, out: torch.Tensor) -> None:
        """Copy bytes from `start` of a version of this server's shard to uint8 `out`, in host memory."""
        assert self.server_index is not None
        self.data.read(self.comm.rank, self._layout.buffer_offset(self.server_index, version) + start, out)

    def _view(
        self,
        rank: int,
        offset: int,
        num_bytes: int,
        dtype: torch.dtype,
        window: DataWindow | MappedWindow | None = None,
    ) -> torch.Tensor:
        # Cutting a tensor takes longer than copying a small one.
        window = self.data if window is None else window
        key = window, rank, offset, num_bytes, dtype
        if key not in self._views:
            self._views[key] = window.memory(rank)[offset : offset + num_bytes].view(dtype)
        return self._views[key]

    def begin_writing(self, version: int) -> None:
        """To be called before the first byte of a version is written, over those of the version before the last."""
        if self._sender is not None:
            self._sender.before_writing(version)
        self.control.store(self.comm.rank, ControlWords.WRITING, version)
        self.data.sync()  # told before the first store

    @property
    def is_sending(self) -> bool:
        """Whether parameters are on their way to other hosts."""
        return self._sender is not None and self._sender.is_sending

    def make_progress(self) -> None:
        """Let MPI serve others' one-sided operations on this rank; a server also serves pulls from other nodes."""
        if self._needs_progress:
            make_progress(self.comm)
        self.serve_pulls()

    def serve_pulls(self) -> None:
        """Send what workers on other nodes have asked this server for, as far as it may leave now."""
        if self._sender is not None:
            self._sender.advance()

    def _require_memory(self, device: torch.device, copies: int, mirrors: int, *, has_windows: bool = False) -> None:
        """Check what all ranks need: before there are windows, or when their pages have not been touched."""
        kept = Copies(copies, mirrors, self._sum_dtype.itemsize, are_on_gpu=self.takes_gpu_memory)
        own = memory_of(self._layout, self.comm.rank, device.type, kept)
        if has_windows:
            own = RankMemory(0, own.windows + own.beside, own.on_gpu)
        require_memory(self.comm, self.roles, own, device)

    @property
    def window_bytes(self) -> list[int]:
        """Of all windows of each rank."""
        return [self._layout.window_bytes(rank) + self._layout.beside_bytes(rank) for rank in range(self.comm.size)]

    def free(self) -> None:
        """Free the windows (collective)."""
        self._views.clear()
        if self._messages is not None:
            self._messages.Free()
        self.data.free()
        if self.is_mapped:
            self.mpi_window.free()
        self.control.free()
