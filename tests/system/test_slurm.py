"""The batch scripts, as they are, on a real SLURM: each runs a small job to its end."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from slurm_cluster import SlurmCluster, SlurmError
from submitter import CONFIG, NUM_UPDATES, ROOT, Job, Submitter, completed, events_of, make_directory, summary_of

from hpcasync.exit_codes import PREEMPTED

# Of a requeued job: more than it makes while it is ended.
_MORE_UPDATES = 100


@pytest.fixture(scope="module")
def submitter(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """A user's directory with a configuration and text."""
    directory = tmp_path_factory.mktemp("slurm")
    make_directory(directory)
    return Submitter(slurm, directory)


@pytest.fixture(scope="module")
def prepared(submitter: Submitter) -> Job:
    """The end of prepare.sbatch, and its corpus."""
    text = ("train.en", "train.de", "--valid", "valid.en", "valid.de", "--vocab-size", "28")
    return completed(submitter.run("prepare.sbatch", *text, "--out", "data/tiny", options=("--cpus-per-task=2",)))[0]


@pytest.fixture(scope="module")
def trained(submitter: Submitter, prepared: Job) -> Job:
    """The end of train-async.sbatch, and its run."""
    return completed(submitter.run("train-async.sbatch", "tiny.yaml", options=("--ntasks-per-node=3",)))[0]


def test_prepare_makes_a_corpus(submitter: Submitter, prepared: Job) -> None:
    assert (submitter.directory / "data" / "tiny" / "manifest.json").is_file()
    assert "Prepared data/tiny" in prepared.output


def test_async_training_has_a_server_beside_the_workers(submitter: Submitter, trained: Job) -> None:
    summary = summary_of(submitter.directory / "runs" / "tiny-async-global-seed1")
    assert summary["num_updates"] == NUM_UPDATES
    assert summary["gradients_pushed"] == summary["gradients_applied"] + summary["gradients_dropped"]
    assert "ranks per node 3: 1 server(s) and 2 worker(s)" in trained.output
    assert "servers on ranks 0, workers on ranks 1-2" in trained.output
    assert not list((submitter.directory / "runs").glob(".*")), "the mark of the job's first start is left"


def test_evaluate_scores_every_snapshot(submitter: Submitter, trained: Job) -> None:
    run_dir = submitter.directory / "runs" / "tiny-async-global-seed1"
    completed(submitter.run("evaluate.sbatch", "runs/tiny-async-global-seed1", "--beam", "1"))
    records = [json.loads(line) for line in (run_dir / "evaluation-valid.jsonl").read_text().splitlines()]
    assert [record["num_updates"] for record in records] == [NUM_UPDATES // 2, NUM_UPDATES]


def test_sync_training_has_a_rank_per_gpu(submitter: Submitter, prepared: Job) -> None:
    pytest.importorskip("horovod", reason="mode=sync needs Horovod")
    job = completed(submitter.run("train-sync.sbatch", "tiny.yaml", options=("--gpus-per-node=2",)))[0]
    assert summary_of(submitter.directory / "runs" / "tiny-sync-seed1")["num_updates"] == NUM_UPDATES
    assert "workers on ranks 0-1" in job.output


def test_a_requeued_job_goes_on_from_its_checkpoint(submitter: Submitter, prepared: Job) -> None:
    cluster, config = submitter.cluster, submitter.directory / "long.yaml"
    checkpoints = submitter.directory / "runs" / "long-async-global-seed1" / "checkpoints"

    def configure(num_updates: int) -> None:
        changes = {"name": "long", "stop": {"updates": num_updates}, "validation": {"every": 20, "score": False}}
        config.write_text(yaml.safe_dump({**CONFIG, **changes}))

    def complete() -> list[str]:
        return sorted(path.parent.name for path in checkpoints.glob("u*[0-9]/state.json"))

    configure(1_000_000)
    # With a flag that a second start must not obey: it would throw away what the first one did.
    job = submitter.submit("train-async.sbatch", "long.yaml", "--overwrite")
    cluster.wait_until(lambda: bool(complete()), "a checkpoint")
    newest: list[str] = []

    def prepare_second_start() -> None:
        newest.append(complete()[-1])
        configure(int(newest[0][1:]) + _MORE_UPDATES)

    cluster.requeue(job, prepare_second_start)
    ended = completed(submitter.finish(job))[0]
    assert ended.restarts == 1
    assert f"start number 2 of job {job}: train --resume" in ended.output
    # A rank that is told to end saves, and may do so when SLURM has let go of it.
    resumed = re.findall(r"resuming from runs/long-async-global-seed1/checkpoints/u(\d+)", ended.output)
    first = int(newest[0][1:])
    assert len(resumed) == 1 and first <= int(resumed[0]) < first + _MORE_UPDATES
    assert summary_of(checkpoints.parent)["num_updates"] == first + _MORE_UPDATES
    assert len(events_of(checkpoints.parent, "start")) == 2


def test_a_warned_job_saves_and_goes_on_after_a_requeue(submitter: Submitter, prepared: Job) -> None:
    """USR1 to the batch shell, as `#SBATCH --signal=B:USR1@120` has it before a preemption or the time limit."""
    cluster = submitter.cluster
    check_that_it_goes_on(submitter, "warned", lambda job: cluster.run("scancel", "--batch", "--signal=USR1", job))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_time_limit_saves_and_goes_on_after_a_requeue(submitter: Submitter, prepared: Job) -> None:
    """SLURM itself warns two minutes before the limit, or half a minute earlier; it looks every half minute.

    The limit is set once training goes on, two to three minutes from then. It is taken back before the second start,
    which would not be over before the next warning on a busy machine.
    """

    def set_limit(job: str, minutes: int) -> None:
        submitter.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def limit(job: str) -> None:
        hours, minutes, _ = map(int, submitter.cluster.show(job)[0]["RunTime"].split(":"))
        set_limit(job, 60 * hours + minutes + 3)

    check_that_it_goes_on(
        submitter, "limited", limit, options=("--time=60",), timeout=400, between=lambda job: set_limit(job, 60)
    )


def check_that_it_goes_on(
    submitter: Submitter,
    name: str,
    warn: Callable[[str], object],
    *,
    options: tuple[str, ...] = (),
    timeout: float = 300,
    between: Callable[[str], object] = lambda job: None,
) -> None:
    """Train until `warn` makes SLURM send the signal; the job must save, go back into the queue, and go on.

    `between` is called while it is in the queue.
    """
    cluster, config = submitter.cluster, submitter.directory / f"{name}.yaml"
    run_dir = submitter.directory / "runs" / f"{name}-async-global-seed1"

    def configure(num_updates: int) -> None:
        # No checkpoint but the one that the signal asks for.
        changes = {"name": name, "stop": {"updates": num_updates}, "validation": {"every": 1_000_000}}
        config.write_text(yaml.safe_dump({**CONFIG, **changes}))

    def complete() -> list[int]:
        return sorted(int(path.parent.name[1:]) for path in run_dir.glob("checkpoints/u*[0-9]/state.json"))

    configure(1_000_000)
    job = submitter.submit("train-async.sbatch", config.name, options=("--ntasks-per-node=3", *options))
    cluster.wait_until(lambda: (run_dir / "metrics.jsonl").exists() and bool(events_of(run_dir, "update")), "training")
    warn(job)

    def prepare_second_start() -> None:
        configure(complete()[-1] + 10)
        between(job)

    cluster.start_again(job, prepare_second_start, timeout=timeout)
    [saved] = complete()
    ended = completed(submitter.finish(job))[0]
    assert ended.restarts == 1
    assert f"stopped (preempted by SIGUSR1): {saved} updates" in ended.output
    assert f"hpcasync: job {job} goes back into the queue" in ended.output
    assert f"start number 2 of job {job}: train --resume" in ended.output
    assert f"resuming from runs/{name}-async-global-seed1/checkpoints/u{saved:08d}" in ended.output
    assert summary_of(run_dir)["num_updates"] == saved + 10


def test_a_job_that_never_gets_forward_is_not_queued_for_ever(submitter: Submitter, prepared: Job) -> None:
    """No start makes an update before it is warned: the first saves where it begins, the others the same."""
    cluster = submitter.cluster
    words = ("tiny.yaml", "name=stuck", "stop.updates=1000000", "accumulate.global=1000000")
    job = submitter.submit("train-async.sbatch", *words)
    log = submitter.directory / f"train-async-{job}.out"
    for number in range(1, 4):
        has_started = lambda number=number: log.exists() and log.read_text().count("effective batch") >= number  # noqa: E731
        cluster.wait_until(has_started, f"start {number}")
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.wait_until(lambda: cluster.show(job)[0]["JobState"] != "RUNNING", "its end")
        if cluster.show(job)[0]["JobState"] == "FAILED":
            break
        cluster.start_again(job, lambda: None)
    [ended] = submitter.finish(job)
    assert (ended.state, ended.exit_code, ended.restarts) == ("FAILED", f"{PREEMPTED}:0", 2), ended.output
    assert f"two starts of job {job} have brought no new checkpoint: it is not queued again" in ended.output
    assert not list((submitter.directory / "runs").glob(".stuck*")), "its mark is left"


def test_a_mistake_ends_the_job_with_its_message(submitter: Submitter) -> None:
    job = submitter.run("train-async.sbatch", "tiny.yaml", "mode=sync")[0]
    assert (job.state, job.exit_code) == ("FAILED", "2:0")
    assert "mode=sync is not for this script: use slurm/train-sync.sbatch" in job.output


def test_singletons_of_srun_are_refused(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Open MPI under srun without PMIx: each task is alone in its MPI_COMM_WORLD."""
    program = tmp_path / "program.py"
    program.write_text(
        "from mpi4py import MPI\n"
        "from hpcasync.slurm.environment import check_world_size\n"
        "check_world_size(MPI.COMM_WORLD.size)\n"
    )
    srun = ("srun", "--mpi=none", "--nodes=1", "--quiet")
    with pytest.raises(SlurmError, match=r"srun started 2 processes .*but MPI_COMM_WORLD has 1"):
        slurm.run(*srun, "--ntasks=2", sys.executable, program, cwd=ROOT)
    slurm.run(*srun, "--ntasks=1", sys.executable, program, cwd=ROOT)


def test_a_persons_shell_is_no_task(slurm: SlurmCluster) -> None:
    """`srun --ntasks=4 --pty`: one shell, whose variables speak of four tasks."""
    hello = ("launch", "-n", "2", "--", sys.executable, "-c", "from mpi4py import MPI; print(MPI.COMM_WORLD.size)")
    srun = ("srun", "--ntasks=4", "--nodes=1", "--mpi=none")
    at_a_terminal = shlex.join([*srun, "--pty", sys.executable, "-m", "hpcasync", *hello])
    said = slurm.run("script", "--quiet", "--return", "--command", at_a_terminal, "/dev/null", cwd=ROOT)
    assert said.splitlines()[-2:] == ["2", "2"], said
    with pytest.raises(
        SlurmError, match=r"srun has started 4 tasks, of which this is number \d \(SLURM_STEP_NUM_TASKS=4\)"
    ):
        slurm.run(*srun, sys.executable, "-m", "hpcasync", *hello, cwd=ROOT)


def test_commands_of_salloc(slurm: SlurmCluster) -> None:
    """`salloc -n4 COMMAND` runs it where salloc is, with the variables of an allocation and of no step."""
    program = f"{sys.executable} -c 'from mpi4py import MPI; print(MPI.COMM_WORLD.size)'"
    hpcasync = f"{sys.executable} -m hpcasync"
    commands = f"{hpcasync} launch -n 4 -- {program}; srun -n 1 {hpcasync} launch -n 2 --oversubscribe -- {program}"
    said = slurm.run("salloc", "--quiet", "--ntasks=4", "--nodes=1", "bash", "-c", commands, cwd=ROOT)
    assert said.split() == ["4"] * 4 + ["2"] * 2
