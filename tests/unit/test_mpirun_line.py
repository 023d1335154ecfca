"""The mpirun line, and telling one MPI from another."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hpcasync.errors import UserError
from hpcasync.launch.locate import identify
from hpcasync.launch.mpirun import JobLine, Launcher, job_line
from hpcasync.launch.ranks import rank_from_environment

OPEN_MPI = Launcher(Path("/opt/mpi/bin/mpirun"), "openmpi")
MPICH = Launcher(Path("/opt/mpich/bin/mpiexec.hydra"), "mpich")
PROGRAM = ["python", "-m", "hpcasync", "train", "a b.yaml"]


def line(
    launcher: Launcher = OPEN_MPI,
    environment: Mapping[str, str] = {},
    options: Sequence[str] = (),
    is_root: bool = False,
    shared_memory_bytes: int | None = None,
) -> JobLine:
    return job_line(
        launcher, 3, PROGRAM, environment=environment, is_root=is_root, shared_memory_bytes=shared_memory_bytes,
        options=options,
    )  # fmt: skip


def test_open_mpi_on_one_machine() -> None:
    result = line()
    assert result.argv == ("/opt/mpi/bin/mpirun", "-n", "3", "--oversubscribe", "--bind-to", "none", *PROGRAM)
    assert result.variables == {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_osc": "^ucx"}


def test_the_line_can_be_pasted_into_a_shell() -> None:
    assert str(line()) == (
        "OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_osc='^ucx' /opt/mpi/bin/mpirun -n 3 --oversubscribe --bind-to none "
        "python -m hpcasync train 'a b.yaml'"
    )
    assert shlex.split(str(line()))[-1] == "a b.yaml"


def test_root_is_allowed_by_variables_only_for_root() -> None:
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert allowed.items() <= line(is_root=True).variables.items()
    assert not allowed.keys() & line().variables.keys()


def test_surviving_workers_needs_open_mpi() -> None:
    survive = {"environment": {}, "is_root": False, "survive_workers": True}
    result = job_line(OPEN_MPI, 3, PROGRAM, **survive)  # type: ignore[arg-type]
    assert shlex.join(result.argv).startswith(
        "/opt/mpi/bin/mpirun -n 3 --oversubscribe --bind-to none --with-ft mpi -x HPCASYNC_SURVIVE_WORKERS python"
    )
    assert result.variables["HPCASYNC_SURVIVE_WORKERS"] == "1"
    assert result.variables["OMPI_MCA_btl"] == "^sm" and "OMPI_MCA_btl" not in line().variables
    assert result.variables["OMPI_MCA_btl_tcp_if_include"] == "127.0.0.0/8"
    elsewhere = job_line(OPEN_MPI, 3, PROGRAM, **survive, options=("--host", "a,b"))  # type: ignore[arg-type]
    assert elsewhere.variables["OMPI_MCA_btl"] == "^sm" and "OMPI_MCA_btl_tcp_if_include" not in elsewhere.variables
    with pytest.raises(UserError, match=r"OMPI_MCA_btl=self,sm is set: unset it"):
        job_line(OPEN_MPI, 3, PROGRAM, **{**survive, "environment": {"OMPI_MCA_btl": "self,sm"}})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--survive-workers needs Open MPI, and mpi4py uses MPICH"):
        job_line(MPICH, 3, PROGRAM, **survive)  # type: ignore[arg-type]


def test_the_users_environment_wins() -> None:
    assert "OMPI_MCA_osc" not in line(environment={"OMPI_MCA_osc": "rdma"}).variables


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        (["--map-by", "ppr:1:node"], "--oversubscribe"),
        (["--bind-to", "core"], "none"),
        (["--cpu-set=0,1"], "none"),
    ],
)
def test_the_users_options_win(options: list[str], absent: str) -> None:
    argv = line(options=options).argv
    assert absent not in argv
    position = argv.index(options[0])
    assert list(argv[position : position + len(options)]) == options
    assert argv[-len(PROGRAM) :] == tuple(PROGRAM)


def test_between_hosts_nothing_of_one_machine_is_set_and_variables_are_handed_on() -> None:
    result = line(environment={"HOROVOD_LOG_LEVEL": "info", "EDITOR": "vi"}, options=["--host", "a:2,b:1"])
    assert result.variables == {"OMPI_MCA_mpi_yield_when_idle": "1"}
    assert result.argv[3:8] == ("--bind-to", "none", "-x", "HOROVOD_LOG_LEVEL", "--host")


def test_in_an_allocation_the_resource_manager_decides_on_slots() -> None:
    result = line(environment={"SLURM_JOB_ID": "7"})
    assert "--oversubscribe" not in result.argv
    assert "OMPI_MCA_osc" not in result.variables


@pytest.mark.parametrize(("free", "is_moved"), [(64 << 20, True), (2 << 30, False), (None, False)])
def test_windows_move_out_of_a_small_shared_memory(free: int | None, is_moved: bool) -> None:
    variables = line(shared_memory_bytes=free, environment={"TMPDIR": "/scratch"}).variables
    assert (variables.get("OMPI_MCA_osc_sm_backing_directory") == "/scratch") is is_moved


def test_mpich_needs_nothing() -> None:
    result = line(MPICH, is_root=True, options=["-genv", "UCX_TLS", "tcp"])
    assert result.argv == ("/opt/mpich/bin/mpiexec.hydra", "-n", "3", "-genv", "UCX_TLS", "tcp", *PROGRAM)
    assert result.variables == {}


@pytest.mark.parametrize(
    ("text", "flavour", "major"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to", "openmpi", 5),
        ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4", "openmpi", 4),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", "mpich", 0),
        ("MPICH Version:      4.3.1\nMPICH Release date: x", "mpich", 0),
        ("Intel(R) MPI Library 2021.11 for Linux* OS", "mpich", 0),
    ],
)
def test_an_mpi_is_known_by_what_it_says(text: str, flavour: str, major: int) -> None:
    library = identify(text)
    assert library is not None
    assert (library.flavour, library.major_version) == (flavour, major)


@pytest.mark.parametrize("text", ["", "bash: mpirun: command not found", "RuntimeError: cannot load MPI library"])
def test_other_answers_are_no_mpi(text: str) -> None:
    assert identify(text) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, (2, 4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "3"}, (1, 3)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        # mpirun inside an allocation: SLURM's variables are the batch script's.
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "SLURM_PROCID": "0"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        # The shell of `srun --pty --ntasks=8`.
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PTY_PORT": "4711"}, None),
    ],
)
def test_the_rank_is_read_from_the_launchers_variables(
    environment: dict[str, str], expected: tuple[int, int] | None
) -> None:
    rank = rank_from_environment(environment)
    assert (None if rank is None else (rank.world_rank, rank.num_ranks)) == expected
