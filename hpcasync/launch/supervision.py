"""A job on this terminal: signals handed on, and its end where a rank dies."""

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import FrameType

from hpcasync.deaths.lifeline_hub import Lifelines, Rank, describe_deaths
from hpcasync.errors import UserError
from hpcasync.exit_codes import RANK_LOST
from hpcasync.launch.mpirun import JobLine
from hpcasync.launch.process import JOB_VARIABLE, ParentGuard, clean_up, exit_code, start_mpirun
from hpcasync.launch.relay import Relay

_FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Those that ask for a checkpoint where the job saves, and those that always end it.
_ASKING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ENDING_SIGNALS = (*_ASKING_SIGNALS, signal.SIGHUP)
# Time for a checkpoint; batch systems and containers kill what is left after 10 to 30 seconds.
SAVE_SECONDS = 20
# mpirun ends a job that has lost a rank in half a second, where it does.
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True)
class SupervisedJob:
    """How a job on this terminal ended.

    Attributes:
        exit_code: of mpirun; 128 + N when signal N ended it or a rank; a user's error where it lacks slots.
        signals: what was handed on to it, in order.
    """

    exit_code: int
    signals: tuple[int, ...]


def supervise(
    line: JobLine,
    environment: Mapping[str, str],
    lifelines: Lifelines,
    *,
    saves_on_usr1: bool = False,
    has_live_line: bool = False,
) -> SupervisedJob:
    """Run a job on this terminal and hand signals on to mpirun. The death of a rank ends the job.

    Args:
        environment: of the ranks, beside what the line needs.
        lifelines: what the ranks hold on to.
        saves_on_usr1: the job saves and ends on USR1, whether its ranks say so or not. The first INT or TERM is then
            handed on as such, for mpirun gives ranks no time to save on others; it follows itself after SAVE_SECONDS,
            or at once if it comes again.
        has_live_line: the ranks mark progress for a live line on this terminal.
    """
    job, started_at = uuid.uuid4().hex, time.time()
    relay = Relay(has_live_line=has_live_line)
    supervision = _Supervision(lambda: saves_on_usr1 or lifelines.save_on_usr1, lifelines.tell, relay.say)
    numbers = (*_FORWARDED_SIGNALS, signal.SIGALRM)
    previous = {number: signal.signal(number, supervision.forward) for number in numbers}
    try:
        # A session of its own, or a terminal's Ctrl-C would reach mpirun twice, which makes it kill rather than end.
        process = start_mpirun(
            line.argv,
            env={**environment, **line.variables, JOB_VARIABLE: job},
            # mpirun reads all there is, for a rank that may read nothing; see `hpcasync.launch.standard_input`.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if has_live_line else None,
            stderr=subprocess.PIPE,
        )
        relay.begin(process.stdout, process.stderr)
        with closing(ParentGuard(process.pid)), lifelines.watched(supervision.lose):
            supervision.begin(process)
            code = exit_code(process.wait())
    finally:
        signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        clean_up(supervision.process, job, started_at)
        relay.end(is_explained=lifelines.has_report or supervision.is_told_to_end)
    code = supervision.judge(code, lifelines.missed, has_report=lifelines.has_report)
    return SupervisedJob(UserError.exit_code if relay.lacks_slots else code, tuple(supervision.received))


class _Supervision:
    """What happens to a job from outside, and what is done then."""

    def __init__(
        self, saves_on_usr1: Callable[[], bool], tell: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.received: list[int] = []
        self._tell = tell
        self._say = say
        self._saves_on_usr1 = saves_on_usr1
        self._early: list[int] = []
        self._has_lost = False
        self._has_ended = False

    @property
    def is_told_to_end(self) -> bool:
        """Whether a signal has come that ends the job."""
        return any(number in _ENDING_SIGNALS for number in self.received)

    def begin(self, process: "subprocess.Popen[bytes]") -> None:
        """The job runs: what came before goes to it."""
        self.process = process
        for number in self._early:
            self._send(number)

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """The handler of all signals."""
        if number == signal.SIGALRM:
            self._send(signal.SIGTERM)
            return
        is_first = not any(other in _ASKING_SIGNALS for other in self.received)
        self.received.append(number)
        if number in _ASKING_SIGNALS and is_first and self._saves_on_usr1():
            self._say("saving a checkpoint; once more to end at once")
            signal.alarm(SAVE_SECONDS)
            self._tell(signal.Signals(number).name)
            number = signal.SIGUSR1
        elif number in (signal.SIGUSR1, signal.SIGUSR2):
            self._tell(signal.Signals(number).name)
        self._send(number)

    def lose(self, dead: list[Rank]) -> None:
        """Ranks have died: say so, and see to it that the job ends, which is left to mpirun first."""
        is_early = bool(self.received) and not any(rank.name for rank in dead)  # the signal killed them
        if is_early or self.is_told_to_end:
            return
        self._has_lost = True
        self._say(describe_deaths(dead))
        assert self.process is not None
        for end in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(_PATIENCE_SECONDS)
                return
            except subprocess.TimeoutExpired:
                self._has_ended = True
                end()

    def judge(self, code: int, missed: list[Rank], *, has_report: bool) -> int:
        """The exit code of the job, by that of mpirun; says what nobody has said of ranks that are missed.

        Of a rank that was killed Open MPI's says 137 = 128 + 9 on one host, and 14 between hosts; MPICH's 9 and 255. Of
        its daemon on another host Open MPI's says 0.
        """
        if code == 0 and missed and not self._has_lost:
            self._has_lost = True
            names = ", ".join(map(str, sorted(missed, key=lambda rank: rank.rank)))
            self._say(f"mpirun has ended before the ranks had: {names}")
        # The kernel may cut a dying process's line after mpirun has seen it die, and ended the others and itself.
        is_unexplained = not (has_report or self._has_lost or self.received)
        if missed and is_unexplained and self.process is not None and self.process.returncode > 0:
            self._has_lost = True
            self._say(describe_deaths(missed))
        is_told = 128 < code < 128 + signal.NSIG and not self._has_ended
        return RANK_LOST if self._has_lost and not is_told else code

    def _send(self, number: int) -> None:
        if self.process is None:
            self._early.append(number)
        elif self.process.poll() is None:
            self.process.send_signal(number)
