"""Fixtures that several unit tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from corpus_text import sentence_pairs, write
from simulator import Simulator
from tiny_run import TinyRun, make_tiny_run

from hpcasync.train.records.console import TERMINAL_VARIABLE

# Of kernels for GPUs, read when they are defined: Triton's interpreter computes them here.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A trained model with its run directory and corpus; read it, or work on a copy."""
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """Text of two languages to prepare."""
    return write(tmp_path / "text", sentence_pairs())


@pytest.fixture
def plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as they are where output is no terminal."""
    monkeypatch.setenv(TERMINAL_VARIABLE, "0")


@pytest.fixture
def simulate(tmp_path: Path, tiny_run: TinyRun) -> Iterator[Simulator]:
    """Trains on the tiny corpus in virtual time."""
    threads = torch.get_num_threads()
    yield Simulator(tmp_path, tiny_run.corpus)
    torch.set_num_threads(threads)
