"""What a joined program's job is made of: the order of batches, schedules of groups, buffers, snapshots."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hpcasync.errors import UserError
from hpcasync.program.batch_plan import BatchPlan, Tickets, dealt_out
from hpcasync.program.buffer_means import BufferMeans, load_into, to_json
from hpcasync.program.moving import moved_to
from hpcasync.program.schedule import Schedule, parameters_in_order
from hpcasync.program.scheduler_calls import SchedulerCalls
from hpcasync.program.snapshot import load_snapshot
from hpcasync.program.streams import SplitOrder, StreamPlan
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.ps.server.parameter_groups import ParameterGroup, cut_in_blocks
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.ps.start_checks import require_elementwise
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.files import write_snapshot


def loader(size: int = 10, **options: Any) -> "DataLoader[Any]":
    return DataLoader(TensorDataset(torch.arange(size)), **{"batch_size": 3, **options})


@given(st.integers(1, 40), st.integers(1, 7), st.booleans(), st.integers(0, 2**40))
def test_an_epoch_has_every_sample_once(size: int, batch: int, shuffle: bool, seed: int) -> None:
    plan = BatchPlan(loader(size, batch_size=batch, shuffle=shuffle), seed)
    for epoch in range(2):
        tickets = range(epoch * plan.num_batches(), (epoch + 1) * plan.num_batches())
        assert sorted(index for ticket in tickets for index in plan.batch(ticket)) == list(range(size))
        assert {plan.locate(ticket)[0] for ticket in tickets} == {epoch}


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "generator": torch.Generator()},
        {"sampler": RandomSampler(range(10), replacement=True, num_samples=9)},
        {"sampler": WeightedRandomSampler([1.0, 2.0] * 5, 8)},
        {"batch_sampler": BatchSampler(RandomSampler(range(10)), 4, drop_last=True), "batch_size": 1},
    ],
)
def test_the_order_depends_on_seed_and_epoch_alone(options: dict[str, Any]) -> None:
    first, second, other = (BatchPlan(loader(**options), seed) for seed in (1, 1, 2))
    state = torch.random.get_rng_state()
    orders = [[plan.batch(ticket) for ticket in range(3 * plan.num_batches())] for plan in (first, second, other)]
    torch.rand(7)
    assert [second.batch(ticket) for ticket in reversed(range(3 * second.num_batches()))] == orders[0][::-1]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][: first.num_batches()] != orders[0][first.num_batches() : 2 * first.num_batches()]
    assert first.digest == second.digest != other.digest
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_dealt_out_loader_keeps_what_makes_its_batches(processes: int) -> None:
    own = loader(collate_fn=lambda rows: [int(row[0]) for row in rows], num_workers=processes)
    drawn = iter([3, 0, 2])
    tickets = Tickets(BatchPlan(own, 1), lambda: next(drawn, None))
    batches = iter(dealt_out(own, tickets))
    assert [(next(batches), *tickets.next()) for _ in range(3)] == [
        ([9], 3, 1),
        ([0, 1, 2], 0, 3),
        ([6, 7, 8], 2, 3),
    ]
    assert next(batches, None) is None


class Sampler:
    """One that gives fewer batches every time."""

    left = 3

    def __iter__(self) -> Any:
        self.left -= 1
        return iter([[0]] * self.left)


def test_epochs_of_different_length_are_refused() -> None:
    plan = BatchPlan(DataLoader(TensorDataset(torch.ones(3)), batch_sampler=Sampler()), 1)
    with pytest.raises(UserError, match="1 batches in epoch 1 and 2 in the first"):
        plan.batch(2)


class Stream(IterableDataset[int]):
    """Eleven numbers, in an order that is drawn from torch and from `random`, and ten more for each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(11).tolist()
        random.shuffle(order)
        yield from (100 * self.epoch + number for number in order)


class SplitStream(Stream):
    """One that gives each worker a part."""

    part = slice(None)

    def set_worker(self, index: int, number: int) -> None:
        self.part = slice(index, None, number)

    def __iter__(self) -> Iterator[int]:
        yield from list(super().__iter__())[self.part]


def stream_loader(dataset: Stream, processes: int = 0) -> "DataLoader[Any]":
    return DataLoader(dataset, 2, collate_fn=list, num_workers=processes)


def read(plan: StreamPlan, tickets: list[int]) -> list[tuple[int, int, int, list[int]]]:
    drawn = iter(tickets)
    return [(each.ticket, each.epoch, each.num_samples, each.batch) for each in plan.dealt(lambda: next(drawn, None))]


@pytest.mark.parametrize("processes", [0, 1])
def test_workers_find_their_batches_in_a_stream(processes: int) -> None:
    """The same for all, whatever they draw from torch meanwhile; those beyond the end are not there."""
    first, second = (StreamPlan(stream_loader(Stream(), processes), 5, 2, worker, 2) for worker in range(2))
    odd = read(first, [1, 3, 5, 8])
    torch.rand(3)
    state = torch.random.get_rng_state(), random.getstate()
    even = read(second, [0, 2, 4, 6, 7, 9, 10, 11, 12, 13])
    assert torch.equal(torch.random.get_rng_state(), state[0]) and random.getstate() == state[1]
    found = sorted(odd + even)
    assert [(ticket, epoch, size) for ticket, epoch, size, _ in found] == [
        (ticket, ticket // 6, 1 if ticket % 6 == 5 else 2) for ticket in range(12)
    ]
    orders = [
        [number for _, epoch, _, batch in found if epoch == number_of for number in batch] for number_of in (0, 1)
    ]
    assert [sorted(order) for order in orders] == [list(range(11)), list(range(100, 111))]
    assert orders[0] != [number - 100 for number in orders[1]]


def test_a_split_stream_gives_each_worker_its_part() -> None:
    parts = [
        read(StreamPlan(stream_loader(SplitStream()), 5, 1, worker, 3), list(range(worker, 30, 3)))
        for worker in range(3)
    ]
    assert sorted(number for part in parts for *_, batch in part for number in batch) == list(range(11))
    assert [[ticket for ticket, *_ in part] for part in parts] == [[0, 3], [1, 4], [2, 5]]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_each_worker_goes_on_in_its_part_where_it_was(applied: list[int]) -> None:
    number = len(applied)
    ledger = TicketLedger()
    ledger.add(index * number + worker for worker, count in enumerate(applied) for index in range(count))
    order = SplitOrder(ledger, number)
    for worker, count in enumerate(applied):
        expected = [(count + index) * number + worker for index in range(3)]
        assert [order.ticket(index * number + worker) for index in range(3)] == expected


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 9), st.data())
def test_blocks_cover_a_shard_and_meet_one_group_each(sizes: list[int], most: int, data: st.DataObject) -> None:
    stops = np.cumsum(sizes).tolist()
    start = data.draw(st.integers(0, stops[-1] - 1))
    size = data.draw(st.integers(0, stops[-1] - start))
    groups = [ParameterGroup(stop, lambda parameters: torch.optim.SGD(parameters)) for stop in stops]
    blocks = cut_in_blocks(groups, start, size, most)
    assert [index for block in blocks for index in range(block.start, block.stop)] == list(range(size))
    for block in blocks:
        assert 0 < block.stop - block.start <= most
        owners = {np.searchsorted(stops, start + index, side="right") for index in range(block.start, block.stop)}
        assert owners == {block.group}


def make(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    weights, biases = ([p for p in model.parameters() if (p.ndim > 1) == is_weight] for is_weight in (True, False))
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.3}]
    options: dict[str, dict[str, Any]] = {
        "AdamW": {"amsgrad": True},
        "SGD": {"momentum": 0.9, "nesterov": True},
        "RMSprop": {"centered": True},
    }
    optimizer = getattr(torch.optim, kind)(groups, lr=0.1, **options.get(kind, {}))
    return model, optimizer, torch.optim.lr_scheduler.CyclicLR(
        optimizer, [0.01, 0.02], [0.1, 0.3], 2, cycle_momentum=kind in ("SGD", "AdamW")
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_servers_step_groups_as_the_optimizer_does(kind: str, num_shards: int) -> None:
    """With its scheduler, which changes momenta, too; cut in shards anywhere, and saved and loaded in between."""
    plain, optimizer, scheduler = make(kind)
    ours, own, own_scheduler = make(kind)
    flat = FlatParameters(ours, parameters_in_order(ours, own))
    schedule = Schedule(own, [own_scheduler], SchedulerCalls("step"))
    cuts = np.linspace(0, flat.num_elements, num_shards + 1).astype(int).tolist()
    bounds = list(pairwise(cuts))
    groups = schedule.groups(flat)
    shards = [ShardState(flat.parameters[low:high], groups, start=low) for low, high in bounds]
    for version in range(1, 7):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(version)) for p in plain.parameters()]
        for mine, other, gradient in zip(plain.parameters(), ours.parameters(), gradients, strict=True):
            mine.grad = gradient
            assert other.grad is not None
            other.grad.copy_(gradient)
        optimizer.step()
        scheduler.step()
        for (low, high), shard in zip(bounds, shards, strict=True):
            shard.apply(blocks_of(flat.gradient[low:high]), scale=1.0, learning_rate=0.0, version=version)
        if version == 3:
            saved = [shard.state_tensors() for shard in shards]
            shards = [ShardState(flat.parameters[low:high], groups, start=low) for low, high in bounds]
            for shard, tensors in zip(shards, saved, strict=True):
                shard.load_state_tensors(tensors)
    for mine, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"capturable": True, "lr": torch.tensor(0.01)}, {"fused": True, "lr": 0.01}])
def test_servers_step_alike_whatever_device_the_optimizer_was_made_for(options: dict[str, Any]) -> None:
    """Captured steps are a GPU's alone, and their rate is a tensor."""
    ours, plain = nn.Linear(4, 4), nn.Linear(4, 4)
    plain.load_state_dict(ours.state_dict())
    optimizer = torch.optim.AdamW(ours.parameters(), **options)
    expected = torch.optim.AdamW(plain.parameters(), lr=0.01)
    flat = FlatParameters(ours)
    (group,) = Schedule(optimizer, [], SchedulerCalls("step")).groups(flat)
    require_elementwise(group.make_optimizer, torch.device("cpu"))
    for parameter in plain.parameters():
        parameter.grad = torch.ones_like(parameter)
    expected.step()
    shard = ShardState(flat.parameters, [group], fused=False)
    shard.apply(blocks_of(torch.ones_like(flat.parameters)), scale=1.0, learning_rate=0.0, version=1)
    for mine, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other, mine)


def test_a_scheduler_of_epochs_makes_a_step_after_each() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    schedule = Schedule(optimizer, [scheduler], SchedulerCalls("step"))
    schedule.batches_per_step = 3
    assert [schedule.rate(version) for version in range(1, 8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_a_scheduler_of_batches_keeps_pace_with_the_data() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=8)
    schedule = Schedule(optimizer, [scheduler], SchedulerCalls("step"))
    schedule.batches_per_update = 2
    assert [schedule.rate(version) for version in range(1, 5)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_scheduler_goes_on_where_the_data_is_whatever_number_of_workers_was_before() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=8)
    schedule = Schedule(optimizer, [scheduler], SchedulerCalls("step"))
    schedule.batches_per_update = 2
    schedule.go_on(version=4, num_batches=4)
    assert [schedule.rate(version) for version in range(5, 7)] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(
    ("per", "calls", "refused_at"),
    [
        ("step", ["step", "call"] * 4, None),
        ("step", ["call", "step"] * 4, None),
        ("step", ["step", "call", "call", "step", "call"], None),
        ("step", ["step", "step", "call"], 2),
        ("batch", ["step", "call", "next", "step", "step", "call"], 5),
        ("epoch", ["step", "step", "call", "next", "step", "call", "next", "call"], None),
        ("epoch", ["step", "call", "step", "call"], 3),
        ("update", ["step", "step", "call", "step", "call"], None),
    ],
)
def test_a_program_that_steps_its_scheduler_at_other_times_is_told(
    per: str, calls: list[str], refused_at: int | None
) -> None:
    """Each of two schedulers is compared for itself."""
    noted, epoch = SchedulerCalls(per), 0
    for number, call in enumerate(calls):
        if call == "step":
            noted.after_step(epoch)
        elif call == "next":
            epoch += 1
        elif number == refused_at:
            with pytest.raises(UserError, match=f"schedule_per={per}"):
                noted.note(1)
            return
        else:
            noted.note(0)
            noted.note(1)
    assert refused_at is None


@pytest.mark.parametrize(("name", "value"), [("lr", 0.5), ("weight_decay", 0.1), ("nesterov", True)])
def test_settings_that_a_program_changes_by_itself_are_refused(name: str, value: Any) -> None:
    """What a scheduler of the job changes is not."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    schedule = Schedule(optimizer, [scheduler], SchedulerCalls("step"))
    optimizer.param_groups[0]["lr"] = 0.8  # before training all ranks may
    schedule.begin()
    assert schedule.rate(3) != 0.8
    schedule.require_untouched()
    optimizer.param_groups[0][name] = value
    with pytest.raises(UserError, match=f"has set {name} of the optimizer's group 0 to {value}"):
        schedule.require_untouched()


def test_buffers_are_averaged_by_pushes() -> None:
    means = BufferMeans()
    means.take(0, 1, {"mean": np.array([1.0, 3.0], np.float32), "count": np.array(5)})
    means.take(1, 2, {"mean": np.array([9.0, 9.0], np.float32), "count": np.array(6)})
    means.take(1, 3, {"mean": np.array([5.0, 7.0], np.float32), "count": np.array(7)})
    means.take(2, 0, {"mean": np.array([99.0, 99.0], np.float32), "count": np.array(99)})
    told = means.mean()
    np.testing.assert_allclose(told["mean"], [4.0, 6.0])
    assert told["count"] == 7 and told["mean"].dtype == np.float32


def test_buffers_come_back_from_a_checkpoint() -> None:
    layer, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    layer(torch.randn(8, 3) + 4)
    arrays = {name: values.numpy() for name, values in layer.named_buffers()}
    load_into(other, to_json(arrays), "checkpoint")
    for mine, its in zip(layer.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, its) and mine.dtype == its.dtype
    with pytest.raises(UserError, match="checkpoint holds a buffer running_mean"):
        load_into(nn.BatchNorm1d(4), to_json(arrays), "checkpoint")


def test_a_snapshot_comes_back(tmp_path: Path) -> None:
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model(torch.randn(8, 3) + 4)
    for number in (2, 10):
        arrays = {name: np.asarray(values.detach()) for name, values in model.state_dict().items()}
        arrays["weight"] = np.full(3, number, np.float32)
        assert not write_snapshot(tmp_path / "snapshots" / f"u{number:08d}", arrays, {}).error
    assert load_snapshot(other, tmp_path).name == "u00000010"
    assert other.weight.tolist() == [10, 10, 10] and torch.equal(other.running_mean, model.running_mean)  # type: ignore[arg-type]
    load_snapshot(other, tmp_path / "snapshots" / "u00000002")
    assert other.weight.tolist() == [2, 2, 2]


def test_batches_of_any_form_move() -> None:
    meta = torch.device("meta")
    moved = moved_to(meta, {"a": [torch.ones(2), "word"], "b": (torch.ones(1), 3)})
    assert moved["a"][0].device == moved["b"][0].device == meta
    assert moved["a"][1] == "word" and moved["b"][1] == 3
