"""`hpcasync launch` and what it is made of, with real jobs."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from runners import PATIENCE_SECONDS, CliRunner, MpiRunner
from running_job import StartJob
from soak import mapped_segments
from tiny_training import CONFIG, TinyCorpus

from hpcasync.launch.locate import find_launcher, find_library
from hpcasync.launch.session_directory import session_directory

PROGRAM = Path(__file__).parent / "programs" / "supervised_job.py"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def start(how: str, file: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), how, str(file)], text=True, env=environment, stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> int:
    """Wait for it; returns the exit code."""
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    print(stderr)
    return process.returncode


def rank_pids(process: "subprocess.Popen[str]", file: Path) -> list[int]:
    files = [file.with_suffix(f".{rank}") for rank in range(2)]
    wait_until(lambda: process.poll() is not None or all(f.is_file() and f.read_text() for f in files))
    assert process.poll() is None
    return [int(f.read_text()) for f in files]


def test_the_exit_code_is_passed_through(tmp_path: Path) -> None:
    process = start("exit", tmp_path / "out")
    assert end(process) == 7


def test_usr1_reaches_every_rank_and_the_job_goes_on(tmp_path: Path) -> None:
    process = start("wait-for-usr1", tmp_path / "out")
    rank_pids(process, tmp_path / "out")
    process.send_signal(signal.SIGUSR1)
    assert end(process) == 0
    assert (tmp_path / "out").read_text() == "2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ending_the_launcher_ends_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    process = start("sleep", tmp_path / "out")
    pids = rank_pids(process, tmp_path / "out")
    process.send_signal(number)
    assert end(process) != 0
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_killed_rank_ends_the_job_and_leaves_no_shared_memory(tmp_path: Path) -> None:
    process = start("sleep", tmp_path / "out")
    pids = rank_pids(process, tmp_path / "out")
    segments = {path for pid in pids for path in mapped_segments(pid)}
    assert segments
    os.kill(pids[1], signal.SIGKILL)
    assert end(process) != 0
    wait_until(lambda: not psutil.pid_exists(pids[0]))
    assert not [path for path in segments if path.exists()]


def test_a_killed_mpirun_leaves_nothing_in_the_way_of_the_next_of_its_number(tmp_path: Path) -> None:
    process = start("sleep", tmp_path / "out")
    pids = rank_pids(process, tmp_path / "out")
    [mpirun] = [child for child in psutil.Process(process.pid).children() if child.name() != "sh"]
    left = session_directory(mpirun.pid)
    assert left.is_dir() or mpirun.name() != "prterun"  # that of Open MPI
    mpirun.kill()
    assert end(process) != 0
    assert not left.exists()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_mpirun_does_not_start_under_a_number_that_a_killed_one_has_left_its_directory_of(
    mpirun: MpiRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    last_pid = int(Path("/proc/loadavg").read_text().split()[-1])
    left = [session_directory(last_pid + number) for number in range(1, 60)]
    for directory in left:
        directory.mkdir()
    job = mpirun(1, ["--help"], env={"TMPDIR": str(tmp_path)})
    assert "Usage" in job.stdout
    assert all(directory.is_dir() for directory in left)  # it may be in use, in a container


def test_launch_prints_the_line_and_runs_the_command(run_cli: CliRunner) -> None:
    result = run_cli("launch", "-n", "2", "--", "train", "no-such-file.yaml")
    assert result.returncode == 2
    line, *_ = result.stderr.splitlines()
    assert " -n 2 " in line and line.endswith(" -m hpcasync train no-such-file.yaml")


def test_launch_inside_a_job_is_refused_once(mpirun: MpiRunner) -> None:
    job = mpirun(2, ["launch", "-n", "2", "--", "train", "x.yaml"], exit_code=2)
    assert job.stderr.count("starts mpirun itself") == 1


def test_all_ranks_are_one_job(mpirun: MpiRunner) -> None:
    job = mpirun.python(5, "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank))")
    assert job.stdout.split() == ["10"] * 5


def test_horovod_allreduces(mpirun: MpiRunner) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed: make setup")
    program = (
        "import torch, horovod.torch as hvd; hvd.init(); "
        "x = torch.arange(5.0) * (hvd.rank() + 1); hvd.allreduce_(x, op=hvd.Sum); "
        "assert hvd.size() == 2 and x.tolist() == [0.0, 3.0, 6.0, 9.0, 12.0], x"
    )
    mpirun.python(2, program)


MY_PROGRAM = """
import sys
from mpi4py import MPI
world = MPI.COMM_WORLD
what = sys.argv[1]
if what == "read":
    print(world.rank, repr(sys.stdin.read()), flush=True)
if world.rank == 1 and what == "raise":
    raise ValueError("mine")
if world.rank == 1 and what == "exit":
    sys.exit(5)
if world.rank == 1 and what == "die":
    import os
    os.kill(os.getpid(), 9)
if world.rank == 1 and what == "vanish":
    import os
    os._exit(7)
print(world.allreduce(1), sys.argv, flush=True)
"""


def launch_my_program(directory: Path, what: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    (directory / "my.py").write_text(MY_PROGRAM)
    command = [sys.executable, "-m", "hpcasync", "launch", "-n", "3", "--", sys.executable, "my.py", what]
    return subprocess.run(command, cwd=directory, input=text, text=True, capture_output=True, timeout=PATIENCE_SECONDS)


def test_any_python_program_is_a_job(tmp_path: Path) -> None:
    job = launch_my_program(tmp_path, "go", "not asked for")
    assert (job.returncode, job.stdout) == (0, "3 ['my.py', 'go']\n" * 3)


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("raise", 1, "ValueError: mine"),
        ("exit", 5, ""),
        ("die", 137, "rank 1 on .* has died"),
        ("vanish", 7, r"rank 1 has ended by os._exit\(7\)"),
    ],
)
def test_what_happens_to_one_rank_of_any_program_ends_the_others(
    tmp_path: Path, what: str, code: int, said: str
) -> None:
    """They wait for it, for ever."""
    job = launch_my_program(tmp_path, what)
    assert job.returncode == code, job.stderr
    _line, *rest = job.stderr.splitlines(keepends=True)
    assert re.search(said, "".join(rest)) and "launch/program.py" not in "".join(rest)
    assert "non-zero status" not in job.stderr and "MPI_ABORT" not in job.stderr


def test_rank_0_reads_standard_input_if_it_reads(tmp_path: Path) -> None:
    job = launch_my_program(tmp_path, "read", "a\nb\n")
    read = sorted(line for line in job.stdout.splitlines() if "my.py" not in line)
    assert read == ["0 'a\\nb\\n'", "1 ''", "2 ''"]


def test_a_loop_over_lines_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(MY_PROGRAM)
    launch = f"{sys.executable} -m hpcasync launch -n 2 --"
    loop = f"while read s; do {launch} {sys.executable} my.py $s; {launch} train no.yaml seed=$s; echo $s: $?; done"
    (tmp_path / "seeds.txt").write_text("1\n2\n")
    with (tmp_path / "seeds.txt").open() as seeds:
        done = subprocess.run(
            ["bash", "-c", loop], cwd=tmp_path, stdin=seeds, capture_output=True, text=True, timeout=240
        )
    assert done.stdout.split("\n") == ["2 ['my.py', '1']"] * 2 + ["1: 2"] + ["2 ['my.py', '2']"] * 2 + ["2: 2", ""]


def test_a_mistake_is_followed_by_nothing(run_cli: CliRunner) -> None:
    result = run_cli("launch", "-n", "2", "--", "train", "no-such-file.yaml")
    _line, message = result.stderr.strip().splitlines()
    # Rank 0 speaks for all, unless it is late by more than a second.
    assert re.match(
        r"hpcasync: error( on rank 1 of 2 on \S+)?: cannot read the configuration no-such-file.yaml", message
    )
    assert result.stdout == ""


def test_the_readmes_mpirun_line_works_as_it_is_printed(tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    if find_library().flavour != "openmpi":
        pytest.skip("its option --oversubscribe is Open MPI's")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    line = next(line for line in readme.splitlines() if line.startswith("mpirun "))
    assert " -np 5 " in line
    (tmp_path / "configs").mkdir()
    values = {**CONFIG, "data": {**CONFIG["data"], "path": str(tiny_corpus.path)}, "stop": {"updates": 3}}
    (tmp_path / "configs" / "multi30k.yaml").write_text(yaml.safe_dump(values))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "stop.updates=3 reached" in done.stdout


def test_what_prepare_prints_trains_as_it_is(run_cli: CliRunner, tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    text = [str(tiny_corpus.path.parent / f"train.{side}") for side in ("src", "tgt")]
    out = tmp_path / "it's $HOME, my corpus"
    printed = run_cli("data", "prepare", *text, "--vocab-size", "70", "--out", out, cwd=tmp_path).stdout
    command = printed.partition("Train on it with:")[2].strip()
    pasted = ["bash", "-c", f"{command} model.dim=16 stop.tokens=2000"]
    done = subprocess.run(pasted, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "it-s--HOME--my-corpus-async-global-seed1" / "summary.json").is_file()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("bind", ["auto", "always"])
def test_ranks_are_bound_on_a_workstation_only_where_that_is_asked_for(
    tmp_path: Path, tiny_corpus: TinyCorpus, bind: str, start_job: StartJob
) -> None:
    """Two users start a job each: `auto` would put both on the same cores."""
    if len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
        pytest.skip("this process has cores of its own")
    values = {**CONFIG, "run_dir": str(tmp_path / "runs"), "data": {**CONFIG["data"], "path": str(tiny_corpus.path)}}
    values |= {"roles": {"worker_threads": 1, "bind": bind}, "stop": {"updates": 1_000_000}}
    config = tmp_path / "q.yaml"
    config.write_text(yaml.safe_dump(values))
    environment = {name: "" for name in os.environ if name.startswith("SLURM_")}
    with start_job(2, config, log=tmp_path / "log", environment=environment) as job:
        job.wait_until(lambda: job.num_updates, "training")
        used = [set(process.cpu_affinity() or ()) for _, process in sorted(job.ranks().items())]
    assert len(used) == 2
    assert used[0].isdisjoint(used[1]) if bind == "always" else used == [os.sched_getaffinity(0)] * 2


def test_too_few_slots_get_the_cure(run_cli: CliRunner, tmp_path: Path) -> None:
    if find_launcher().flavour != "openmpi":
        pytest.skip("slots are Open MPI's")
    options = ("--host", "localhost:1", "--map-by", "slot", "--max-restarts", "3")
    done = run_cli("launch", "-n", "2", *options, "--", "train", tmp_path / "q.yaml", "--overwrite")
    assert done.returncode == 2, "a user's error, which no restart cures"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpcasync: mpirun has fewer slots than ranks: start fewer (-n)")
    assert "--oversubscribe" in last and "checkpoint" not in done.stderr and "restart" not in done.stderr
