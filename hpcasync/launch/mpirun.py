"""The mpirun line of a job: pure, so that it can be tested without starting anything."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcasync.deaths.lifeline import SURVIVE_VARIABLE
from hpcasync.errors import UserError

# "mpich" stands for all that start ranks with hydra: MPICH, Intel MPI, MVAPICH.
Flavour = Literal["openmpi", "mpich"]
FLAVOUR_NAMES: dict[Flavour, str] = {"openmpi": "Open MPI", "mpich": "MPICH"}

# A container's /dev/shm has 64 MiB unless it is asked for more; two copies of 100 million parameters take 800 MB.
SMALL_SHARED_MEMORY_BYTES = 1 << 30

_HOST_OPTIONS = {"host", "H", "hostfile", "machinefile", "default-hostfile", "f", "hosts"}
_BINDING_OPTIONS = {"bind-to", "bind-to-core", "cpu-set", "cpu-list", "rankfile", "rf"}
_MAPPING_OPTIONS = {"oversubscribe", "nooversubscribe", "map-by"}
# Set in every allocation of a resource manager: there mpirun knows hosts and slots.
_ALLOCATION_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
# What a remote rank needs of the caller's environment. Open MPI hands on its own variables only; hydra hands on all.
_EXPORTED_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_EXPORTED_PREFIXES = ("HPCASYNC_", "HOROVOD_", "NCCL_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "UCX_")


@dataclass(frozen=True)
class Launcher:
    """An mpirun, and whose it is."""

    path: Path
    flavour: Flavour


@dataclass(frozen=True)
class JobLine:
    """A command with the variables that it needs beside the caller's environment."""

    argv: tuple[str, ...]
    variables: Mapping[str, str]

    def __str__(self) -> str:
        """One line that can be pasted into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*variables, shlex.join(self.argv)])


def job_line(
    launcher: Launcher,
    num_ranks: int,
    program: Sequence[str],
    *,
    environment: Mapping[str, str],
    is_root: bool,
    shared_memory_bytes: int | None = None,
    options: Sequence[str] = (),
    survive_workers: bool = False,
) -> JobLine:
    """Build the line that starts `program` on `num_ranks` ranks.

    What one machine needs is added unless the user's `options` or `environment` say otherwise.

    Args:
        is_root: whether the caller is root, which Open MPI refuses unless told.
        shared_memory_bytes: free space of /dev/shm; None: not known.
        options: mpirun options of the user.
        survive_workers: the other ranks live on when one is killed, and training goes on without a worker.
    """
    added: list[str] = []
    variables: dict[str, str] = {}
    if launcher.flavour == "openmpi":
        added, variables = _openmpi_additions(environment, is_root, options)
        if shared_memory_bytes is not None and shared_memory_bytes < SMALL_SHARED_MEMORY_BYTES:
            # Windows of one host are files there, and one that does not fit ends the job.
            directory = environment.get("TMPDIR", "/tmp")
            variables |= {f"OMPI_MCA_{part}_backing_directory": directory for part in ("osc_sm", "osc_rdma", "btl_sm")}
    if survive_workers:
        if launcher.flavour != "openmpi":
            raise UserError(
                f"--survive-workers needs Open MPI, and mpi4py uses {FLAVOUR_NAMES[launcher.flavour]} here: leave it "
                "out, or use --max-restarts"
            )
        added += ["--with-ft", "mpi", "-x", SURVIVE_VARIABLE]
        variables[SURVIVE_VARIABLE] = "1"
        variables |= _without_shared_memory(environment, is_elsewhere=may_span_hosts(options, environment))
    missing = {name: value for name, value in variables.items() if name not in environment}
    return JobLine((str(launcher.path), "-n", str(num_ranks), *added, *options, *program), missing)


def may_span_hosts(options: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a job with these mpirun options may have ranks on other hosts than this."""
    has_hosts = any(_option_name(option) in _HOST_OPTIONS for option in options)
    return has_hosts or any(name in environment for name in _ALLOCATION_VARIABLES)


def _openmpi_additions(
    environment: Mapping[str, str], is_root: bool, options: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    given = {_option_name(option) for option in options}
    is_elsewhere = may_span_hosts(options, environment)
    # A rank that waits gives its core to one that computes.
    variables = {"OMPI_MCA_mpi_yield_when_idle": "1"}
    added: list[str] = []
    if is_root:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if not is_elsewhere:
        # Without UCX's hardware this component only prints an error; between hosts it may be the best one.
        variables["OMPI_MCA_osc"] = "^ucx"
        if not given & _MAPPING_OPTIONS:
            added.append("--oversubscribe")
    if not given & _BINDING_OPTIONS:
        # Two ranks would be bound to one core each, whatever the number of cores and of threads.
        added += ["--bind-to", "none"]
    if is_elsewhere:
        for name in sorted(environment):
            if name in _EXPORTED_VARIABLES or name.startswith(_EXPORTED_PREFIXES):
                added += ["-x", name]
    return added, variables


def _without_shared_memory(environment: Mapping[str, str], *, is_elsewhere: bool) -> dict[str, str]:
    """Messages over TCP: what a rank that is killed leaves half written in another's memory crashes that one (5.0.11).

    One host may have no other network than itself. On several a job does not survive deaths; its ranks say so.
    """
    own, needed = environment.get("OMPI_MCA_btl"), "^sm"
    if own not in (None, needed):
        raise UserError(
            f"--survive-workers sends messages over TCP, not through shared memory, and OMPI_MCA_btl={own} is set: "
            "unset it, or leave --survive-workers out"
        )
    here = {} if is_elsewhere else {"OMPI_MCA_btl_tcp_if_include": "127.0.0.0/8"}
    return {"OMPI_MCA_btl": needed, **here}


def _option_name(option: str) -> str:
    return option.lstrip("-").partition("=")[0] if option.startswith("-") else ""
