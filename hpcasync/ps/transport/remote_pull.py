"""How parameters reach workers on other hosts: a worker asks every server for a version, and is sent the shard.

A server sends from a copy that is made piece by piece, each just before it leaves. What has not been copied when the
server is about to write over the version is copied then: so what arrives is always the version that was asked for,
however slow the line and however many updates are made meanwhile. Workers that pull the same version share a copy.
"""

from collections.abc import Callable
from functools import partial

import torch
from mpi4py import MPI

from hpcasync.comm.copy_stream import CopyStream
from hpcasync.comm.shards import Shard
from hpcasync.comm.streams import IncomingStream, OutgoingStream

_REQUEST_TAG = 1
_ANSWER_TAG = 2
_DATA_TAG = 3
_GONE = -1  # the answer where the version has been written over


class _Copy:
    """A version of the shard on its way to workers.

    Args:
        read: copies bytes from a place in it.
        memory: uint8, for all of it.

    Attributes:
        num_readers: workers that it is being sent to.
    """

    def __init__(self, read: Callable[[int, torch.Tensor], None], memory: torch.Tensor) -> None:
        self._read = read
        self.memory = memory
        self._num_copied = 0
        self.num_readers = 0

    def piece(self, start: int, stop: int) -> torch.Tensor:
        """Bytes that will not change."""
        self.complete(stop)
        return self.memory[start:stop]

    def complete(self, stop: int | None = None) -> None:
        """Copy what has not been copied of the bytes before `stop`."""
        stop = self.memory.numel() if stop is None else stop
        if stop > self._num_copied:
            self._read(self._num_copied, self.memory[self._num_copied : stop])
            self._num_copied = stop


class ParameterSender:
    """A server's part. Nothing here waits: `advance` is to be called again and again.

    Args:
        comm: of all ranks, for nothing else.
        num_bytes: of a version of the shard, as it is published.
        read: copies bytes of a version, from a place in it, to uint8 memory; versions v and v + 2 share a buffer.
        device: where they are copied to, and sent from: a GPU only if MPI takes its memory; default: CPU.
        pin_memory: they are copied from a GPU to the host.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        num_bytes: int,
        read: Callable[[int, int, torch.Tensor], None],
        *,
        device: torch.device | None = None,
        pin_memory: bool = False,
    ) -> None:
        self._comm = comm
        self._num_bytes = num_bytes
        self._read = read
        self._device = device
        self._pin_memory = pin_memory
        self._writing = 0
        self._copies: dict[int, _Copy] = {}
        self._spare: list[torch.Tensor] = []
        self._outgoing: list[tuple[int, OutgoingStream]] = []
        self._answers: list[MPI.Request] = []

    def before_writing(self, version: int) -> None:
        """Call before the first byte of `version` is written: over those of the version before the last."""
        if version - 2 in self._copies:
            self._copies[version - 2].complete()
        self._writing = version

    @property
    def is_sending(self) -> bool:
        """Whether something has not left yet."""
        return bool(self._outgoing)

    def advance(self) -> None:
        """Take requests, send what may be sent."""
        status = MPI.Status()
        while self._comm.Iprobe(MPI.ANY_SOURCE, _REQUEST_TAG, status):
            request = torch.zeros(1, dtype=torch.int64)
            self._comm.Recv(request.numpy(), status.Get_source(), _REQUEST_TAG)
            self._answer(status.Get_source(), int(request))
        if self._outgoing:
            under_way = []
            for version, stream in self._outgoing:
                if stream.advance():
                    self._release(version)
                else:
                    under_way.append((version, stream))
            self._outgoing = under_way
        self._answers = [answer for answer in self._answers if not answer.Test()]

    def _answer(self, rank: int, version: int) -> None:
        is_there = version in self._copies or version > self._writing - 2
        answer = torch.tensor([version if is_there else _GONE]).numpy()
        self._answers.append(self._comm.Isend(answer, rank, _ANSWER_TAG))
        if not is_there:
            return
        if version not in self._copies:
            memory = self._spare.pop() if self._spare else self._new_memory()
            self._copies[version] = _Copy(partial(self._read, version), memory)
        copy = self._copies[version]
        copy.num_readers += 1
        stream = OutgoingStream(self._comm, rank, _DATA_TAG, copy.memory.numel(), copy.piece)
        self._outgoing.append((version, stream))

    def _new_memory(self) -> torch.Tensor:
        memory = torch.empty(self._num_bytes, dtype=torch.uint8, device=self._device, pin_memory=self._pin_memory)
        CopyStream(memory.device).wait_for_computation()  # that may be using what is allocated anew
        return memory

    def _release(self, version: int) -> None:
        copy = self._copies[version]
        copy.num_readers -= 1
        if copy.num_readers == 0:
            self._spare.append(self._copies.pop(version).memory)


class ParameterReceiver:
    """A worker's part: one pull at a time.

    Args:
        dtype: of the parameters on the way.
    """

    def __init__(self, comm: MPI.Intracomm, dtype: torch.dtype) -> None:
        self._comm = comm
        self._dtype = dtype
        self._staged: dict[int, torch.Tensor] = {}
        self._copies: CopyStream | None = None
        self._pulls: list[_ShardPull] = []

    def request(self, version: int, shards: list[tuple[int, Shard]], out: torch.Tensor) -> None:
        """Ask servers (rank, shard), each for its shard of a version, to be put in its place in `out`.

        That is of the CPU, or of a GPU where MPI takes its memory, always of the same one; no stream is using it.
        """
        assert not self._pulls
        self._copies = self._copies or CopyStream(out.device)
        for rank, shard in shards:
            part = out[shard.start : shard.stop]
            memory = self._memory(rank, part)
            self._pulls.append(_ShardPull(self._comm, rank, version, part, memory, self._copies))

    def advance(self) -> bool | None:
        """None while something is on its way; then whether all servers had the version."""
        if not all([pull.advance() for pull in self._pulls]):
            return None
        assert self._copies is not None
        self._copies.wait()
        has_all = all(pull.has_version for pull in self._pulls)
        self._pulls = []
        return has_all

    def _memory(self, rank: int, out: torch.Tensor) -> torch.Tensor:
        """Where the shard arrives: in its place, unless it has another type."""
        if out.dtype == self._dtype:
            return out
        if rank not in self._staged:
            self._staged[rank] = torch.empty(out.numel(), dtype=self._dtype, device=out.device)
            CopyStream(out.device).wait_for_computation()  # that may be using what is allocated anew
        return self._staged[rank]


class _ShardPull:
    """One server's answer, then its shard."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        rank: int,
        version: int,
        out: torch.Tensor,
        memory: torch.Tensor,
        copies: CopyStream,
    ) -> None:
        self._comm = comm
        self._copies = copies
        self._rank = rank
        self._out = out
        self._memory = memory
        self._question, self._answer = torch.tensor([version]), torch.zeros(1, dtype=torch.int64)
        self._handshake = [
            comm.Irecv(self._answer.numpy(), rank, _ANSWER_TAG),
            comm.Isend(self._question.numpy(), rank, _REQUEST_TAG),
        ]
        self._stream: IncomingStream | None = None
        self.has_version = False

    def advance(self) -> bool:
        """Whether there is nothing more to come."""
        if self._stream is None:
            if not MPI.Request.Testall(self._handshake):
                return False
            self.has_version = int(self._answer) != _GONE
            if not self.has_version:
                return True
            self._stream = IncomingStream(self._comm, self._rank, _DATA_TAG, self._memory, self._arrived)
        return self._stream.advance()

    def _arrived(self, start: int, stop: int) -> None:
        if self._memory is not self._out:
            part = slice(start // self._memory.itemsize, stop // self._memory.itemsize)
            self._copies.copy(self._out[part], self._memory[part])
