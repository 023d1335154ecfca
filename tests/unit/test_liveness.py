"""Telling a process that lives from one that has died."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from hpcasync.deaths.host_watch import Process, mpi_survives_deaths


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def as_rank(child: "subprocess.Popen[bytes]") -> Process:
    return Process(child.pid, psutil.Process(child.pid).create_time(), Process.own().namespace)


def test_a_stopped_process_lives(child: "subprocess.Popen[bytes]") -> None:
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert as_rank(child).is_alive() and Process.own().is_alive()


def test_a_killed_process_does_not_also_where_nobody_has_waited_for_it(child: "subprocess.Popen[bytes]") -> None:
    rank = as_rank(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not rank.is_alive(), "it is a zombie"
    child.wait()
    assert not rank.is_alive()


def test_another_process_of_the_same_number_does_not_count(child: "subprocess.Popen[bytes]") -> None:
    assert not replace(as_rank(child), started=1.0).is_alive()


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), (None, False)])
def test_what_mpi_allows(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool) -> None:
    monkeypatch.delenv("OMPI_MCA_mpi_ft_enable", raising=False)
    if value is not None:
        monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", value)
    assert mpi_survives_deaths() is expected
