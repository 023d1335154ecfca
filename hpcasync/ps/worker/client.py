"""The worker's side: draw batches, pull a consistent version, push gradients. Nobody waits for another worker."""

import time
from collections.abc import Callable

import torch

from hpcasync.choices import PullPolicy
from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import LONG_SECONDS, Backoff
from hpcasync.comm.windows import PIECE_BYTES
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.working import Count, Source, Wait, Working
from hpcasync.ps.transport.link import Link
from hpcasync.ps.transport.record_codec import encode_record
from hpcasync.ps.worker.device_copy import DeviceCopy
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.ps.worker.gradient_ring import GradientRing
from hpcasync.ps.worker.push_checks import PushWatch, require_vector

_WORDS = {
    Count.CONSUMED: ControlWords.consumed,
    Count.HANDLED: ControlWords.handled,
    Count.SETTLED: ControlWords.settled,
}


class Client:
    """A worker's access to the servers.

    Args:
        link: the windows.
        pull: what `wait` waits for.
        may_lose_workers: as `ps.protocol.working.Working` takes it.
        fresh_updates: likewise.

    Attributes:
        working: what this worker has done, and so waits for.
        num_pull_retries: pulls that met a shard which had moved on, and were repeated.
        wait_seconds: time spent waiting for a free slot or for the own push to be applied.
    """

    def __init__(
        self, link: Link, pull: PullPolicy = "handled", *, may_lose_workers: bool = False, fresh_updates: int = 0
    ) -> None:
        assert link.worker_index is not None
        self.working = Working(link.num_slots, pull, may_lose_workers=may_lose_workers, fresh_updates=fresh_updates)
        self._link = link
        self._worker = link.worker_index
        self._coordinator = link.coordinator_rank
        self._version = -1
        self._pushed_version = -1
        self._device_copy: DeviceCopy | None = None
        self._ring: GradientRing | None = None
        self._watch = PushWatch()
        self._num_elements = link.shards[-1].stop
        servers = list(enumerate(link.roles.server_ranks))
        self._near_servers = [(server, rank) for server, rank in servers if link.data.is_local(rank)]
        self._far_servers = [(server, rank) for server, rank in servers if not link.data.is_local(rank)]
        # Where a gradient is written: not at a server for which it is summed here.
        addresses = [link.slot_address(server, 0) for server, _ in servers]
        self._near_slots = [server for server, slot in enumerate(addresses) if slot.window.is_local(slot.rank)]
        self._far_slots = [(server, rank) for server, rank in servers if server not in self._near_slots]
        # Servers of other hosts to which something is written: the record, at least.
        self._put_to = [rank for server, rank in self._far_servers if server not in self._near_slots or server == 0]
        self.num_pull_retries = 0
        self.wait_seconds = 0.0

    @property
    def num_pushed(self) -> int:
        """Pushes made."""
        return self.working.num_pushed

    def draw(self) -> int:
        """The number of the next batch; each number is drawn once over all workers."""
        return self._link.control.add(self._coordinator, ControlWords.CURSOR, 1)

    def next_source(self) -> Source:
        """Where this worker's next batch comes from: `draw`, or `take_offer`."""
        num_offers = 0
        if self.working.may_lose_workers:
            num_offers = self._link.control.read(self._coordinator, ControlWords.offers(self._worker))
        return self.working.next_source(num_offers, is_stopping=self.should_stop())

    def take_offer(self) -> int:
        """The batch that a dead worker has left undone, and that is offered to this one."""
        self.working.take_offer()
        return self._link.control.read(self._coordinator, ControlWords.offered_ticket(self._worker))

    def rest(self) -> bool:
        """There are no more batches to draw: wait for an offer; False if nothing is left to do for anybody."""
        read, rank = self._link.control.read, self._coordinator
        self._link.control.tell_coordinator(ControlWords.rests(self._worker), self.working.rest())
        waiting = self._link.control.make_wait(LONG_SECONDS)
        while not self.working.has_offer(read(rank, ControlWords.offers(self._worker))):
            if self.should_stop() or read(rank, ControlWords.EXHAUSTED):
                return False
            self._link.make_progress()
            waiting.wait()
        return True

    def should_stop(self) -> bool:
        """Whether the coordinator has ended training."""
        return self._link.control.read(self._coordinator, ControlWords.STOP) != 0

    def pull(self, out: torch.Tensor) -> int:
        """Copy the newest published version into [num_elements] float32 `out` and return it; all shards are of it.

        Does nothing if `out` holds it already. On a GPU, no computation but that of the last push may be using `out`.
        """
        require_vector(out, self._num_elements, "the vector to pull into")
        before = self._version
        if before < 0 and not self._is_computed(out):
            self._copies(out).wait_for_computation()
        near = out if self.reaches(out) else self._copies(out).host(out)
        staged_from = [] if self.receives(out) else self._far_servers
        version = self._pull_into(near, self._copies(out).host(out) if staged_from else out)
        if version != before:
            for part in self._staged_parts(out, Shard(0, self._num_elements), staged_from):
                self._copies(out).to_device(out, part)
        return version

    def _pull_into(self, near: torch.Tensor, far: torch.Tensor) -> int:
        """Shards of servers on this host into the one vector, those of others into the other."""
        while True:
            version = self._link.control.read(self._coordinator, ControlWords.PUBLISHED)
            if version == self._version:
                return version
            self._request(version, far)
            is_whole = self._load(version, near)
            if self._has_received() and is_whole:
                self._version = version
                return version
            self.num_pull_retries += 1

    def _load(self, version: int, out: torch.Tensor) -> bool:
        """Copy the shards of the servers on this node; returns whether they are of this version."""
        link = self._link
        for server, _ in self._near_servers:
            link.read_buffer(server, version, out[link.shards[server].start : link.shards[server].stop])
        # A shard that began to write version + 2 did so over the buffer that was read.
        return all(link.control.read(rank, ControlWords.WRITING) <= version + 1 for _, rank in self._near_servers)

    def _request(self, version: int, out: torch.Tensor) -> None:
        """Have the servers on other nodes send their shards."""
        if self._link.receiver is not None:
            far_shards = [(rank, self._link.shards[server]) for server, rank in self._far_servers]
            self._link.receiver.request(version, far_shards, out)

    def _has_received(self) -> bool:
        """Wait for what was requested; returns whether all servers still had the version."""
        if self._link.receiver is None:
            return True
        backoff = Backoff()
        while (answer := self._link.receiver.advance()) is None:
            backoff.wait()
        return answer

    def push(self, gradient: torch.Tensor, record: PushRecord, *, is_checked: bool = False) -> bool:
        """Write a [num_elements] float32 gradient and its record to all servers, then announce it.

        The gradient of a record without tokens stays here: the servers only count it. After `place_gradients`, another
        vector has then taken the gradient's place. A gradient that is not finite is pushed as one without tokens.

        Args:
            gradient: the sum over the record's tokens.
            record: what travels with it.
            is_checked: the caller has looked whether the gradient is finite.

        Returns:
            False if training has ended meanwhile: then nothing was pushed.

        Raises:
            UserError: the vector is none of this layout, or a hundred gradients in a row had no weight.
            ValueError: the record has more tickets than `LinkOptions.max_tickets`.
        """
        require_vector(gradient, self._num_elements, "the gradient")
        if not is_checked:
            record = self._watch.checked(gradient, record)
        if not self.begin_push():
            return False
        if record.num_tokens:
            whole = Shard(0, gradient.numel())
            self.stage(gradient, whole)()
            self.write(gradient, whole)
        else:
            self.abandon(gradient)
        self.end_push(record)
        self.turn()
        return True

    def place_gradients(self, flat: FlatParameters, num_private: int = 1) -> None:
        """Have gradients computed where servers read them, as far as they can: pushing `flat.gradient` copies nothing.

        They can where servers share this host, gradients are computed on the device of the windows, and are read as
        float32 (not in mapped memory where workers may die). The vectors take turns: `push` and `GradientStream.end`
        put the next one, with what is left in it, in place of `flat.gradient`, until `finish`. A vector that has been
        pushed must not be written.

        Args:
            flat: of this worker's module.
            num_private: vectors to take turns where they cannot; 2, if one is computed while another is being pushed.
        """
        shared = self._link.num_vectors if self.lies_there(flat.gradient) else 0
        vectors = [self._link.vector(sequence) for sequence in range(shared)]
        self._ring = GradientRing(flat, vectors, num_private, self.working.next_push)

    def turn(self) -> None:
        """The gradient has been given away to be pushed: another vector takes its place, if they take turns.

        The servers have read what that one held: with `LinkOptions.is_overlapped`, since the push before this one has
        found a slot free; else this one must have, or this waits for it.
        """
        if self._ring is None:
            return
        wait = self._ring.begin()
        if wait is None or wait.value <= 0 or self._wait_for(wait):
            self._ring.end()
        else:
            self._ring.leave()  # training has ended: servers may read any of them still

    def begin_push(self) -> bool:
        """Wait for a free slot at all servers; False if training has ended: then nothing is to be written."""
        for rank in self._put_to:
            # Its sleeps are short from now on: what is put there moves while it looks.
            self._link.control.store(rank, ControlWords.begun(self._worker), self.working.next_push)
        return self._wait_for(self.working.before_write())

    def stage(self, gradient: torch.Tensor, part: Shard) -> Callable[[], None]:
        """Begin to bring the part [start, stop) of a [num_elements] gradient to where `write` takes it from.

        Returns:
            waits for that, in any thread.
        """
        if self._is_computed(gradient):
            return lambda: None
        copies, wire = self._copies(gradient), self._link.wire
        # The largest elements are found on the device: few travel.
        staged = self._staged_parts(gradient, part, self._far_slots) if wire.has_blocks else []
        waits = [copies.when_computed(), *(copies.to_host(gradient, each, wire.travels_as) for each in staged)]

        def wait_for_all() -> None:
            for wait in waits:
                wait()

        return wait_for_all

    def _staged_parts(self, vector: torch.Tensor, part: Shard, far: list[tuple[int, int]]) -> list[Shard]:
        """What of a part passes through the host vector beside it: far servers' shards of it, or all."""
        if not self.reaches(vector):
            return [part]
        met = [self._link.shards[server].overlap(part) for server, _ in far]
        return [shard for shard in met if shard.size > 0]

    def abandon(self, gradient: torch.Tensor) -> None:
        """A gradient is not written: wait for its computation all the same, for the next pull changes parameters."""
        if not self._is_computed(gradient):
            self._copies(gradient).wait_for_computation()

    def lies_there(self, vector: torch.Tensor) -> bool:
        """Whether the windows of this host are memory of a vector's device, so that it can be computed there."""
        return vector.device.type == self._link.data.device.type

    def reaches(self, vector: torch.Tensor) -> bool:
        """Whether a vector can be copied to and from the windows of this host as it is."""
        return self._link.data.reaches(vector.device)

    def sends(self, vector: torch.Tensor) -> bool:
        """Whether a vector can be put to other hosts as it is."""
        return vector.device.type == "cpu"

    def receives(self, vector: torch.Tensor) -> bool:
        """Whether parameters can be received from this host and from others into a vector as it is."""
        return self.sends(vector) or (self._link.takes_gpu_memory and self.reaches(vector))

    def _is_computed(self, vector: torch.Tensor) -> bool:
        """Whether what has been asked for has been computed: on a CPU it has, if that is no stand-in for a device."""
        return self.sends(vector)

    def _copies(self, vector: torch.Tensor) -> DeviceCopy:
        if self._device_copy is None:
            self._device_copy = DeviceCopy(vector.device)
        return self._device_copy

    def write(self, gradient: torch.Tensor, part: Shard) -> None:
        """Write the staged part [start, stop) of a [num_elements] gradient to the servers whose shards it meets.

        Parts may come in any order, each element once. A wire without blocks takes the whole gradient only.
        """
        link, sequence = self._link, self.working.next_push
        is_in_place = link.num_vectors and gradient.data_ptr() == link.vector(sequence).data_ptr()
        for server in [] if is_in_place else self._near_slots:  # else it has been computed where they read it
            met = link.shards[server].overlap(part)
            if met.size > 0:
                near = gradient if self.reaches(gradient) else self._staged(gradient)
                link.wire.write(link.slot_address(server, sequence), near, link.shards[server], met)
        if self._far_slots:
            self._write_far(gradient if self.sends(gradient) else self._staged(gradient), part, sequence)

    def _staged(self, gradient: torch.Tensor) -> torch.Tensor:
        """Where `stage` has brought a gradient."""
        wire = self._link.wire
        return self._copies(gradient).host(gradient, wire.travels_as) if wire.has_blocks else gradient

    def _write_far(self, gradient: torch.Tensor, part: Shard, sequence: int) -> None:
        """Servers on other hosts in turn, a piece each: every one may be behind a line of its own."""
        link, pieces = self._link, []
        for server, _ in self._far_slots:
            met = link.shards[server].overlap(part)
            size = PIECE_BYTES // link.wire.slot_bytes(1) if link.wire.has_blocks else max(1, met.size)
            starts = range(met.start, met.stop, size)
            pieces += [(turn, server, Shard(start, min(start + size, met.stop))) for turn, start in enumerate(starts)]
        for _, server, piece in sorted(pieces, key=lambda entry: entry[:2]):
            link.wire.write(link.slot_address(server, sequence), gradient, link.shards[server], piece)

    def end_push(self, record: PushRecord) -> None:
        """Write the record to the coordinator, complete all writes, then announce the push."""
        link = self._link
        self._pushed_version = record.version
        link.write_record(self.working.next_push, encode_record(record, link.max_tickets))
        link.complete_push()
        link.control.tell_coordinator(ControlWords.announced(self._worker), self.working.announce())

    def wait(self) -> bool:
        """Wait after a push as the pull policy says; False if training has ended."""
        wait = self.working.after_push(self._pushed_version)
        return wait is None or self._wait_for(wait)

    def finish(self) -> None:
        """Tell the coordinator that this worker pushes nothing more."""
        self._link.control.tell_coordinator(ControlWords.finished(self._worker), 1)
        if self._ring is not None:
            self._ring.leave()

    def _wait_for(self, wait: Wait) -> bool:
        word, value = _WORDS[wait.told](self._worker), wait.value
        ranks = self._link.roles.server_ranks if wait.told is Count.CONSUMED else (self._coordinator,)
        started = time.perf_counter()
        waiting = self._link.control.make_wait(word=word)
        try:
            while any(self._link.control.read(rank, word) < value for rank in ranks):
                if self.should_stop():
                    return False
                waiting.wait()  # between hosts reading the words lets MPI progress, too
            return not self.should_stop()
        finally:
            self.wait_seconds += time.perf_counter() - started
