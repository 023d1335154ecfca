"""The simulator against real jobs: where random timing plays no part, both must do the same."""

from pathlib import Path

import numpy as np
import pytest
from runners import CliRunner, MpiRunner
from tiny_training import Run, TinyCorpus, Trainer

from hpcasync.config import load_config
from hpcasync.launch.process import FinishedJob

NUM_UPDATES = 12
STOP = f"stop={{updates: {NUM_UPDATES}}}"
SNAPSHOT = f"u{NUM_UPDATES:08d}"
# Horovod sums in another order.
RELATIVE, ABSOLUTE = 1e-4, 2e-5
THREADS = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trainer(mpirun: MpiRunner, tmp_path_factory: pytest.TempPathFactory, tiny_corpus: TinyCorpus) -> Trainer:
    return Trainer(mpirun, tmp_path_factory.mktemp("simulated"), tiny_corpus)


def simulate(run_cli: CliRunner, trainer: Trainer, workers: int, *overrides: str) -> Run:
    """The same configuration in virtual time, beside the real run."""
    overrides = (*overrides, f"run_dir={trainer.path.parent / 'virtual'}", "roles.worker_threads=1")
    done = run_cli("simulate", trainer.path, "--workers", str(workers), *overrides, env=THREADS, timeout=240)
    assert done.returncode == 0, done.stderr
    return Run(load_config(trainer.path, overrides), FinishedJob(0, done.stdout, done.stderr, False, ()))


def assert_identical(simulated: Run, real: Run) -> None:
    assert simulated.losses == real.losses
    expected = real.parameters(SNAPSHOT)
    for name, array in simulated.parameters(SNAPSHOT).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for key in ("target_tokens", "num_batches", "staleness", "gradients_applied"):
        assert simulated.summary[key] == real.summary[key], key


@pytest.mark.parametrize("servers", [1, 2])
def test_one_worker_is_the_real_job_bit_for_bit(trainer: Trainer, run_cli: CliRunner, servers: int) -> None:
    options = "mode=async", f"roles.servers={servers}", f"name=one-{servers}", "roles.worker_threads=1", STOP
    assert_identical(simulate(run_cli, trainer, 1, *options), trainer(1 + servers, *options))


def test_synchronous_training_is_horovods(trainer: Trainer, run_cli: CliRunner) -> None:
    options = "mode=sync", "name=together", "roles.worker_threads=1", STOP
    real, simulated = trainer(2, *options), simulate(run_cli, trainer, 2, *options)
    np.testing.assert_allclose(simulated.losses, real.losses, RELATIVE)
    expected = real.parameters(SNAPSHOT)
    for name, array in simulated.parameters(SNAPSHOT).items():
        np.testing.assert_allclose(array, expected[name], RELATIVE, ABSOLUTE, err_msg=name)
    assert simulated.summary["target_tokens"] == real.summary["target_tokens"]


def test_a_simulated_checkpoint_resumes_as_a_real_run(trainer: Trainer, run_cli: CliRunner) -> None:
    """The files are the real ones: a run begun in virtual time goes on under mpirun as one that was real throughout."""
    options = "mode=async", "name=resumed", "roles.worker_threads=1"
    whole = trainer(2, *options, "stop={updates: 12}", "name=whole")
    begun = simulate(run_cli, trainer, 1, *options, "stop={updates: 5}")
    directory = f"run_dir={Path(begun.path).parent}"
    resumed = trainer(2, *options, "stop={updates: 12}", directory, flags=["--resume"])
    assert resumed.losses[-7:] == whole.losses[-7:]
    expected = whole.parameters(SNAPSHOT)
    for name, array in resumed.parameters(SNAPSHOT).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_times_are_fitted_to_a_real_run(trainer: Trainer, run_cli: CliRunner, tmp_path: Path) -> None:
    """Not how exact they are, which depends on the machine, but that a forecast of the order of the run comes out."""
    real = trainer(3, "mode=async-global", "accumulate.global=2", "name=timed", "stop={updates: 60}",
                   "logging.timeline=true")  # fmt: skip
    saved = tmp_path / "cluster.yaml"
    arguments = "--fit", real.path, "--save-cluster", saved, "--no-gradients", "accumulate.global=2"
    done = run_cli("simulate", trainer.path, *arguments, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "mode async-global: 2 workers, 1 server," in done.stdout
    again = run_cli("simulate", trainer.path, "--cluster", saved, "--no-gradients", "accumulate.global=2", timeout=240)
    assert again.stdout == done.stdout
    rate = float(done.stdout.split("throughput")[1].split()[0].replace(",", ""))
    measured = real.summary["target_tokens_per_second"]
    assert measured / 20 < rate < measured * 20
