"""The simulator against real jobs: where random timing plays no part, both must do the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_training import Run, Trainer

from hpcasync.cli.main import cli
from hpcasync.config.schema import load_config
from hpcasync.launch.process import FinishedJob
from hpcasync.train.supervise import stop_signals

NUM_UPDATES = 12
STOP = f"stop={{updates: {NUM_UPDATES}}}"
SNAPSHOT = f"u{NUM_UPDATES:08d}"
ONE_WORKER = "mode=async", "roles.worker_threads=1"
# Horovod sums in another order.
RELATIVE, ABSOLUTE = 1e-4, 2e-5


@pytest.fixture(scope="module")
def real_worker(trainer: Trainer) -> Run:
    """A real job of one worker and one server."""
    return trainer(2, *ONE_WORKER, "name=one", STOP)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The simulator works in this process and sets its threads."""
    before = torch.get_num_threads()
    yield
    stop_signals.forget()
    torch.set_num_threads(before)


def simulate_command(*arguments: str | Path) -> str:
    """Run `hpcasync simulate` in this process; returns what it prints."""
    done = CliRunner().invoke(cli, ["simulate", *map(str, arguments)], standalone_mode=False)
    assert done.exception is None and not done.return_value, (done.output, done.exception)
    return done.stdout


def simulate(trainer: Trainer, workers: int, *overrides: str) -> Run:
    """The same configuration in virtual time, beside the real run."""
    overrides = (*overrides, f"run_dir={trainer.path.parent / 'virtual'}")
    said = simulate_command(trainer.path, "--workers", str(workers), *overrides)
    return Run(load_config(trainer.path, overrides), FinishedJob(0, said, "", False, (), 0.0))


def assert_identical(simulated: Run, real: Run, num_updates: int = NUM_UPDATES) -> None:
    assert simulated.losses[-num_updates:] == real.losses[-num_updates:]
    expected = real.parameters(SNAPSHOT)
    for name, array in simulated.parameters(SNAPSHOT).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for key in ("target_tokens", "num_batches", "staleness", "gradients_applied"):
        assert simulated.summary[key] == real.summary[key], key


def test_one_worker_is_the_real_job_bit_for_bit(trainer: Trainer, real_worker: Run) -> None:
    assert_identical(simulate(trainer, 1, *ONE_WORKER, "name=one", STOP), real_worker)


def test_one_worker_with_transfers_beside_its_computation_is_the_real_job(trainer: Trainer) -> None:
    """Its thread and its computation take turns with two versions: every gradient but the first is one update stale."""
    options = *ONE_WORKER, "name=overlapped", "exchange.overlap=full", STOP
    real, simulated = trainer(2, *options), simulate(trainer, 1, *options)
    assert real.summary["staleness"]["histogram"] == {"0": 1, "1": NUM_UPDATES - 1}
    assert_identical(simulated, real)


def test_synchronous_training_is_horovods(trainer: Trainer) -> None:
    options = "mode=sync", "name=together", "roles.worker_threads=1", STOP
    real, simulated = trainer(2, *options), simulate(trainer, 2, *options)
    np.testing.assert_allclose(simulated.losses, real.losses, RELATIVE)
    expected = real.parameters(SNAPSHOT)
    for name, array in simulated.parameters(SNAPSHOT).items():
        np.testing.assert_allclose(array, expected[name], RELATIVE, ABSOLUTE, err_msg=name)
    assert simulated.summary["target_tokens"] == real.summary["target_tokens"]


def test_a_simulated_checkpoint_resumes_as_a_real_run(trainer: Trainer, real_worker: Run) -> None:
    """The files are the real ones: a run begun in virtual time goes on under mpirun as one that was real throughout."""
    begun = simulate(trainer, 1, *ONE_WORKER, "name=resumed", "stop={updates: 5}")
    directory = f"run_dir={begun.path.parent}"
    resumed = trainer(2, *ONE_WORKER, "name=resumed", STOP, directory, flags=["--resume"])
    assert_identical(resumed, real_worker, num_updates=NUM_UPDATES - 5)


def test_times_are_fitted_to_a_real_run(trainer: Trainer, tmp_path: Path) -> None:
    """Not how exact they are, which depends on the machine, but that a forecast of the order of the run comes out."""
    update_of_two = "accumulate.global=2"
    real = trainer(3, update_of_two, "name=timed", "stop={updates: 60}", "logging.timeline=true")
    saved = tmp_path / "cluster.yaml"
    arguments = trainer.path, "--no-gradients", update_of_two
    said = simulate_command(*arguments, "--fit", real.path, "--save-cluster", saved)
    assert "mode async-global: 2 workers, 1 server," in said
    assert simulate_command(*arguments, "--cluster", saved) == said
    rate = float(said.split("throughput")[1].split()[0].replace(",", ""))
    measured = real.summary["target_tokens_per_second"]
    assert measured / 20 < rate < measured * 20
