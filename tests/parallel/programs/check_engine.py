"""Servers and workers around a quadratic function, in many sizes of job, against a replay of what the coordinator did.

The gradient of a batch (ticket t, n tokens) at parameters x is n (x - c_t). The coordinator records every update; the
replay computes each version from the recorded groups in numpy, by Adam as it is written down in its paper (Kingma & Ba
2015, algorithm 1), and is compared with what every worker pulled, with every snapshot and with the final parameters.

The sizes of job are run one after the other on the first ranks of the world; the rest waits.
"""

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from hpcasync.comm.roles import assign_roles
from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.comm.waiting import wait_for_all
from hpcasync.config import GradientFormat, OptimizerConfig, ParameterFormat, PullPolicy, StalenessPolicy
from hpcasync.ps.client import Client
from hpcasync.ps.compensation import DelayCompensation
from hpcasync.ps.link import Link, LinkOptions
from hpcasync.ps.observer import SaveRequest
from hpcasync.ps.record import PushRecord
from hpcasync.ps.saved_shard import SavedShard
from hpcasync.ps.server import Coordinator, Follower, initial_shard
from hpcasync.ps.shard_state import ShardState
from hpcasync.ps.staleness import make_policy
from hpcasync.ps.state import PushCounts, Update, UpdateState
from hpcasync.train.optimizers import optimizer_factory

NUM_ELEMENTS = 20_011
OPTIMIZER = OptimizerConfig(learning_rate=0.05, clip_norm=1.0)
TOPK = 0.1
COMPENSATION = 0.3
FIRST_VERSION = 7  # as if the run had been resumed
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Scenario:
    """A size of job, and what happens in it."""

    num_servers: int
    num_workers: int
    pushes_per_update: int
    num_tickets: int = 40
    num_slots: int = 2
    pull: PullPolicy = "latest"
    stop_after: int = 0
    rejected: frozenset[int] = frozenset()
    is_scattered: bool = False
    limit: int | None = None
    policy: StalenessPolicy = "wait"
    is_compensated: bool = False
    gradients: GradientFormat = "fp32"
    parameters: ParameterFormat = "fp32"

    @property
    def link_options(self) -> LinkOptions:
        return LinkOptions(self.num_slots, 1, gradients=self.gradients, topk=TOPK, parameters=self.parameters)


class Scattered(MPI.Intracomm):
    """A communicator whose ranks take themselves for nodes of their own, so that everything goes by Put and Get."""

    def Split_type(self, *_: object) -> MPI.Intracomm:  # noqa: N802 - the name is mpi4py's
        return MPI.COMM_SELF.Dup()


def start_vector() -> Vector:
    return np.linspace(-1, 1, NUM_ELEMENTS, dtype=np.float32)


def num_tokens(ticket: int) -> int:
    return 1 + ticket % 3


def gradient_of(ticket: int, parameters: Vector) -> Vector:
    centre = np.sin(np.arange(NUM_ELEMENTS) * 0.01 + ticket).astype(np.float32)
    return np.asarray(np.float32(num_tokens(ticket)) * (parameters - centre), np.float32)


@dataclass
class Recording:
    """What the coordinator did (`ps.observer`)."""

    scenario: Scenario
    updates: list[Update] = field(default_factory=list)
    dropped: list[PushRecord] = field(default_factory=list)
    snapshots: dict[str, Vector] = field(default_factory=dict)
    saved: Counter[str] = field(default_factory=Counter)
    started: list[SavedShard] = field(default_factory=list)
    num_stale: int = 0

    def learning_rate(self, update: Update) -> float:
        return rate(update.version)

    def after_update(self, update: Update, learning_rate: float) -> SaveRequest | None:
        assert learning_rate == rate(update.version) * rate_factor(self.scenario, update)
        self.updates.append(update)
        is_due = update.version % 3 == 0
        return SaveRequest(f"u{update.version}", snapshot=True, checkpoint=True) if is_due else None

    def after_arrival(self, worker: int) -> None:
        pass

    def after_finish(self, worker: int) -> None:
        pass

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        self.dropped.append(record)
        if is_stale and record.num_tokens:
            self.num_stale += 1

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self.snapshots[request.name] = vector.numpy()

    def shard_saved(self, saved: SavedShard) -> None:
        self.saved[saved.name] += 1

    def should_stop(self) -> bool:
        return bool(self.scenario.stop_after) and len(self.updates) >= self.scenario.stop_after

    def final_request(self) -> SaveRequest | None:
        return None

    def save_shard(self, name: str, server_index: int, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        assert tensors["parameters"].numel() == shard.size and tensors["optimizer.exp_avg"].numel() == shard.size
        self.started.append(SavedShard(name, f"shard-{server_index}"))

    def poll(self) -> list[SavedShard]:
        """Half of the saves take until the end of the run."""
        return [self.started.pop()] if len(self.started) > 1 else []

    def wait(self) -> list[SavedShard]:
        done, self.started = self.started, []
        return done


def rate(version: int) -> float:
    return OPTIMIZER.learning_rate / version


def rate_factor(scenario: Scenario, update: Update) -> float:
    if scenario.limit is None or scenario.policy != "scale":
        return 1.0
    factors = [(min(1.0, max(1, scenario.limit) / max(1, stale))) for stale in update.staleness]
    tokens = [push.record.num_tokens for push in update.pushes]
    return sum(map(float.__mul__, factors, map(float, tokens))) / sum(tokens)


def run(world: MPI.Intracomm, scenario: Scenario) -> Vector | None:
    """Run one job; on its coordinator check it and return the final parameters."""
    size = scenario.num_servers + scenario.num_workers
    assert size <= world.size, "start more ranks"
    part = world.Split(0 if world.rank < size else 1, world.rank)
    assert isinstance(part, MPI.Intracomm)
    final = None
    if world.rank < size:
        final = run_job(Scattered(part) if scenario.is_scattered else part, scenario)
    wait_for_all(world)
    return final


def run_job(comm: MPI.Intracomm, scenario: Scenario) -> Vector | None:
    roles = assign_roles(["host"] * comm.size, scenario.num_servers)
    link = Link(comm, roles, NUM_ELEMENTS, scenario.link_options)
    recording, counts, final = Recording(scenario), PushCounts(), None
    num_pushed, pulls = 0, list[tuple[int, Vector]]()
    if link.server_index is None:
        comm.Barrier()
        num_pushed, pulls = work(Client(link, scenario.pull), scenario)
    else:
        counts, final = serve(link, scenario, recording)
    wait_for_all(comm)
    everybody = comm.gather((num_pushed, pulls), root=0)
    link.free()
    if comm.rank != 0:
        return None
    assert everybody is not None and final is not None
    versions = replay(scenario, recording.updates)
    check(scenario, recording, counts, [number for number, _ in everybody], versions, final)
    for version, pulled in itertools.chain.from_iterable(pulls for _, pulls in everybody):
        expected = as_pulled(scenario, versions[version])
        atol = 1e-5 if scenario.parameters == "fp32" else 0.01  # a neighbour among the numbers of bfloat16
        np.testing.assert_allclose(pulled, expected, rtol=1e-4, atol=atol, err_msg=f"{scenario} {version}")
    return final


def work(client: Client, scenario: Scenario) -> tuple[int, list[tuple[int, Vector]]]:
    """A worker's loop; returns its pushes and what it pulled."""
    parameters = torch.empty(NUM_ELEMENTS)
    gradient = torch.empty(NUM_ELEMENTS)
    pulls = []
    while True:
        version = client.pull(parameters)
        pulls.append((version, parameters.numpy().copy()))
        if client.should_stop() or (ticket := client.draw()) >= scenario.num_tickets:
            break
        time.sleep(0.0005 * (ticket % 4))  # workers are not equally fast
        gradient.copy_(torch.from_numpy(gradient_of(ticket, parameters.numpy())))
        tokens = 0 if ticket in scenario.rejected else num_tokens(ticket)
        if not client.push(gradient, PushRecord(version, tokens, 0.5 * tokens, 1, 0.0, (ticket,))):
            break
        if not client.wait():
            break
    client.finish()
    return client.num_pushed, pulls


def serve(link: Link, scenario: Scenario, recording: Recording) -> tuple[PushCounts, Vector]:
    assert link.server_index is not None
    initial = initial_shard(torch.from_numpy(start_vector()), link.shards[link.server_index])
    state = ShardState(initial, optimizer_factory(OPTIMIZER))
    clip_norm, compensation = OPTIMIZER.clip_norm, None
    if scenario.is_compensated:
        assert scenario.limit is not None
        compensation = DelayCompensation(COMPENSATION, scenario.limit, state.parameters, FIRST_VERSION)
    if link.server_index > 0:
        follower = Follower(
            link, state, recording, clip_norm=clip_norm, version=FIRST_VERSION, compensation=compensation
        )
        link.comm.Barrier()
        follower.run()
        return PushCounts(), np.empty(0, np.float32)
    decisions = UpdateState(
        scenario.num_workers,
        scenario.pushes_per_update,
        pull_applied=scenario.pull == "applied",
        staleness=make_policy(scenario.limit, scenario.policy),
        version=FIRST_VERSION,
    )
    coordinator = Coordinator(
        link, state, recording, recording, decisions, clip_norm=clip_norm, compensation=compensation
    )
    link.comm.Barrier()
    coordinator.run()
    coordinator.save(SaveRequest("final", snapshot=True, checkpoint=bool(recording.updates)))
    coordinator.finish()
    assert decisions.is_finished
    return decisions.counts, recording.snapshots["final"]


def as_pulled(scenario: Scenario, parameters: Vector) -> Vector:
    return rounded(parameters) if scenario.parameters == "bf16" else parameters


def rounded(values: Vector) -> Vector:
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


class Sender:
    """What a worker's gradients are by the time they arrive."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._residual = np.zeros(NUM_ELEMENTS, np.float32)

    def send(self, gradient: Vector) -> Vector:
        if self._scenario.gradients == "bf16":
            return rounded(gradient)
        if self._scenario.gradients == "fp32":
            return gradient
        self._residual += gradient
        sent = np.zeros_like(gradient)
        for shard in cut_shards(NUM_ELEMENTS, self._scenario.num_servers):
            part = self._residual[shard.start : shard.stop]
            largest = shard.start + np.argsort(-np.abs(part), kind="stable")[: round(TOPK * shard.size)]
            sent[largest] = self._residual[largest]
        self._residual -= sent
        return sent


def replay(scenario: Scenario, updates: list[Update]) -> dict[int, Vector]:
    """Every version, computed from the groups alone."""
    versions = {FIRST_VERSION: start_vector()}
    first, second = np.zeros(NUM_ELEMENTS), np.zeros(NUM_ELEMENTS)
    (beta1, beta2), clip = OPTIMIZER.betas, OPTIMIZER.clip_norm
    senders = [Sender(scenario) for _ in range(scenario.num_workers)]
    for number, update in enumerate(updates, start=1):
        now = versions[update.version - 1]
        total = np.zeros(NUM_ELEMENTS)
        for push in update.pushes:
            (ticket,) = push.record.tickets
            then = versions[push.record.version]
            sent = senders[push.worker].send(gradient_of(ticket, as_pulled(scenario, then)))
            total += sent
            if scenario.is_compensated:
                total += COMPENSATION / num_tokens(ticket) * sent**2 * (now - then)
        mean = total / update.num_tokens
        mean *= min(1.0, clip / (float(np.linalg.norm(mean)) + 1e-6))
        first = beta1 * first + (1 - beta1) * mean
        second = beta2 * second + (1 - beta2) * mean**2
        step = (first / (1 - beta1**number)) / (np.sqrt(second / (1 - beta2**number)) + OPTIMIZER.eps)
        learning_rate = rate(update.version) * rate_factor(scenario, update)
        versions[update.version] = (now - learning_rate * step).astype(np.float32)
    return versions


def check(
    scenario: Scenario,
    recording: Recording,
    counts: PushCounts,
    num_pushed: list[int],
    versions: dict[int, Vector],
    final: Vector,
) -> None:
    updates = recording.updates
    pushes = [push for update in updates for push in update.pushes]
    assert [update.version for update in updates] == list(range(FIRST_VERSION + 1, FIRST_VERSION + 1 + len(updates)))
    assert counts.num_pushed == sum(num_pushed) == counts.num_applied + counts.num_dropped, (counts, num_pushed)
    assert counts.num_applied == len(pushes)
    assert counts.staleness == Counter(stale for update in updates for stale in update.staleness)
    seen = Counter((push.worker, push.sequence) for push in pushes)
    assert not seen or max(seen.values()) == 1
    tickets = Counter(itertools.chain.from_iterable(push.record.tickets for push in pushes))
    assert not tickets or max(tickets.values()) == 1
    rejected = Counter(ticket for record in recording.dropped if not record.num_tokens for ticket in record.tickets)
    if scenario.stop_after:
        assert len(updates) == scenario.stop_after
    else:
        stale = Counter(record.tickets[0] for record in recording.dropped if record.num_tokens)
        assert tickets + rejected + stale == Counter(range(scenario.num_tickets))
        assert set(rejected) == scenario.rejected
        assert counts.num_dropped == len(scenario.rejected) + recording.num_stale
        assert not recording.num_stale or scenario.policy == "drop"
    if scenario.limit is not None and scenario.policy != "scale":
        assert max(counts.staleness, default=0) <= scenario.limit, counts
    check_groups(scenario, updates)
    last = versions[updates[-1].version if updates else FIRST_VERSION]
    np.testing.assert_allclose(final, last, rtol=1e-4, atol=1e-5)
    for name, vector in recording.snapshots.items():
        if name != "final":
            np.testing.assert_allclose(vector, versions[int(name[1:])], rtol=1e-4, atol=1e-5, err_msg=name)
    due = [name for name in recording.snapshots if name != "final" or updates]
    assert recording.saved == Counter({name: scenario.num_servers for name in due}), recording.saved


def check_groups(scenario: Scenario, updates: list[Update]) -> None:
    sizes = [len(update.pushes) for update in updates]
    if not sizes:
        return
    most = scenario.pushes_per_update
    if is_applied := scenario.pull == "applied":
        most = min(most, scenario.num_workers)
        assert all(len({push.worker for push in update.pushes}) == len(update.pushes) for update in updates)
        assert all(stale == 0 for update in updates for stale in update.staleness) or most < scenario.num_workers
    if scenario.pull == "handled":
        check_handled(updates)
    if is_applied and most == scenario.num_workers:
        # Near the end workers finish one after the other, and groups get smaller.
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == most
    elif scenario.limit is not None and scenario.policy == "wait":
        # A group that waits takes in what arrives meanwhile, at most one push of every worker.
        assert all(most <= size <= most + scenario.num_workers for size in sizes[:-1]), sizes
    else:
        assert all(size == most for size in sizes[:-1]) and sizes[-1] <= most, sizes


def check_handled(updates: list[Update]) -> None:
    """A worker whose push completed an update computes its next gradient from that version or a later one."""
    completed = {(update.pushes[-1].worker, update.pushes[-1].sequence): update.version for update in updates}
    for push in itertools.chain.from_iterable(update.pushes for update in updates):
        assert push.record.version >= completed.get((push.worker, push.sequence - 1), 0)


def all_sizes() -> list[Scenario]:
    scenarios = []
    for number, (servers, workers, group) in enumerate(itertools.product((1, 2, 3), repeat=3)):
        scenario = Scenario(servers, workers, group, num_slots=1 + number % 2, is_scattered=number % 5 == 4)
        pull: tuple[PullPolicy, ...] = ("latest", "handled", "applied")
        scenarios.append(replace(scenario, pull=pull[(number + number // 3) % 3]))
    return scenarios


def special_cases() -> list[Scenario]:
    return [
        Scenario(2, 3, 2, stop_after=3, num_tickets=1000),
        Scenario(1, 3, 3, stop_after=2, num_tickets=1000, pull="applied"),
        Scenario(3, 2, 5, stop_after=1, num_tickets=1000, num_slots=3),
        Scenario(2, 3, 2, stop_after=3, num_tickets=1000, pull="handled", rejected=frozenset({0, 2, 3})),
        Scenario(2, 2, 2, rejected=frozenset({0, 5, 6, 39})),
        Scenario(1, 2, 2, rejected=frozenset({1, 2, 3, 38}), pull="applied"),
        Scenario(1, 1, 1, rejected=frozenset(range(14)), num_tickets=14),
        Scenario(2, 3, 100),  # one group of everything, at the end
        Scenario(2, 3, 2, num_tickets=1),  # more workers than batches
        Scenario(1, 2, 1, num_tickets=0),
        Scenario(2, 2, 2, stop_after=3, num_tickets=1000, is_scattered=True),
    ]


def staleness_and_formats() -> list[Scenario]:
    return [
        Scenario(2, 3, 1, pull="handled", limit=0),
        Scenario(1, 4, 2, pull="handled", limit=1, num_tickets=60),
        Scenario(3, 3, 2, pull="applied", limit=1, rejected=frozenset({0, 3})),
        Scenario(1, 3, 1, pull="handled", limit=2, stop_after=5, num_tickets=1000),
        Scenario(2, 3, 1, limit=1, policy="drop", num_tickets=60),
        Scenario(1, 4, 2, pull="handled", limit=0, policy="drop"),
        Scenario(2, 3, 1, limit=1, policy="scale"),
        Scenario(1, 3, 2, limit=0, policy="scale"),
        Scenario(2, 3, 1, limit=2, policy="drop", is_compensated=True),
        Scenario(1, 3, 2, pull="handled", limit=1, is_compensated=True),
        Scenario(2, 2, 2, gradients="bf16"),
        Scenario(2, 2, 2, gradients="bf16", parameters="bf16", is_scattered=True),
        Scenario(1, 2, 2, parameters="bf16", pull="handled"),
        Scenario(3, 2, 2, gradients="topk"),
        Scenario(2, 2, 1, gradients="topk", is_scattered=True, pull="handled"),
    ]


def check_number_of_servers(world: MPI.Intracomm) -> None:
    """In a fixed order of pushes, S servers give what one gives."""
    finals = [run(world, Scenario(servers, 1, 1, pull="applied", num_tickets=20)) for servers in (1, 2, 3)]
    if world.rank == 0:
        one, *others = finals
        assert one is not None
        for other in others:
            assert other is not None
            np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7)


def main() -> None:
    world = MPI.COMM_WORLD
    for scenario in [*all_sizes(), *special_cases(), *staleness_and_formats()]:
        started = time.perf_counter()
        run(world, scenario)
        if world.rank == 0:
            print(f"{scenario} {time.perf_counter() - started:.2f} s", flush=True)
    check_number_of_servers(world)
    if world.rank == 0:
        print("engine passed", flush=True)


if __name__ == "__main__":
    main()
