"""What `hpcasync launch` learns of its ranks, and they of it: real processes at both ends."""

import os
import queue
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hpcasync.deaths import lifeline
from hpcasync.deaths.lifeline_hub import Lifelines, Rank, describe_deaths, own_addresses
from hpcasync.exit_codes import RANK_LOST
from hpcasync.launch.supervision import _Supervision

# Far longer than anything here takes.
SECONDS = 60
# Takes hold, says that it did, then does what it is told, line by line.
PROGRAM = """
import os, sys
from hpcasync.deaths import lifeline
lifeline.hold(int(sys.argv[1]))
print("held" if lifeline.is_held() else "not held", lifeline.VARIABLE in os.environ, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Ranks:
    """Processes that hold lifelines."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.deaths: queue.Queue[list[Rank]] = queue.Queue()
        self.lifelines = Lifelines(3, is_local=True)
        self._watched = self.lifelines.watched(self.deaths.put)
        self._watched.__enter__()
        self._is_closed = False

    def close(self) -> None:
        """`launch` lets go of them."""
        if not self._is_closed:
            self._is_closed = True
            self._watched.__exit__(None, None, None)

    def start(self, rank: int, address: str = "") -> "subprocess.Popen[str]":
        """A process that holds its line."""
        command = [sys.executable, "-c", PROGRAM, str(rank)]
        environment = {**os.environ, lifeline.VARIABLE: address or str(self.lifelines.address)}
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        expected = "not held False\n" if address else "held False\n"
        assert process.stdout.readline() == expected, "children of a rank hold no line"
        return process


def tell(process: "subprocess.Popen[str]", statement: str) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{statement}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(SECONDS)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with ExitStack() as stack:
        ranks = Ranks(stack)
        stack.callback(ranks.close)
        yield ranks


def test_the_first_that_dies_is_named(ranks: Ranks) -> None:
    processes = [ranks.start(rank) for rank in range(3)]
    tell(processes[1], "lifeline.introduce('worker 0')")
    processes[1].kill()
    [dead] = ranks.deaths.get(timeout=SECONDS)
    assert (dead.rank, dead.pid, dead.host, dead.name) == (1, processes[1].pid, socket.gethostname(), "worker 0")
    processes[0].kill()
    ranks.close()
    assert ranks.deaths.empty(), "what follows from a death is none of its own"
    assert processes[2].wait(SECONDS) == RANK_LOST, "without `launch` there is no job"
    assert sorted(rank.rank for rank in ranks.lifelines.missed) == [0, 1, 2]


def test_who_says_goodbye_is_not_missed(ranks: Ranks) -> None:
    left, released, other = (ranks.start(rank) for rank in range(3))
    tell(left, "lifeline.leave(0)")
    tell(released, "lifeline.release(); assert not lifeline.is_held()")
    for process in (left, released):
        process.kill()
        process.wait(SECONDS)
    other.kill()
    assert [rank.rank for rank in ranks.deaths.get(timeout=SECONDS)] == [2]
    ranks.close()
    assert [rank.rank for rank in ranks.lifelines.missed] == [2]


def test_who_reports_an_error_has_said_it_all(ranks: Ranks) -> None:
    failing, other = ranks.start(0), ranks.start(1)
    tell(failing, "lifeline.leave(1)")
    end(failing)
    other.kill()  # as mpirun does then
    ranks.close()
    assert ranks.deaths.empty() and ranks.lifelines.has_report


def test_strangers_are_not_listened_to(ranks: Ranks) -> None:
    address = ranks.lifelines.address
    for text in (b'{"rank": 7, "token": "guess"}\n', b"GET / HTTP/1.1\n\n", b"[]\n", b'{"token": 1, "x": 2}\n'):
        with socket.create_connection((address.hosts[0], address.port), SECONDS) as stranger:
            stranger.sendall(text)
    rank = ranks.start(0)
    rank.kill()
    assert [rank.rank for rank in ranks.deaths.get(timeout=SECONDS)] == [0]


def test_a_launcher_that_cannot_be_reached_is_said(ranks: Ranks) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = ranks.start(3, f"0123:{port}:127.0.0.1")
    end(process)
    assert process.stderr is not None
    expected = f"cannot reach `hpcasync launch` at 127.0.0.1 port {port}: only MPI will notice if it dies"
    assert expected in process.stderr.read()


def test_many_ranks_need_many_files() -> None:
    """More than the limit of a login shell; those that come when no more may be opened are told of, once."""
    program = (
        "import os, resource, socket, time\n"
        "from hpcasync.deaths.lifeline_hub import Lifelines\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 400))\n"
        "lifelines = Lifelines(200, is_local=True)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 400))\n"
        "with lifelines.watched(print):\n"
        "    sockets, spare = [], [os.dup(0)]\n"  # for this end of one more line, where both ends have used up all
        "    while lifelines._listener in map(lambda key: key.fileobj, lifelines._selector.get_map().values()):\n"
        "        try:\n"
        "            sockets.append(socket.create_connection(('127.0.0.1', lifelines.address.port), 60))\n"
        "        except OSError:\n"
        "            [os.close(spare.pop()) for _ in spare[:1]] or time.sleep(0.01)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and done.stdout == "300\n", done.stderr
    assert re.fullmatch(r"hpcasync: only \d+ ranks are watched: .*Too many open files\n", done.stderr)


def test_descriptions() -> None:
    named, unnamed = Rank(3, "n1", 77, "worker 1"), Rank(0, "n0", 5)
    ending = "and the job cannot go on without it: it ends"
    assert describe_deaths([named]) == f"worker 1 (rank 3 on n1, process 77) has died, {ending}"
    together = f"rank 0 on n0 (process 5) or worker 1 (rank 3 on n1, process 77) has died, {ending}"
    assert describe_deaths([named, unnamed]) == together
    gone = Rank(3, "n1", 77, is_unreachable=True)
    assert describe_deaths([gone]) == f"rank 3 on n1 (process 77) cannot be reached any more, {ending}"


def test_addresses() -> None:
    address = lifeline.Address("0a1b", own_addresses(), 4711)
    assert lifeline.Address.parse(str(address)) == address
    assert Lifelines(3, is_local=True).address.hosts == ("127.0.0.1",)


def say(text: str) -> None:
    print(f"hpcasync: {text}", file=sys.stderr)


@pytest.mark.parametrize(("code", "expected"), [(9, 137), (14, 137), (255, 137), (0, 137), (137, 137), (139, 139)])
def test_exit_codes_of_a_job_that_has_lost_a_rank(code: int, expected: int) -> None:
    supervision = _Supervision(lambda: True, lambda name: None, say)
    with subprocess.Popen(["true"]) as process:
        supervision.begin(process)
    assert supervision.judge(85, [], has_report=True) == 85
    supervision.lose([Rank(0, "n0", 5)])
    assert supervision.judge(code, [], has_report=False) == expected


def test_an_mpirun_that_ends_before_its_ranks_has_not_ended_well(capfd: pytest.CaptureFixture[str]) -> None:
    supervision = _Supervision(lambda: True, lambda name: None, say)
    assert supervision.judge(0, [Rank(1, "n1", 77)], has_report=False) == RANK_LOST
    assert capfd.readouterr().err == "hpcasync: mpirun has ended before the ranks had: rank 1 on n1 (process 77)\n"


@pytest.mark.parametrize(
    ("has_report", "command", "is_named"),
    [(False, "exit 9", True), (True, "exit 9", False), (False, "kill -9 $$", False)],
)
def test_a_death_that_mpirun_was_quicker_to_notice_is_named(
    capfd: pytest.CaptureFixture[str], has_report: bool, command: str, is_named: bool
) -> None:
    supervision = _Supervision(lambda: True, lambda name: None, say)
    with subprocess.Popen(["sh", "-c", command]) as process:
        supervision.begin(process)
    code = supervision.judge(9, [Rank(1, "n1", 77)], has_report=has_report)
    said = "hpcasync: rank 1 on n1 (process 77) has died, and the job cannot go on without it: it ends\n"
    assert (code, capfd.readouterr().err) == ((RANK_LOST, said) if is_named else (9, ""))
