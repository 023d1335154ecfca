"""Small updates for a long time while ranks are stopped at random; checks counts, memory, and what is left behind.

`python tests/parallel/soak.py --seconds 1200` runs 2 servers and 4 workers of the real engine (programs/soak_ranks.py),
stops a random rank (SIGSTOP) for a random time, again and again, and checks in the end that

- every gradient that a worker pushed was applied once or counted as dropped, and the parameters are their sum;
- every pull was one version (the workers check each), and has the value that the coordinator computed for it;
- no rank's memory grows;
- no process and no file in /dev/shm is left.
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hpcasync.launch.here import job_line_here
from hpcasync.launch.process import FinishedJob, capture, environment_of_ranks

PROGRAM = Path(__file__).parent / "programs" / "soak_ranks.py"
SHARED_MEMORY = Path("/dev/shm")
# Where a loaded machine takes this long, something hangs.
PATIENCE_SECONDS = 300.0
SAMPLE_SECONDS = 1.0
# Between two stops at least so many updates are made, however slow the machine.
UPDATES_BETWEEN_STOPS = 20
# Allocators keep what they were once given, in steps: more than this is growth.
FLAT_MIB = 16.0


@dataclass(frozen=True)
class Plan:
    """A soak.

    Attributes:
        seconds: how long at least.
        num_stops: how often a rank is stopped at least.
        pause_seconds: mean time between two stops.
        stop_seconds: longest time that a rank is stopped for; one in ten is ten times as long.
    """

    num_servers: int = 2
    num_workers: int = 4
    num_elements: int = 1000
    pushes_per_update: int = 2
    seconds: float = 0.0
    num_stops: int = 10
    pause_seconds: float = 0.2
    stop_seconds: float = 0.2
    seed: int = 1


@dataclass
class Soak:
    """What happened.

    Attributes:
        seconds: between the first update seen and the end.
        stops: of each rank, how often it was stopped.
        stopped_seconds: in all.
        memory: of each rank, allocated and resident MiB over time: (seconds, MiB).
        cpu_seconds: of each rank, in all.
        segments: files in /dev/shm that the ranks had mapped.
        result: what the coordinator wrote at the end (programs/soak_ranks.py).
    """

    seconds: float = 0.0
    stops: dict[int, int] = field(default_factory=dict)
    stopped_seconds: float = 0.0
    memory: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    cpu_seconds: dict[int, float] = field(default_factory=dict)
    segments: set[Path] = field(default_factory=set)
    result: dict[str, Any] = field(default_factory=dict)


def run_soak(directory: Path, plan: Plan, python: str = sys.executable) -> Soak:
    """Run one; raises AssertionError where something is wrong."""
    num_ranks = plan.num_servers + plan.num_workers
    program = [str(PROGRAM), str(directory)]
    program += map(str, (plan.num_servers, plan.num_elements, plan.pushes_per_update))
    environment = {**environment_of_ranks(), "OMP_NUM_THREADS": "1"}
    line = job_line_here(num_ranks, [python, "-m", "mpi4py", *program], environment=environment)
    soak = Soak()
    with ThreadPoolExecutor(1) as executor:
        job = executor.submit(capture, line, environment, timeout_seconds=plan.seconds + 4 * PATIENCE_SECONDS)
        try:
            _disturb(directory, plan, job, soak)
        finally:
            (directory / "stop").touch()
        finished = job.result()
    said = f"{line}\n{finished.stdout}\n{finished.stderr}"
    assert finished.returncode == 0 and not finished.timed_out, said
    assert not finished.stragglers, finished.stragglers
    left = [path for path in soak.segments if path.exists()]
    assert not left, left
    soak.result = json.loads((directory / "result").read_text())
    _check_counts(soak.result)
    _check_memory(soak)
    return soak


def _disturb(directory: Path, plan: Plan, job: "Future[FinishedJob]", soak: Soak) -> None:
    """Stop ranks, one at a time, and look at their memory, for as long as the plan says."""
    generator = random.Random(plan.seed)
    ranks = [_process(directory / f"rank-{rank}", job) for rank in range(plan.num_servers + plan.num_workers)]
    soak.memory = {rank: [] for rank in range(len(ranks))}
    soak.stops = dict.fromkeys(range(len(ranks)), 0)
    _wait_for_updates(directory, 1, job)
    soak.segments = {path for process in ranks for path in mapped_segments(process.pid)}
    cpu = [sum(process.cpu_times()[:2]) for process in ranks]
    started = time.monotonic()
    sampled = -SAMPLE_SECONDS
    while (elapsed := time.monotonic() - started) < plan.seconds or sum(soak.stops.values()) < plan.num_stops:
        if elapsed - sampled >= SAMPLE_SECONDS:
            sampled = elapsed
            for rank, process in enumerate(ranks):
                soak.memory[rank].append((elapsed, _anonymous_mib(process)))
        # In turn as often as at random, so that a short soak stops every rank.
        number = sum(soak.stops.values())
        rank = number % len(ranks) if number < len(ranks) else generator.randrange(len(ranks))
        seconds = generator.random() * plan.stop_seconds * (10 if generator.random() < 0.1 else 1)
        soak.stops[rank] += 1
        soak.stopped_seconds += _stop(ranks[rank], seconds)
        _wait_for_updates(directory, _num_updates(directory) + UPDATES_BETWEEN_STOPS, job)
        time.sleep(generator.expovariate(1 / plan.pause_seconds))
    soak.seconds = time.monotonic() - started
    soak.cpu_seconds = {
        rank: sum(process.cpu_times()[:2]) - before
        for rank, (process, before) in enumerate(zip(ranks, cpu, strict=True))
    }


def _stop(process: psutil.Process, seconds: float) -> float:
    """Stop a process; returns for how long."""
    began = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGCONT)
    return time.monotonic() - began


def _process(path: Path, job: "Future[FinishedJob]") -> psutil.Process:
    _wait_for(path.exists, job, str(path))
    return psutil.Process(json.loads(path.read_text())["pid"])


def _wait_for_updates(directory: Path, number: int, job: "Future[FinishedJob]") -> None:
    _wait_for(lambda: _num_updates(directory) >= number, job, f"update {number}")


def _num_updates(directory: Path) -> int:
    path = directory / "progress"
    return int(json.loads(path.read_text())["num_updates"]) if path.exists() else 0


def _wait_for(condition: Callable[[], bool], job: "Future[FinishedJob]", what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert not job.done(), f"the job ended before {what}: {job.result()}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def _check_counts(result: dict[str, Any]) -> None:
    workers = result["workers"]
    assert result["num_pushed"] == result["num_applied"] + result["num_dropped"]
    assert result["num_pushed"] == sum(worker["num_pushed"] for worker in workers)
    assert result["num_applied"] == sum(result["staleness"].values())
    # The tickets of all gradients, applied and dropped, are those that were pushed.
    assert result["ticket_sum"] == sum(worker["ticket_sum"] for worker in workers)
    assert result["final"] == [result["value"]] * 2, (result["final"], result["value"])
    for worker in workers:
        for version, value in worker["noted"].items():
            assert value == result["noted"][version], (version, value, result["noted"][version])


def growth_per_hour(samples: list[tuple[float, float]]) -> float:
    """Slope of resident MiB over hours, through the later half: before, libraries are still settling."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return 0.0
    return 3600 * statistics.linear_regression(*zip(*half, strict=True)).slope


def growth(samples: list[tuple[float, float]]) -> float:
    """MiB between the median of the third quarter of the soak and that of the last."""
    quarter = len(samples) // 4
    if not quarter:
        return 0.0
    third, last = samples[-2 * quarter : -quarter], samples[-quarter:]
    return statistics.median(mib for _, mib in last) - statistics.median(mib for _, mib in third)


def _check_memory(soak: Soak) -> None:
    for rank, samples in soak.memory.items():
        assert growth(samples) < FLAT_MIB, f"rank {rank} grows: {samples[:: max(1, len(samples) // 20)]}"


def _anonymous_mib(process: psutil.Process) -> float:
    """Resident memory that the process has allocated: not that of files, shared or of libraries."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 2**10


def mapped_segments(pid: int) -> set[Path]:
    """Files of SHARED_MEMORY that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    paths = (line.split(maxsplit=5)[5] for line in lines if f" {SHARED_MEMORY}/" in line)
    return {Path(path) for path in paths if not path.endswith(" (deleted)")}


def describe(soak: Soak, plan: Plan) -> str:
    """For people."""
    result = soak.result
    staleness = {int(updates): number for updates, number in result["staleness"].items()}
    mean = sum(updates * number for updates, number in staleness.items()) / max(1, result["num_applied"])
    retries = sum(worker["num_pull_retries"] for worker in result["workers"])
    lines = [
        f"{plan.num_servers} servers, {plan.num_workers} workers, {plan.num_elements} parameters, "
        f"{plan.pushes_per_update} pushes per update, seed {plan.seed}, {result['mpi']}: {soak.seconds:.0f} s",
        f"{result['num_updates']:,} updates ({result['num_updates'] / soak.seconds:,.0f} a second); gradients: "
        f"{result['num_pushed']:,} pushed = {result['num_applied']:,} applied + {result['num_dropped']:,} dropped",
        f"staleness: mean {mean:.2f}, most {max(staleness, default=0)}; pulls repeated: {retries:,}",
        f"stopped: {sum(soak.stops.values())} times, {soak.stopped_seconds:.0f} s in all; by rank {soak.stops}",
    ]
    for rank, samples in soak.memory.items():
        role = "server" if rank < plan.num_servers else "worker"
        lines.append(
            f"rank {rank} ({role}): {samples[0][1]:.1f} MiB at first, {samples[-1][1]:.1f} MiB at last, "
            f"{growth_per_hour(samples):+.2f} MiB/hour over the later half; "
            f"{1e6 * soak.cpu_seconds[rank] / result['num_updates']:.0f} us of a core per update"
        )
    num_noted = sum(len(worker["noted"]) for worker in result["workers"])
    lines.append(f"{num_noted:,} pulled versions compared; {len(soak.segments)} files in {SHARED_MEMORY}, none left")
    return "\n".join(lines)


def main() -> None:
    """Run a soak of any length and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Plan(seconds=1200.0)).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory(prefix="hpcasync-soak-") as directory:
        print(describe(run_soak(Path(directory), plan), plan))


if __name__ == "__main__":
    main()
