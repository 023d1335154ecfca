"""What makes the method credible: where asynchronous training should be ordinary training, it is.

A real Transformer with dropout (seeded by the batch), clipping and averaged parameters; compared are the loss of each
update, which is computed before it, and the averaged parameters at the end.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import Run, TinyCorpus, Trainer

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.config.schema import Config
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.build import build_model
from hpcasync.ps.server.muon import Muon
from hpcasync.train.loop.optimizers import optimizer_factory

NUM_UPDATES = 12
STOP = f"stop={{updates: {NUM_UPDATES}}}"
SNAPSHOT = f"u{NUM_UPDATES:08d}"
# fp32, with sums in another order.
RELATIVE, ABSOLUTE = 1e-4, 2e-5
# Where sums are rounded otherwise Muon brings small singular values to one, too, and with them what rounding has left
# there: by norm, of matrices and of vectors.
OF_NORM = {2: 1e-3, 1: 1e-2}


@pytest.fixture(scope="module")
def one_worker(trainer: Trainer) -> Run:
    """One worker, one server, one push per update, waiting until it is applied."""
    return trainer(2, "mode=async", "exchange.pull=applied", "name=one", STOP)


def local_training(config: Config, corpus: TinyCorpus, delay: int = 0) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Plain training in this process: losses of the updates, averaged parameters at the end.

    With a `delay` gradients are computed from parameters so many updates old, in a second copy of the model.
    """
    prepared, plan = PreparedCorpus.open(corpus.path), corpus.plan(config)
    source, target = prepared.source_vocabulary, prepared.target_vocabulary
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
    older, history = copy.deepcopy(model), [copy.deepcopy(model.state_dict())]
    settings = config.optimizer
    optimizers = optimizers_of(model, settings)
    averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = []
    for number in range(1, NUM_UPDATES + 1):
        batch = plan.batch(number - 1)
        torch.manual_seed(config.seed * 1_000_003 + number - 1)
        older.load_state_dict(history[max(0, number - 1 - delay)])
        older.zero_grad()
        loss, negative_log_likelihood = older.summed_loss(
            batch.source, batch.target_input, batch.target_output, settings.label_smoothing
        )
        torch.autograd.backward(loss / batch.num_target_tokens)
        torch.nn.utils.clip_grad_norm_(older.parameters(), settings.clip_norm)
        warmup = config.schedule.warmup
        rate = settings.learning_rate * min(number / warmup, (warmup / number) ** 0.5)
        for (block, optimizer), computed in zip(optimizers, older.parameters(), strict=True):
            assert computed.grad is not None
            block.grad = computed.grad.flatten()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        history.append(copy.deepcopy(model.state_dict()))
        decay = min(settings.ema_decay, (1 + number) / (10 + number))
        for name, parameter in model.named_parameters():
            averages[name] = decay * averages[name] + (1 - decay) * parameter.detach()
        losses.append(float(negative_log_likelihood) / batch.num_target_tokens)
    return losses, averages


def optimizers_of(
    model: torch.nn.Module, settings: OptimizerConfig
) -> list[tuple[torch.nn.Parameter, torch.optim.Optimizer]]:
    """Each parameter as a vector, with an optimizer of its own: Muon for the weights of linear layers, or as said."""
    matrices = [id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)]
    found: list[tuple[torch.nn.Parameter, torch.optim.Optimizer]] = []
    for parameter in model.parameters():
        block = torch.nn.Parameter(parameter.data.view(-1))
        if settings.name == "muon" and id(parameter) in matrices:
            rows, columns = parameter.shape
            found.append((block, Muon([block], (rows, columns), lr=0.0, nesterov=settings.nesterov)))
        else:
            found.append((block, optimizer_factory(settings)([block])))
    return found


def assert_same(run: Run, losses: list[float], parameters: dict[str, Any], *, is_magnified: bool = False) -> None:
    np.testing.assert_allclose(run.losses, losses, RELATIVE)
    actual = run.parameters(SNAPSHOT)
    assert set(actual) == set(parameters)
    for name, array in parameters.items():
        expected = np.asarray(array)
        if is_magnified:
            difference = np.linalg.norm(actual[name] - expected)
            assert difference < OF_NORM[expected.ndim] * np.linalg.norm(expected), name
        else:
            np.testing.assert_allclose(actual[name], expected, RELATIVE, ABSOLUTE, err_msg=name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_one_worker_is_local_training(
    one_worker: Run, trainer: Trainer, tiny_corpus: TinyCorpus, optimizer: str
) -> None:
    run = one_worker
    if optimizer != run.config.optimizer.name:
        named = f"name={optimizer}", f"optimizer.name={optimizer}"
        run = trainer(2, "mode=async", "exchange.pull=applied", *named, STOP)
    losses, parameters = local_training(run.config, tiny_corpus)
    assert run.summary["staleness"]["max"] == 0
    assert len(losses) == NUM_UPDATES and losses[-1] < losses[0]
    assert_same(run, losses, parameters, is_magnified=optimizer == "muon")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("window", ["mpi", "mapped"])
def test_overlap_of_pull_and_push_is_training_one_update_late(
    trainer: Trainer, tiny_corpus: TinyCorpus, window: str
) -> None:
    overlap = "exchange.overlap=full", "exchange.slots=1", "staleness.lookahead=0", f"exchange.window={window}"
    adam = "optimizer.name=adam"
    late = trainer(3, "mode=async", *overlap, "roles.servers=2", adam, f"name=late-{window}", STOP)
    assert late.summary["staleness"]["histogram"] == {"0": 1, "1": NUM_UPDATES - 1}
    losses, parameters = local_training(late.config, tiny_corpus, delay=1)
    assert_same(late, losses, parameters)


def test_a_fresh_start_is_fresh_though_transfers_run_beside_the_computation(trainer: Trainer) -> None:
    start = "staleness.fresh_start=1", "schedule.warmup=3", "stop.updates=12"
    run = trainer(3, "mode=async-global", "roles.servers=1", "exchange.overlap=full", *start, "name=fresh")
    histogram = run.summary["staleness"]["histogram"]
    assert histogram["0"] >= 6 and sum(histogram.values()) == 24 and run.summary["staleness"]["max"] >= 1


def test_pushing_during_backward_does_not_change_the_result(one_worker: Run, trainer: Trainer) -> None:
    overlap = trainer(
        3, "mode=async", "exchange.pull=applied", "exchange.overlap=push", "roles.servers=2", "name=push", STOP
    )
    assert_same(overlap, one_worker.losses, one_worker.parameters(SNAPSHOT))


@pytest.mark.parametrize("mode", ["mode=sync", "mode=async"])
def test_batches_made_ahead_do_not_change_a_bit(trainer: Trainer, mode: str) -> None:
    """One worker, or two in sync; drawn ahead or not, batches come in the same order."""
    common = mode, "exchange.pull=applied", "roles.servers=1", STOP
    runs = [trainer(2, *common, f"data.prefetch={ahead}", f"name=ahead-{ahead}") for ahead in ("false", "true")]
    assert runs[0].losses == runs[1].losses
    assert runs[0].summary["num_batches"] == runs[1].summary["num_batches"]


def test_servers_do_not_change_the_result(one_worker: Run, trainer: Trainer) -> None:
    two = trainer(3, "mode=async", "exchange.pull=applied", "roles.servers=2", "name=two-servers", STOP)
    assert_same(two, one_worker.losses, one_worker.parameters(SNAPSHOT))


@pytest.mark.parametrize(
    ("num_workers", "backend", "optimizer"),
    [(2, "torch", "adam"), (3, "horovod", "adam"), (2, "torch", "muon"), (3, "horovod", "muon")],
)
def test_workers_that_wait_are_allreduce(trainer: Trainer, num_workers: int, backend: str, optimizer: str) -> None:
    """W workers, accumulate.global W, pull applied: allreduce over W."""
    more = f"optimizer.name={optimizer}", f"name=w{num_workers}{optimizer}", STOP
    together = trainer(num_workers, "mode=sync", f"sync.backend={backend}", *more)
    assert f"gradients are summed by {'Horovod (MPI)' if backend == 'horovod' else 'torch.distributed (gloo)'}, " in (
        together.job.stdout
    )
    servers = num_workers - 1
    roles = f"roles.servers={servers}", f"accumulate.global={num_workers}"
    waiting = trainer(servers + num_workers, "mode=async-global", *roles, "exchange.pull=applied", *more)
    assert together.summary["target_tokens"] == waiting.summary["target_tokens"]
    assert together.summary["staleness"] == waiting.summary["staleness"]
    is_magnified = optimizer == "muon" and num_workers > 2
    assert_same(waiting, together.losses, together.parameters(SNAPSHOT), is_magnified=is_magnified)


@pytest.mark.parametrize(
    "settings", [(), ("exchange.gradients=bf16", "exchange.parameters=bf16")], ids=["fp32", "bf16"]
)
def test_windows_do_not_change_a_bit(trainer: Trainer, settings: tuple[str, ...]) -> None:
    """Mapped memory and MPI's windows; of two gradients it is the same which comes first."""
    waiting = "mode=async-global", "roles.servers=2", "accumulate.global=2", "exchange.pull=applied", STOP, *settings
    runs = [
        trainer(4, *waiting, f"exchange.window={window}", f"name={window}{len(settings)}")
        for window in ("mpi", "mapped")
    ]
    assert "cpu memory that they map" in runs[1].job.stdout and "map" not in runs[0].job.stdout
    assert runs[0].losses == runs[1].losses
    expected, found = (run.parameters(SNAPSHOT) for run in runs)
    assert all((found[name] == values).all() for name, values in expected.items())


def test_with_muon_servers_do_not_change_a_bit(trainer: Trainer) -> None:
    """Each makes the iterations of its own matrices."""
    waiting = "mode=async-global", "accumulate.global=2", "exchange.pull=applied", "optimizer.name=muon"
    more = *waiting, "optimizer.clip_norm=0", "optimizer.weight_decay=0.01", STOP
    runs = [
        trainer(servers + 2, *more, f"roles.servers={servers}", f"exchange.window={window}", f"name=muon-{servers}")
        for servers, window in ((1, "mpi"), (2, "mapped"), (3, "mpi"))
    ]
    assert all("optimizer: muon for " in run.job.stdout for run in runs)
    first, *others = (run.parameters(SNAPSHOT) for run in runs)
    for run, found in zip(runs[1:], others, strict=True):
        assert run.losses == runs[0].losses
        assert all((found[name] == values).all() for name, values in first.items())


def test_local_accumulation_is_a_larger_batch(trainer: Trainer, one_worker: Run) -> None:
    """Two batches summed in the worker are two pushes summed at the server."""
    local = trainer(2, "mode=async-local", "accumulate.local=2", "exchange.pull=applied", "name=local", STOP)
    together = trainer(1, "mode=sync", "accumulate.local=2", "name=alone", STOP)
    assert local.summary["target_tokens"] == together.summary["target_tokens"] > one_worker.summary["target_tokens"]
    assert_same(local, together.losses, together.parameters(SNAPSHOT))
