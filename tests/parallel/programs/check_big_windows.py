"""Windows larger than 2 GiB, and of more than 2^31 elements: what is written at the far end arrives there, only there.

    mpirun -n 2 python -m mpi4py check_big_windows.py shared|scattered window|link|transfer …

Windows are sparse: only pages that are touched take memory. `window` writes at offsets around 2^31 and 2^32 bytes and
2^31 float32 elements; `link` does so through a worker's gradients and the parameter buffers; `transfer` moves more than
2 GiB at once, which takes that memory twice.
"""

import sys

import torch
from mpi4py import MPI
from pretended_nodes import on_nodes

from hpcasync.comm.roles import assign_roles
from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.comm.waiting import wait_for_all
from hpcasync.comm.windows import DataWindow
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.transport.link import Link, LinkOptions
from hpcasync.ps.worker.client import Client

GIB = 1 << 30
PART = 3000  # elements
WINDOW_BYTES = 8 * GIB + 65_536 + 4 * PART
TRANSFER_BYTES = 2 * GIB + 12_345 * 4
LINK_ELEMENTS = (1 << 29) + (1 << 20)  # a vector has more than 2^31 bytes


def check_window(comm: MPI.Intracomm, node_comm: MPI.Intracomm) -> None:
    """Rank 1 writes to rank 0 at far offsets, and reads them back."""
    window = DataWindow(comm, node_comm, WINDOW_BYTES if comm.rank == 0 else 0)
    offsets = [0, 2 * GIB - 4, 4 * GIB - 8, 5 * GIB, 8 * GIB + 65_536]  # the last: element 2^31 + 16_384
    parts = [torch.arange(PART, dtype=torch.float32) + 10_000 * number for number in range(1, len(offsets) + 1)]
    if comm.rank == 1:
        for offset, part in zip(offsets, parts, strict=True):
            window.write(0, offset, part)
        window.flush(0)
    comm.Barrier()
    window.sync()
    if window.is_local(0):
        for offset, part in zip(offsets, parts, strict=True):
            out = torch.empty_like(part)
            window.read(0, offset, out)
            assert torch.equal(out, part), (comm.rank, offset)
    if comm.rank == 0:
        elements = window.memory(0).view(torch.float32)
        assert elements.numel() > 1 << 31 and elements[(1 << 31) + 16_384 + 7] == parts[-1][7]
        # An offset cut to 32 bits would have put the last two here.
        for offset in offsets[-2:]:
            assert not window.memory(0)[offset - 4 * GIB :][: 4 * PART].any()
    comm.Barrier()
    window.free()


def check_link(comm: MPI.Intracomm, _: MPI.Intracomm) -> None:
    """A worker pushes the last elements of a vector of more than 2 GiB; the server publishes, the worker pulls them."""
    options = LinkOptions(num_slots=1)
    link = Link(comm, assign_roles(["host"] * comm.size, 1), cut_shards(LINK_ELEMENTS, 1), options)
    far = Shard(LINK_ELEMENTS - PART, LINK_ELEMENTS)
    pattern = torch.arange(PART, dtype=torch.float32)
    if link.worker_index is not None:
        client = Client(link)
        gradient = torch.empty(LINK_ELEMENTS)
        gradient[far.start : far.stop] = pattern
        assert client.begin_push()
        client.write(gradient, far)
        client.end_push(PushRecord(0, 1, 0.0, 0, 0.0, (7,)))
        assert client.wait()
        if link.data.is_local(0):
            out = torch.empty(PART)
            link.data.read(0, 4 * (LINK_ELEMENTS + far.start), out)  # of the second buffer
            assert torch.equal(out, 2 * pattern)
        client.finish()
    else:
        while link.control.read(0, ControlWords.announced(0)) == 0:
            link.make_progress()
        link.data.sync()
        slot = link.slot(0, 1)
        assert slot.numel() == 4 * LINK_ELEMENTS > 1 << 31
        total = torch.zeros(PART)
        link.wire.add(total, slot, far.start)
        assert torch.equal(total, pattern)
        link.own_buffer(1)[far.start : far.stop] = 2 * total
        link.data.sync()
        link.control.tell_worker(0, ControlWords.handled(0), 1)
    wait_for_all(comm)
    link.free()


def check_transfer(comm: MPI.Intracomm, node_comm: MPI.Intracomm) -> None:
    """One write of more than 2 GiB, and where there is shared memory one read."""
    window = DataWindow(comm, node_comm, TRANSFER_BYTES if comm.rank == 0 else 0)
    ends = torch.arange(1, PART + 1, dtype=torch.float32)
    if comm.rank == 1:
        values = torch.zeros(TRANSFER_BYTES // 4)
        values[:PART], values[-PART:] = ends, -ends
        window.write(0, 0, values)
        window.flush(0)
        if window.is_local(0):
            out = torch.empty_like(values)
            window.read(0, 0, out)
            assert torch.equal(out, values)
    comm.Barrier()
    if comm.rank == 0:
        window.sync()
        whole = window.memory(0).view(torch.float32)
        assert torch.equal(whole[:PART], ends) and torch.equal(whole[-PART:], -ends)
        assert int(whole.count_nonzero()) == 2 * PART
    comm.Barrier()
    window.free()


def main() -> None:
    torch.set_num_threads(1)
    world = MPI.COMM_WORLD
    comm = on_nodes(world, world.size) if sys.argv[1] == "scattered" else world
    node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
    assert isinstance(node_comm, MPI.Intracomm)
    checks = {"window": check_window, "link": check_link, "transfer": check_transfer}
    for name in sys.argv[2:]:
        checks[name](comm, node_comm)
    if comm.rank == 0:
        print("big windows passed", flush=True)


if __name__ == "__main__":
    main()
