"""Ranks that tests fork are, to mpirun and to themselves, what it would have started."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from forked_ranks import ForkedRanks

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), os.environ["GIVEN"], sorted(os.sched_getaffinity(0)), sys.stdin.read()]))
print(sys.executable)
print("torch" in sys.modules, [name for name in sys.modules if name.startswith(("mpi4py", "hpcasync.comm"))])
print("wrong", file=sys.stderr)
sys.exit(7)
"""
WAIT = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("told", flush=True))
print(os.getpid(), flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRanks]:
    forked = ForkedRanks(tmp_path_factory.mktemp("ranks"), {**os.environ, "GIVEN": "before"})
    yield forked
    forked.close()


def test_what_a_rank_is_given_and_gives(forked: ForkedRanks, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SHOW)
    environment = {**os.environ, "GIVEN": "by mpirun"}
    done = subprocess.run(
        [forked.python, "program.py", "a b"],
        capture_output=True,
        text=True,
        input="line\n",
        cwd=tmp_path,
        env=environment,
    )
    shown, python, loaded = done.stdout.splitlines()
    assert python == forked.python, "what it starts are forks, too"
    assert json.loads(shown) == [
        ["program.py", "a b"],
        str(tmp_path),
        "by mpirun",
        sorted(os.sched_getaffinity(0)),
        "line\n",
    ]
    assert loaded == "True []"
    assert (done.returncode, done.stderr) == (7, "wrong\n")


def test_an_exception_and_a_death_are_its_own(forked: ForkedRanks) -> None:
    done = subprocess.run([forked.python, "-c", "1 / 0"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")
    done = subprocess.run([forked.python, "-c", "import os; os.kill(os.getpid(), 11)"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_rank(forked: ForkedRanks, number: signal.Signals) -> None:
    with subprocess.Popen([forked.python, "-c", WAIT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        rank = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "told\n"
        assert forked.rank(psutil.Process(process.pid)) == rank
        process.send_signal(number)
        assert process.wait(60) == -number
        rank.wait(60)


def test_who_is_killed_while_it_asks_disturbs_nobody(forked: ForkedRanks) -> None:
    for said in (b"", b"\n", b"\n{"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{forked.python}.{os.uname().nodename[:16]}")
            connection.sendall(said)
    done = subprocess.run([forked.python, "-c", "print('well')"], capture_output=True, text=True)
    assert done.stdout == "well\n"


def test_what_is_read_before_a_fork_is_no_forks(forked: ForkedRanks) -> None:
    assert forked.can_be(["HPCASYNC_TERMINAL", "HOME"])
    assert not any(forked.can_be([name]) for name in ("OMP_NUM_THREADS", "PYTHONPATH", "LD_LIBRARY_PATH"))
