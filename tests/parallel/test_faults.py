"""What goes wrong while a job runs: processes that die or hang, and what people are told."""

import re
import shlex
import signal
from pathlib import Path

import pytest
from running_job import StartJob
from test_signals import check_consistent, write_config
from tiny_training import TinyCorpus

from hpcasync.exit_codes import DIVERGED, PREEMPTED


def test_a_killed_rank_ends_the_job_which_is_started_again(
    tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob
) -> None:
    """First a worker, then the coordinator, which is once more than it may be."""
    overrides = ("checkpoint.every=2", "stop={updates: 1000000}")
    config, options = write_config(tmp_path, tiny_corpus), ("--max-restarts", "1")
    with start_job(3, config, *overrides, options=options, log=tmp_path / "log") as job:
        job.wait_until(lambda: job.newest, "a checkpoint")
        before = job.newest
        job.rank(2).kill()
        resuming = re.compile(rf"resuming from {re.escape(str(job.run_dir))}/checkpoints/(u\d+)\n")
        job.wait_until(lambda: resuming.search(job.output), "the second start")
        [resumed_from] = resuming.findall(job.output)
        assert resumed_from >= before
        job.wait_until(lambda: job.newest > resumed_from, "a newer checkpoint")
        job.rank(0).kill()
        assert job.wait() == 137, job.output
    check_consistent(job)
    for rank in (2, 0):  # mpirun's own words
        assert re.search(rf"process rank {rank} with PID \d+ on node \S+ exited on\s+signal 9", job.output), job.output
    restart = (
        f"hpcasync: the job ended with code 137; restart 1 of 1: train {shlex.join([str(config), *overrides])} --resume"
    )
    assert restart in job.output and len(job.records("start")) == 2
    reason = "hpcasync: the job ended with code 137, after 1 restart(s); `--resume` goes on from "
    assert f"{reason}{job.run_dir}/checkpoints/{job.newest}" in job.output


def test_a_worker_that_hangs_is_named_and_the_others_go_on(
    tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob
) -> None:
    """Also when it hangs for ever, the checkpoint that a signal asks for is saved."""
    overrides = ("accumulate.global=1", "mode=async", "stop={updates: 1000000}", "logging={every: 5, stall: 1}")
    with start_job(3, write_config(tmp_path, tiny_corpus), *overrides, log=tmp_path / "log") as job:
        job.wait_until(lambda: job.num_updates >= 30, "update 30")
        hanging = job.rank(2)
        hanging.suspend()
        job.wait_until(lambda: any(record["rank"] == 2 for record in job.records("stall")), "the report")
        at_report = job.num_updates
        job.wait_until(lambda: job.num_updates > at_report + 10, "updates of the other worker")
        hanging.resume()
        job.wait_until(lambda: any(record["rank"] == 2 for record in job.records("stall-over")), "its return")
        hanging.suspend()
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait() == PREEMPTED, job.output
    check_consistent(job)
    assert "hpcasync: saved; some ranks have not ended in 15 s: the job ends without them" in job.output
    [host] = {record["host"] for record in job.records("stall")}
    assert f"worker 1 (rank 2 on {host}) has pushed nothing for " in job.output
    assert f"worker 1 (rank 2 on {host}) pushes again, after " in job.output


def test_divergence_has_an_exit_code_of_its_own(tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob) -> None:
    overrides = ("mode=async", "optimizer.learning_rate=1e30", "stop={updates: 1000000, rejected: 5}")
    log = tmp_path / "log"
    with start_job(2, write_config(tmp_path, tiny_corpus), *overrides, options=("--max-restarts", "2"), log=log) as job:
        assert job.wait() == DIVERGED, job.output
    assert "stopped (training has diverged: 5 gradients in a row were not finite (stop.rejected))" in job.output
    assert len(job.records("start")) == 1, "it is not started again"


@pytest.mark.parametrize("victim", [1, 0])
def test_the_rank_that_all_wait_for_is_named(
    tmp_path: Path, tiny_corpus: TinyCorpus, victim: int, start_job: StartJob
) -> None:
    """Its whole process is stopped, and Horovod's threads with it. Rank 1 speaks for rank 0."""
    pytest.importorskip("horovod", reason="Horovod is not installed: make setup")
    overrides = ("mode=sync", "stop={updates: 1000000}", "logging={every: 5, stall: 2}")
    with start_job(3, write_config(tmp_path, tiny_corpus), *overrides, log=tmp_path / "log") as job:
        job.wait_until(lambda: job.num_updates >= 10, "update 10")
        hanging = job.rank(victim)
        hanging.suspend()
        job.wait_until(lambda: f"rank {victim} on " in job.output, "the report")
        at_report = job.num_updates
        hanging.resume()
        job.wait_until(lambda: "takes part again, after " in job.output, "its return")
        job.wait_until(lambda: job.num_updates > at_report, "more updates")
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait() == PREEMPTED, job.output
    named = set(re.findall(r"rank (\d) on \S+ is waited for by all the others, for \d+ s now", job.output))
    assert str(victim) in named, job.output
    if victim:
        assert {record["rank"] for record in job.records("stall")} >= {victim}
