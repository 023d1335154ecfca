"""Servers and workers around a quadratic function, in many sizes of job, against a replay of what the coordinator did.

The coordinator records every update; the replay computes each version from the recorded groups, and is compared with
what every worker pulled, with every snapshot and with the final parameters.

The sizes of job are run one after the other on the first ranks of the world; the rest waits.

Argument: `all`, `mapped`, `mixed` or `sums` (six ranks), `few` (five) or `many-ranks` (twelve).
"""

import itertools
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from engine_replay import Recording, check, replay
from mpi4py import MPI
from pretended_nodes import on_nodes
from quadratic import (
    COMPENSATION,
    FIRST_VERSION,
    NUM_ELEMENTS,
    OPTIMIZER,
    Scenario,
    Vector,
    gradient_of,
    num_tokens,
    start_vector,
)

from hpcasync.choices import PullPolicy, WindowKind
from hpcasync.comm.roles import assign_roles
from hpcasync.comm.shards import cut_shards
from hpcasync.comm.waiting import wait_for_all
from hpcasync.ps.protocol.coordination import Coordination
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.staleness import make_policy
from hpcasync.ps.protocol.updates import PushCounts, UpdateState
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.coordinator import Coordinator
from hpcasync.ps.server.follower import Follower
from hpcasync.ps.server.shard_server import initial_shard
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.link import Link
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.loop.optimizers import optimizer_factory

# Every rank a node of its own: everything goes by Put and messages.
ALONE = 99


def run(world: MPI.Intracomm, scenario: Scenario) -> Vector | None:
    """Run one job; on its coordinator check it and return the final parameters."""
    size = scenario.num_servers + scenario.num_workers
    assert size <= world.size, "start more ranks"
    part = world.Split(0 if world.rank < size else 1, world.rank)
    assert isinstance(part, MPI.Intracomm)
    final = None
    if world.rank < size:
        final = run_job(on_nodes(part, scenario.num_nodes), scenario)
    wait_for_all(world)
    return final


def run_job(comm: MPI.Intracomm, scenario: Scenario) -> Vector | None:
    roles = assign_roles(["host"] * comm.size, scenario.num_servers)
    link = Link(comm, roles, cut_shards(NUM_ELEMENTS, scenario.num_servers), scenario.link_options)
    recording, counts, final = Recording(scenario), PushCounts(), None
    num_pushed, pulls = 0, list[tuple[int, Vector]]()
    if link.server_index is None:
        comm.Barrier()
        assert link.worker_index is not None
        # Of every two workers one leaves its gradients where it computes them.
        num_pushed, pulls = work(link, scenario, is_placed=link.worker_index % 2 == 0)
    else:
        counts, final = serve(link, scenario, recording)
    wait_for_all(comm)
    everybody = comm.gather((num_pushed, pulls), root=0)
    link.free()
    if comm.rank != 0:
        return None
    assert everybody is not None and final is not None
    versions, pulled = replay(scenario, recording.updates)
    check(scenario, recording, counts, [number for number, _ in everybody], versions, final)
    for version, vector in itertools.chain.from_iterable(pulls for _, pulls in everybody):
        atol = 1e-5 if scenario.parameters == "fp32" else 0.01  # a neighbour among the numbers of bfloat16
        np.testing.assert_allclose(vector, pulled[version], rtol=1e-4, atol=atol, err_msg=f"{scenario} {version}")
    return final


def work(link: Link, scenario: Scenario, *, is_placed: bool) -> tuple[int, list[tuple[int, Vector]]]:
    """A worker's loop; returns its pushes and what it pulled."""
    client = Client(link, scenario.pull)
    flat = FlatParameters(torch.nn.ParameterList([torch.empty(NUM_ELEMENTS)]))
    parameters = torch.empty(NUM_ELEMENTS)
    private = flat.gradient
    if is_placed:
        client.place_gradients(flat)
        has_near_server = any(link.data.is_local(rank) for rank in link.roles.server_ranks)
        assert (flat.gradient is not private) == (has_near_server and scenario.gradients == "fp32")
    pulls = []
    while True:
        version = client.pull(parameters)
        pulls.append((version, parameters.numpy().copy()))
        if client.should_stop() or (ticket := client.draw()) >= scenario.num_tickets:
            break
        gradient = flat.gradient.fill_(torch.nan)  # read too late, an earlier one spoils everything
        time.sleep(0.0005 * (ticket % 4))  # workers are not equally fast
        gradient[:NUM_ELEMENTS] = torch.from_numpy(gradient_of(scenario, ticket, parameters.numpy()))
        tokens = 0 if ticket in scenario.rejected else num_tokens(ticket)
        if not client.push(gradient[:NUM_ELEMENTS], PushRecord(version, tokens, 0.5 * tokens, 1, 0.0, (ticket,))):
            break
        if not client.wait():
            break
    client.finish()
    flat.gradient.fill_(torch.nan)  # nobody else's any more
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
        pull=scenario.pull,
        staleness=make_policy(scenario.limit, scenario.policy),
        version=FIRST_VERSION,
    )
    coordinator = Coordinator(
        link,
        state,
        recording,
        recording,
        Coordination(decisions),
        clip_norm=clip_norm,
        compensation=compensation,
        lookahead=scenario.lookahead,
    )
    link.comm.Barrier()
    coordinator.run()
    coordinator.save(SaveRequest("final", snapshot=True, checkpoint=bool(recording.updates)))
    coordinator.finish()
    assert decisions.is_finished
    return decisions.counts, recording.snapshots["final"]


def all_sizes() -> list[Scenario]:
    scenarios = []
    for number, (servers, workers, group) in enumerate(itertools.product((1, 2, 3), repeat=3)):
        scenario = Scenario(
            servers, workers, group, num_slots=1 + number % 2, num_nodes=ALONE if number % 5 == 4 else 1
        )
        pull: tuple[PullPolicy, ...] = ("latest", "added", "handled", "applied")
        scenarios.append(replace(scenario, pull=pull[(number + number // 3) % len(pull)]))
    return scenarios


def special_cases() -> list[Scenario]:
    return [
        Scenario(2, 3, 2, stop_after=3, num_tickets=1000),
        Scenario(1, 3, 3, stop_after=2, num_tickets=1000, pull="applied"),
        Scenario(3, 2, 5, stop_after=1, num_tickets=1000, num_slots=3),
        Scenario(2, 3, 2, stop_after=3, num_tickets=1000, pull="handled", rejected=frozenset({0, 2, 3})),
        Scenario(2, 1, 2, stop_after=2, stop_in_group=True, num_tickets=1000, pull="handled"),
        Scenario(2, 2, 2, rejected=frozenset({0, 5, 6, 39})),
        Scenario(1, 2, 2, rejected=frozenset({1, 2, 3, 38}), pull="applied"),
        Scenario(1, 1, 1, rejected=frozenset(range(14)), num_tickets=14),
        Scenario(2, 3, 100),  # one group of everything, at the end
        Scenario(2, 3, 2, num_tickets=1),  # more workers than batches
        Scenario(1, 2, 1, num_tickets=0),
        Scenario(2, 2, 2, stop_after=3, num_tickets=1000, num_nodes=ALONE),
    ]


def staleness_and_formats() -> list[Scenario]:
    return [
        Scenario(2, 3, 1, pull="handled", limit=0),
        Scenario(1, 4, 2, pull="handled", limit=1, num_tickets=60),
        Scenario(3, 3, 2, pull="applied", limit=1, rejected=frozenset({0, 3})),
        Scenario(1, 3, 1, pull="handled", limit=2, stop_after=5, num_tickets=1000),
        Scenario(2, 3, 1, limit=1, policy="drop", num_tickets=60),
        Scenario(1, 4, 2, pull="handled", limit=0, policy="drop"),
        Scenario(1, 4, 1, pull="applied", limit=0, policy="drop", num_tickets=60),
        Scenario(2, 3, 1, limit=1, policy="scale"),
        Scenario(1, 3, 2, limit=0, policy="scale"),
        Scenario(2, 3, 1, limit=2, policy="drop", is_compensated=True),
        Scenario(1, 3, 2, pull="handled", limit=1, is_compensated=True),
        Scenario(2, 3, 2, lookahead=1.0),
        Scenario(1, 4, 1, pull="handled", lookahead=0.5, parameters="bf16"),
        Scenario(2, 2, 2, gradients="bf16"),
        Scenario(2, 2, 2, gradients="bf16", parameters="bf16", num_nodes=ALONE),
        Scenario(1, 2, 2, parameters="bf16", pull="handled"),
        Scenario(3, 2, 2, gradients="topk"),
        Scenario(2, 2, 1, gradients="topk", num_nodes=ALONE, pull="handled"),
    ]


def few() -> list[Scenario]:
    """Every way that data takes, once."""
    return [
        Scenario(3, 2, 2, pull="handled", num_tickets=24),
        Scenario(2, 3, 3, pull="applied", num_slots=1, num_tickets=18),
        Scenario(1, 4, 1, num_tickets=24, stop_after=12),
        Scenario(2, 3, 2, gradients="bf16", parameters="bf16", pull="handled", num_tickets=16),
        Scenario(2, 2, 2, gradients="topk", num_nodes=ALONE, num_tickets=12),
        Scenario(1, 3, 1, limit=1, pull="handled", num_tickets=15),
    ]


def mapped() -> list[Scenario]:
    """Memory that ranks map: every format, every policy, every number of servers."""
    scenarios = [*all_sizes()[::4], *special_cases()[::3], *staleness_and_formats()]
    return [replace(scenario, window="mapped", num_nodes=1) for scenario in scenarios]


def mixed() -> list[Scenario]:
    """Two or three nodes, with servers on all or some: within them mapped windows, or MPI's."""
    scenarios = [*all_sizes()[1::4], *special_cases()[::3], *staleness_and_formats()[9:]]
    windows: tuple[WindowKind, ...] = ("mapped", "mpi")
    return [
        replace(scenario, window=windows[number % 3 == 2], num_nodes=2 + number % 2)
        for number, scenario in enumerate(scenarios)
    ]


def sums() -> list[Scenario]:
    """Gradients are summed on their nodes, each of which has a server or two."""
    scenarios = [*all_sizes()[1::2], *special_cases()[::2], *staleness_and_formats()[::2]]
    windows: tuple[WindowKind, ...] = ("mapped", "mpi")
    return [
        replace(
            scenario, window=windows[number % 2], num_nodes=max(2, scenario.num_servers - number % 2), host_sums=True
        )
        for number, scenario in enumerate(scenarios)
        if scenario.num_servers > 1 and scenario.gradients == "fp32" and not scenario.is_compensated
    ]


def many_ranks() -> list[Scenario]:
    """The largest sizes that are tested, and the most uneven ones."""
    sizes = [(4, 8), (1, 8), (4, 1), (3, 8), (2, 7), (4, 4)]
    return [Scenario(servers, workers, max(1, workers // 2), pull="handled") for servers, workers in sizes]


def everything() -> list[Scenario]:
    return [*all_sizes(), *special_cases(), *staleness_and_formats()]


CHOICES = {"all": everything, "mapped": mapped, "mixed": mixed, "sums": sums, "few": few, "many-ranks": many_ranks}


def check_number_of_servers(world: MPI.Intracomm) -> None:
    """In a fixed order of pushes, S servers give what one gives."""
    finals = [run(world, Scenario(servers, 1, 1, pull="applied", num_tickets=20)) for servers in (1, 2, 3)]
    if world.rank == 0:
        one, *others = finals
        assert one is not None
        for other in others:
            assert other is not None
            np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7)


def check_windows_are_bit_for_bit(world: MPI.Intracomm) -> None:
    """In a fixed order of pushes: one node, two with windows of MPI, with mapped ones, with sums."""
    for scenario in (
        Scenario(3, 1, 2, pull="applied", num_tickets=12),
        Scenario(3, 1, 1, pull="applied", num_tickets=12, gradients="bf16", parameters="bf16"),
        Scenario(2, 1, 1, pull="applied", num_tickets=12, gradients="topk"),
    ):
        one = run(world, scenario)
        windows: list[tuple[WindowKind, bool]] = [("mpi", False), ("mapped", False)]
        for window, host_sums in [*windows, ("mapped", True)] if scenario.gradients == "fp32" else windows:
            two = run(world, replace(scenario, num_nodes=2, window=window, host_sums=host_sums))
            if world.rank == 0:
                assert one is not None and two is not None
                np.testing.assert_array_equal(two, one, err_msg=f"{scenario} {window} {host_sums}")


def main() -> None:
    world = MPI.COMM_WORLD
    for scenario in CHOICES[sys.argv[1]]():
        started = time.perf_counter()
        run(world, scenario)
        if world.rank == 0:
            print(f"{scenario} {time.perf_counter() - started:.2f} s", flush=True)
    if sys.argv[1] == "all":
        check_number_of_servers(world)
    if sys.argv[1] == "mixed":
        check_windows_are_bit_for_bit(world)
    if world.rank == 0:
        print("engine passed", flush=True)


if __name__ == "__main__":
    main()
