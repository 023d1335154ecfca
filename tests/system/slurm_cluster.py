"""A real SLURM for the tests: munged, slurmctld and three slurmd on this machine, gone without a trace afterwards.

The three nodes share one host name, so a job must stay on one of them: Open MPI would take ranks of two nodes for
neighbours that share memory. For jobs of several nodes each can be a network host of its own.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from hpcasync.bench.network_hosts import NetworkHosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
NODES = ("n0", "n1", "n2")
_CPUS_PER_NODE = 4
# What passes for GPUs: SLURM counts them, nothing computes on them.
_GPU_DEVICES = ("/dev/null", "/dev/zero")
# All take seconds on two idle cores.
_PATIENCE_SECONDS = 300.0
_RESTART_SECONDS = 3
_POLL_SECONDS = 0.2
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
# First the environment under test. Debian keeps the daemons where a user's PATH does not look.
_SEARCH_PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmError(Exception):
    """The cluster did not do as it was told; holds what its daemons wrote."""


def reason_to_skip() -> str | None:
    """Why there can be no cluster on this machine, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_SEARCH_PATH) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "the daemons of SLURM need root"
    return None


class SlurmCluster:
    """A context manager: inside it, `environment` makes SLURM's commands talk to this cluster.

    After it, `left_behind` has the command lines of processes that SLURM did not end and that were killed.

    Args:
        hosts: where the nodes are, if not all on this one.
    """

    def __init__(self, hosts: NetworkHosts | None = None) -> None:
        self._hosts = hosts
        self._directory = Path(tempfile.mkdtemp(prefix="hpcasync-slurm-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.left_behind: list[str] = []
        without_slurm = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment: Mapping[str, str] = {
            **without_slurm,
            "PATH": _SEARCH_PATH,
            "SLURM_CONF": str(self._directory / "slurm.conf"),
        }

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run a command of SLURM and return what it printed.

        Raises:
            SlurmError: it failed.
        """
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
        if done.returncode:
            raise SlurmError(f"{command} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def submit(self, *command: str | Path, options: Sequence[str] = (), cwd: Path) -> str:
        """`sbatch OPTIONS SCRIPT ARGUMENTS` in `cwd`; returns the job's id."""
        return self.run("sbatch", "--parsable", *options, *command, cwd=cwd).strip().partition(";")[0]

    def show(self, job: str) -> list[dict[str, str]]:
        """What SLURM knows of a job, or of each task of an array: JobState, ExitCode, Restarts, …"""
        lines = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.strip()]

    def wait(self, job: str) -> list[dict[str, str]]:
        """Poll until the job, or every task of the array, has ended; returns `show`.

        Raises:
            SlurmError: it does not end.
        """
        self.wait_until(lambda: self._has_ended(job), f"the end of job {job}")
        return self.show(job)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = _PATIENCE_SECONDS) -> None:
        """Poll a condition.

        Raises:
            SlurmError: it does not hold after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                queue = self.run("squeue", "--all", "--long")
                raise SlurmError(f"waited {timeout:g} s for {what}:\n{queue}\n{self._logs()}")
            time.sleep(_POLL_SECONDS)

    def _has_ended(self, job: str) -> bool:
        if self.run("squeue", "--noheader", "--jobs", job).strip():
            return False
        return all(record["JobState"] in _ENDED for record in self.show(job))

    def requeue(self, job: str, between: Callable[[], None]) -> None:
        """Requeue a running job and call `between` when nothing of it runs; see `start_again`."""
        self.run("scontrol", "requeue", job)
        self.start_again(job, between)

    def start_again(self, job: str, between: Callable[[], None], timeout: float = _PATIENCE_SECONDS) -> None:
        """Wait until a job is queued again, call `between`, and don't wait two minutes for its next start.

        A node refuses a credential issued in the second in which it ended the job, or a little later: hence the delay.
        """
        self.wait_until(lambda: self._is_waiting(job), f"job {job} to be queued again", timeout)
        between()
        self.run("scontrol", "update", f"JobId={job}", f"StartTime=now+{_RESTART_SECONDS}")

    def _is_waiting(self, job: str) -> bool:
        steps = [process for process in self._processes() if f"[{job}." in " ".join(process.info["cmdline"] or [])]
        return self.show(job)[0]["JobState"] == "PENDING" and not steps

    def _start(self) -> None:
        key, munge = self._directory / "munge.key", self._directory / "munge.socket"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = _free_ports(1 + len(NODES))
        (self._directory / "slurm.conf").write_text(_configuration(self._directory, munge, ports, self._hosts))
        (self._directory / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in _GPU_DEVICES))
        files = {"--socket": munge, "--key-file": key}
        files |= {f"--{kind}-file": self._directory / f"munged.{kind}" for kind in ("log", "pid", "seed")}
        # --force: this directory is not munge's own, which is a warning.
        self._daemon("munged", "--foreground", "--force", *(f"{option}={path}" for option, path in files.items()))
        self.wait_until(munge.exists, "munged")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            (self._directory / f"spool.{node}").mkdir()
            command = ("slurmd", "-D", "-N", node)
            self._daemon(*(self._hosts.on(NODES.index(node), command) if self._hosts else command))
        self.wait_until(self._is_idle, "three idle nodes")

    def _daemon(self, *command: str) -> None:
        program = next(Path(word).name for word in command if Path(word).name in PROGRAMS)
        name = "-".join([program, *(word for word in command if word in NODES)])
        with (self._directory / f"{name}.out").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_idle(self) -> bool:
        ended = [name for name, process in self._daemons.items() if process.poll() is not None]
        if ended:
            raise SlurmError(f"{', '.join(ended)} ended: {self._logs()}")
        try:
            idle = self.run("sinfo", "--noheader", "--states", "idle", "--partition", "cpu", "--format", "%D")
        except SlurmError:
            return False
        return idle.strip() == str(len(NODES))

    def _stop(self) -> None:
        if "slurmctld" in self._daemons:
            # The controller may be what failed: what then goes on is ended below.
            with contextlib.suppress(SlurmError, subprocess.TimeoutExpired):
                self.run("scancel", "--user", "root", "--hurry")
                self.wait_until(lambda: not self.run("squeue", "--noheader").strip(), "an empty queue")
        for process in reversed(self._daemons.values()):
            process.terminate()
        for process in self._daemons.values():
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for left in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.left_behind.append(" ".join(left.cmdline()))
                left.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        """Every living process of the cluster and its jobs, known by SLURM_CONF in its environment."""
        found = []
        for process in psutil.process_iter(["environ", "cmdline", "status"]):
            is_ours = (process.info["environ"] or {}).get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def _logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self._directory.glob("*.out"))
        )


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to connections by itself: other tests make many until the daemons listen."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = secrets.choice(range(lowest // 2, lowest))
            with contextlib.suppress(OSError):  # somebody has it
                stack.enter_context(socket.socket()).bind(("", port))
                found.append(port)
    return found


def _configuration(directory: Path, munge: Path, ports: Sequence[int], hosts: NetworkHosts | None) -> str:
    host = socket.gethostname().partition(".")[0]
    places = [f"NodeHostname={host} NodeAddr=127.0.0.1"] * len(NODES)
    if hosts:
        places = [f"NodeHostname={name} NodeAddr={address}" for name, address in hosts.addresses.items()]
    nodes = "\n".join(
        f"NodeName={node} {place} Port={port} CPUs={_CPUS_PER_NODE} RealMemory=4000 Gres=gpu:{len(_GPU_DEVICES)} "
        "State=UNKNOWN"
        for node, place, port in zip(NODES, places, ports[1:], strict=True)
    )
    return f"""\
ClusterName=hpcasync
SlurmctldHost={host}({hosts.outside if hosts else "127.0.0.1"})
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
# More CPUs than the machine has, no cgroups, no accounting.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
# salloc without a command: a shell on the first node.
LaunchParameters=use_interactive_step
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
KillWait=5
# For a machine that is busy with other things.
BatchStartTimeout=100
MessageTimeout=100
TCPTimeout=60
# Ended jobs are remembered to the end of the tests.
MinJobAge=50000
{nodes}
PartitionName=cpu Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={NODES[0]} MaxTime=0:10:00 State=UP
"""
