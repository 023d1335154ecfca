"""Asynchronous training of any module: what a program calls. The translation trainer is one such program.

    engine = Engine(MPI.COMM_WORLD, flat.parameters, make_optimizer, EngineOptions(pushes_per_update=2))
    if engine.is_server:
        engine.serve(observer, saver)  # until all workers have finished
    else:
        engine.start()
        while not engine.client.should_stop():
            version = engine.client.pull(flat.parameters)
            ...  # compute flat.gradient
            engine.client.push(flat.gradient, PushRecord(version, ...)) and engine.client.wait()
        engine.client.finish()
    engine.close()

docs/engine.md has a whole program.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from mpi4py import MPI

from hpcasync.choices import PullPolicy, StalenessPolicy
from hpcasync.comm.gpu_memory import describe_gpu_memory, takes_gpu_memory
from hpcasync.comm.mpi import collectively, gather_hosts
from hpcasync.comm.page_lock import describe_page_locks
from hpcasync.comm.roles import Roles, assign_roles
from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import LONG_SECONDS, make_progress, wait_for_all
from hpcasync.errors import UserError
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.coordination import Coordination
from hpcasync.ps.protocol.lost_workers import LostWorkers
from hpcasync.ps.protocol.observer import Observer, ShardSaver
from hpcasync.ps.protocol.staleness import make_policy
from hpcasync.ps.protocol.updates import PushCounts, UpdateState
from hpcasync.ps.server.block_threads import BlockThreads
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.coordinator import Coordinator
from hpcasync.ps.server.follower import Follower
from hpcasync.ps.server.parameter_groups import Optimizers, cut_in_shards
from hpcasync.ps.server.shard_server import initial_shard
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.start_checks import require_elementwise, require_same_training
from hpcasync.ps.transport.link import Link, LinkOptions
from hpcasync.ps.worker.buffers import Buffers
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import owner_of
from hpcasync.timeline import Timeline

_CPU = torch.device("cpu")


class RunObserver(Observer, Protocol):
    """An observer of a whole run."""

    def begin(self) -> None:
        """All ranks are ready: training begins."""


@dataclass(frozen=True)
class EngineOptions:
    """How gradients become updates; the same on all ranks.

    Attributes:
        num_servers: ranks that own shards of the parameters.
        server_threads: that a server sums gradients and makes its step with; torch's own threads should be one then.
        pushes_per_update: gradients summed at the servers before an optimizer step (Aji & Heafield 2019).
        pull: what a worker waits for after a push (exchange.pull).
        clip_norm: global norm of the gradient per token; 0: no clipping.
        ema_decay: averaged parameters, per update; 0: none.
        staleness_limit, staleness_policy: what is done about stale gradients (`ps.protocol.staleness`).
        compensation: strength of delay compensation (`ps.server.compensation`); needs a limit, policy wait or drop.
        lookahead: how far ahead workers compute, in parts of the mean staleness (`ps.protocol.lookahead`).
        fresh_updates: so many updates long workers wait for the update that their push is part of.
        may_lose_workers: the job goes on without workers that die; MPI has to allow it (`deaths.host_watch`).
        link: what the windows hold.
    """

    num_servers: int = 1
    server_threads: int = 1
    pushes_per_update: int = 1
    pull: PullPolicy = "handled"
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    staleness_limit: int | None = None
    staleness_policy: StalenessPolicy = "wait"
    compensation: float = 0.0
    lookahead: float = 0.0
    fresh_updates: int = 0
    may_lose_workers: bool = False
    link: LinkOptions = field(default_factory=LinkOptions)


@dataclass(frozen=True)
class EngineSetup:
    """What a rank brings to a job beside its options; most programs need none of it.

    Attributes:
        roles: who does what, the same on all ranks; default: servers are spread over the hosts.
        version: number of updates made before (resume).
        counts: of gradients before, at the coordinator; counted on.
        timeline: records what this rank does.
        server_device: where a server holds its shard, its optimizer state and sums.
        on_start: called when all ranks are ready, before anything is trained.
        carries_buffers: the module's buffers are brought to all ranks at the end; otherwise they are the caller's to
            bring, which they are to be where workers may die.
    """

    roles: Roles | None = None
    version: int = 0
    counts: PushCounts = field(default_factory=PushCounts)
    timeline: Timeline = field(default_factory=Timeline)
    server_device: torch.device = _CPU
    on_start: Callable[[], None] = lambda: None
    carries_buffers: bool = True


class Engine:
    """A rank's part in an asynchronous job, in whichever role it has (built collectively).

    Args:
        comm: all ranks.
        parameters: [num_elements] float32, the same on all ranks (`ps.worker.flat_parameters.FlatParameters`).
        optimizers: build the optimizer of a block of parameters, which must work element by element; or groups of
            parameters, each with its own (`ps.server.parameter_groups`), the same on all ranks.
        options: the same on all ranks.
        setup: this rank's.

    Attributes:
        counts: what became of the gradients, at the coordinator.
        servers_busy: part of the time in which the coordinator had something to do, there, once it has served.

    Raises:
        UserError: on every rank, if there are too few ranks, a host has too little memory for the windows, ranks would
            not train the same (`ps.start_checks`), the vector cannot be cut into that many shards, or the optimizer
            cannot be cut in blocks.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        parameters: torch.Tensor,
        optimizers: Optimizers,
        options: EngineOptions,
        setup: EngineSetup | None = None,
    ) -> None:
        setup = setup or EngineSetup()
        self._comm = comm
        self._setup = setup
        self._options = options
        self.counts = setup.counts
        self.servers_busy = 0.0
        self.roles = setup.roles or assign_roles(gather_hosts(comm), options.num_servers)
        require_same_training(comm, parameters, asdict(options), self.roles.server_ranks)
        self._buffers = self._carried_buffers(parameters) if setup.carries_buffers else None
        is_server = self.roles.is_server(comm.rank)
        collectively(comm, lambda: require_elementwise(optimizers, setup.server_device) if is_server else None)
        self._link = Link(
            comm,
            self.roles,
            cut_in_shards(optimizers, parameters.numel(), len(self.roles.server_ranks)),
            options.link,
            device=setup.server_device if is_server else parameters.device,
            private_copies=self._num_private_copies(setup.server_device),
            mirrored_vectors=self._num_mirrored_vectors(parameters),
            may_lose_workers=options.may_lose_workers,
        )
        self._state: ShardState | None = None
        self._client: Client | None = None
        if self._link.server_index is None:
            self._client = Client(
                self._link,
                options.pull,
                may_lose_workers=options.may_lose_workers,
                fresh_updates=options.fresh_updates,
            )
        else:
            shard = self._link.shards[self._link.server_index]
            self._state = ShardState(
                initial_shard(parameters, shard, setup.server_device),
                optimizers,
                start=shard.start,
                ema_decay=options.ema_decay,
                between_blocks=self._link.make_progress,
                threads=BlockThreads(options.server_threads),
            )

    @property
    def is_server(self) -> bool:
        """Whether this rank owns a shard."""
        return self._state is not None

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank orders the updates."""
        return self._link.server_index == 0

    @property
    def client(self) -> Client:
        """A worker's access to the servers."""
        assert self._client is not None, "a server has no client"
        return self._client

    @property
    def windows(self) -> str:
        """What all ranks' data windows are, for people."""
        size = f"{sum(self._link.window_bytes) / 2**20:,.1f} MiB over all ranks"
        locked = describe_page_locks(self._link.page_locks)
        said = f" ({describe_gpu_memory(takes_gpu_memory())})" if locked and self._link.spans_nodes else ""
        if not self._link.is_mapped:
            return f"{size}{locked}{said}"
        device = self._link.data.device.type
        if not self._link.spans_nodes:
            return f"{size}, {device} memory that they map"
        return f"{size}, {device} memory that ranks of a host map, MPI's windows between hosts{locked}{said}"

    def load(self, read_shard: Callable[[Shard], dict[str, torch.Tensor]]) -> None:
        """Go on from saved tensors (`ShardState.state_tensors`), before `serve`; a worker does nothing."""
        if self._state is not None:
            assert self._link.server_index is not None
            self._state.load_state_tensors(read_shard(self._link.shards[self._link.server_index]))

    def serve(self, observer: RunObserver | None, saver: ShardSaver, survival: LostWorkers | None = None) -> None:
        """Be a server until every worker has finished (collective with `start` of the workers).

        Args:
            observer: at the coordinator.
            saver: where this server's shard is saved.
            survival: at the coordinator, with `may_lose_workers`: which workers have died, and what they leave undone.
        """
        assert self._state is not None and self._link.server_index is not None
        options, version, clip_norm = self._options, self._setup.version, self._options.clip_norm
        compensation = None
        if options.compensation:
            assert options.staleness_limit is not None
            compensation = DelayCompensation(
                options.compensation, options.staleness_limit, self._state.parameters, version
            )
        if self._link.server_index > 0:
            follower = Follower(
                self._link,
                self._state,
                saver,
                clip_norm=clip_norm,
                version=version,
                compensation=compensation,
            )
            follower.timeline = self._setup.timeline
            self.start()
            follower.run()
            self._carry_buffers()
            return
        assert observer is not None
        updates = UpdateState(
            self._link.num_workers,
            options.pushes_per_update,
            pull=options.pull,
            fresh_updates=options.fresh_updates,
            staleness=make_policy(options.staleness_limit, options.staleness_policy),
            version=version,
            counts=self.counts,
        )
        assert (survival is not None) == options.may_lose_workers
        coordinator = Coordinator(
            self._link,
            self._state,
            saver,
            observer,
            Coordination(updates, survival),
            clip_norm=clip_norm,
            compensation=compensation,
            lookahead=options.lookahead,
        )
        coordinator.timeline = self._setup.timeline
        self.start()
        observer.begin()
        coordinator.run()
        self.servers_busy = coordinator.busy
        coordinator.save_last()
        coordinator.finish()
        self._carry_buffers()

    def start(self) -> None:
        """Workers call this before their first pull; the servers have published the first version then."""
        self._comm.Barrier()
        self._setup.on_start()

    def close(self, exit_code: int = 0) -> int:
        """Wait for all ranks without keeping a core busy, and free the windows (collective).

        All ranks have the workers' buffers then (`ps.worker.buffers`), servers since `serve` returned.

        Where workers may die no rank waits for any other than the coordinator, and windows stay: freeing is collective.

        Args:
            exit_code: of the job, at the coordinator.

        Returns:
            the coordinator's exit code, on every rank.
        """
        if self._options.may_lose_workers:
            return self._hear_of_the_end(exit_code)
        if self._client is not None:
            self._carry_buffers()
        wait_for_all(self._comm)
        self._link.free()
        return int(self._comm.bcast(exit_code, root=self._link.coordinator_rank))

    def _carried_buffers(self, parameters: torch.Tensor) -> Buffers | None:
        """The module's buffers, if it has any."""
        owner = owner_of(parameters)
        if owner is None or not owner.buffers.layout:
            return None
        if self._options.may_lose_workers and (layers := owner.buffers.statistics):
            raise UserError(
                f"{layers[0]} gathers statistics of its batches, which stay in the worker where workers may die "
                "(may_lose_workers): take LayerNorm or GroupNorm, or track_running_stats=False",
                everywhere=True,
            )
        return owner.buffers

    def _carry_buffers(self) -> None:
        """Bring the workers' buffers to all ranks (collective)."""
        if self._buffers is not None and not self._options.may_lose_workers:
            wait_for_all(self._comm)
            self._buffers.average(self._comm, 0 if self._client is None else self._client.num_pushed)

    def _hear_of_the_end(self, exit_code: int) -> int:
        control, coordinator = self._link.control, self._link.coordinator_rank
        if self.is_coordinator:
            control.tell_everybody(ControlWords.ENDED, exit_code + 1)
        waiting = control.make_wait(LONG_SECONDS)
        while not (ended := control.read(coordinator, ControlWords.ENDED)):
            make_progress(self._comm)
            waiting.wait()
        return ended - 1

    def _num_mirrored_vectors(self, parameters: torch.Tensor) -> int:
        """Those of a GPU's parameters and gradients, twice as many with transfers beside the computation."""
        return 0 if parameters.device.type == "cpu" else 4 if self._options.link.is_overlapped else 2

    def _num_private_copies(self, device: torch.device) -> int:
        options = self._options
        # On a GPU, where nothing else can make room: parameters, Adam's two moments, the sum and two scratch vectors.
        num_copies = (6 + (options.ema_decay > 0)) if device.type == "cuda" else 0
        if options.compensation and options.staleness_limit is not None:
            num_copies += DelayCompensation.num_copies(options.staleness_limit)
        return num_copies
