"""Fixtures of the parallel tests: a small corpus, prepared once, and emulated hosts."""

from collections.abc import Iterator
from functools import partial

import pytest
from forked_ranks import ForkedRanks
from runners import MpiRunner
from running_job import RunningJob, StartJob
from tiny_training import TinyCorpus, Trainer, make_tiny_corpus
from warm_job import WarmJob

from hpcasync.bench.network_hosts import NetworkHosts
from hpcasync.bench.network_hosts import reason_to_skip as reason_without_hosts


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    """240 pairs of a language of forty words and its mirror image."""
    return make_tiny_corpus(tmp_path_factory.mktemp("tiny-corpus"))


@pytest.fixture(scope="session")
def warm(mpirun: MpiRunner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmJob]:
    """Ranks that stay for all trainings that need no job of their own."""
    job = WarmJob(mpirun.launcher, tmp_path_factory.mktemp("warm"))
    yield job
    job.close()


@pytest.fixture(scope="module")
def trainer(
    mpirun: MpiRunner, warm: WarmJob, tmp_path_factory: pytest.TempPathFactory, tiny_corpus: TinyCorpus
) -> Trainer:
    """Trains tiny models; all runs of a module are in one directory."""
    return Trainer(mpirun, tmp_path_factory.mktemp("trainer"), tiny_corpus, warm)


@pytest.fixture(scope="session")
def start_job(forked: ForkedRanks | None) -> StartJob:
    """Start a job that runs beside the test."""
    return partial(RunningJob, forked=forked)


@pytest.fixture(scope="module")
def hosts() -> Iterator[NetworkHosts]:
    """Three hosts."""
    if reason := reason_without_hosts():
        pytest.skip(reason)
    with NetworkHosts(3) as hosts:
        yield hosts
