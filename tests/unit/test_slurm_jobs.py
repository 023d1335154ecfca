"""`hpcasync slurm`: the scripts word for word, what they refuse, and how they are submitted."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpcasync.cli.slurm import slurm
from hpcasync.errors import UserError
from hpcasync.slurm import submit
from hpcasync.slurm.partition import Node, Partition, check_fit, parse_sinfo
from hpcasync.slurm.resources import Resources, gpus_of_gres
from hpcasync.slurm.script import BatchJob
from hpcasync.slurm.submit import check_jobs, dependency
from hpcasync.slurm.times import parse_time

GOLDEN = Path(__file__).parents[1] / "golden" / "slurm"
CONFIG = "name: mine\ndata: {path: data/mine}\nstop: {updates: 100}\n"
SCRIPTS = {
    "async-cpu": "mine.yaml --ntasks-per-node 9 --cpus-per-task 4 --time 12:00:00 accumulate.global=8",
    "async-gpu": "mine.yaml --nodes 2 --gpus 4 --cpus-per-task 8 --partition gpu --account project --mem 200G",
    "sync-gpu": "mine.yaml mode=sync --nodes 2 --gpus 4 --cpus-per-task 8 --no-requeue",
    "servers-apart": "mine.yaml --nodes 2 --gpus 4 --cpus-per-task 8 --partition gpu --server-nodes 2 --servers 4 "
    "--server-partition cpu",
    "chain": "mine.yaml --chain prepare,train,evaluate --cpus-per-task 4 "
    "--prepare 'train.en train.de --valid v.en v.de' --evaluate '--split test'",
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration; the scripts' own directory is where everybody has it."""
    (tmp_path / "mine.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpcasync.cli.slurm.scripts_directory", lambda: Path("/opt/hpcasync/slurm"))
    return tmp_path


def run(line: str) -> str:
    """`hpcasync slurm LINE`; a UserError is raised."""
    result = CliRunner().invoke(slurm, shlex.split(line))
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def rendered(name: str) -> str:
    return run(f"render {SCRIPTS[name]}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_that_of_the_golden_file(name: str) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_bash(name: str) -> None:
    subprocess.run(["bash", "-n"], input=rendered(name), text=True, check=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mine.yaml --servers 4 --ntasks-per-node 2 --nodes 2", "4 rank.* cannot hold 4 server.*--ntasks-per-node"),
        ("mine.yaml --servers 3 --nodes 2 --gpus 4", "3 servers on 2 nodes .*multiple of --nodes 2"),
        ("mine.yaml --servers 3 --server-nodes 2", "--servers 3 on --server-nodes 2: give a multiple"),
        ("mine.yaml mode=sync --server-nodes 2", "mode=sync has no servers"),
        ("mine.yaml --array sweep.yaml", "--array sweep.yaml: .*`hpcasync experiment FILE --slurm submit`; .* axes"),
        ("mine.yaml --chain evaluate,train", "in this order"),
        ("mine.yaml --chain train,score", "no job 'score'; choose from prepare, train, evaluate"),
        ("mine.yaml --chain prepare,train", "--chain with prepare and --prepare belong together"),
        ("mine.yaml --prepare 'a b'", "--chain with prepare and --prepare belong together"),
        ("mine.yaml --chain prepare --prepare 'a b --out c'", "--prepare has an --out"),
        ("mine.yaml --evaluate '--split test'", "add evaluate to it"),
        ('mine.yaml --chain evaluate --evaluate "\'"', "No closing quotation; quote its words"),
        ("mine.yaml --time tomorrow", "'tomorrow' is no time limit .*HOURS:MINUTES:SECONDS"),
        ("mine.yaml sed=3", "unknown key sed: did you mean seed"),
        ("absent.yaml", "cannot read the configuration absent.yaml"),
    ],
)
def test_refuses_before_it_asks_slurm(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(f"render {line}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-2", 93600), ("1-0:30", 88200), ("1-0:0:5", 86405),
     ("infinite", None), ("UNLIMITED", None)],
)  # fmt: skip
def test_time_limits(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


SINFO = """\
cpu*|n0|4|(null)|infinite
cpu*|n1|8+|(null)|infinite
gpu|g0|32|gpu:a100:4(S:0-1),mps:400|2:00:00
gpu|g1|16|gpu:2|2:00:00
"""


def test_partitions_from_sinfo() -> None:
    assert parse_sinfo(SINFO) == [
        Partition("cpu", True, "infinite", None, (Node("n0", 4, 0), Node("n1", 8, 0))),
        Partition("gpu", False, "2:00:00", 7200, (Node("g0", 32, 4), Node("g1", 16, 2))),
    ]
    with pytest.raises(UserError, match="sinfo said"):
        parse_sinfo("slurm_load_partitions: error\n")


def resources(**values: Any) -> Resources:
    return Resources(**{"partition": "gpu", **values})


@pytest.mark.parametrize(
    ("wanted", "time"),
    [
        (resources(nodes=2, gpus_per_node=2, tasks_per_node=4, cpus_per_task=4), "2:00:00"),
        (resources(nodes=1, gpus_per_node=4, cpus_per_task=32), "90"),
        (resources(partition="", nodes=2, tasks_per_node=4), "365-0"),
    ],
)
def test_what_fits(wanted: Resources, time: str) -> None:
    check_fit(wanted, time, parse_sinfo(SINFO))


@pytest.mark.parametrize(
    ("wanted", "time", "message"),
    [
        (resources(), "2:00:01", "--time 2:00:01 is over the limit of partition gpu, 2:00:00"),
        (resources(), "infinite", "--time infinite is over the limit"),
        (resources(nodes=3), "", "--nodes 3: partition gpu has 2"),
        (resources(gpus_per_node=8), "", "--gpus-per-node 8: 0 node.*the best has 4"),
        (resources(gpus_per_node=4, nodes=2), "", "--gpus-per-node 4: 1 node.*2 are asked for"),
        (resources(partition="cpu", gpus_per_node=1), "", "--gpus-per-node 1: 0 node.*the best has 0"),
        (resources(tasks_per_node=8, cpus_per_task=4, nodes=2), "", "8 rank.*of 4 CPU.*--cpus-per-task"),
        (resources(partition="gpus"), "", "--partition gpus: there is no such partition; did you mean gpu?"),
    ],
)
def test_what_can_never_start(wanted: Resources, time: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_fit(wanted, time, parse_sinfo(SINFO))


def test_a_job_waits_for_the_one_before_it() -> None:
    one = BatchJob("train", "a", (Resources(),), ("true",))
    many = BatchJob("train", "a", (Resources(),), ("true",), settings=(("seed=1",),))
    assert dependency(one, one, "7") == ["--dependency=afterok:7", "--kill-on-invalid-dep=yes"]
    assert dependency(many, one, "7")[0] == "--dependency=afterok:7"
    assert dependency(many, many, "7")[0] == "--dependency=aftercorr:7"


# A job array's task within an interactive allocation, as SLURM 22 and mpirun describe it.
OF_A_JOB = {
    "SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPU_BIND": "mask_cpu:0x3",
    "SLURM_MEM_PER_NODE": "500", "SLURM_CPUS_PER_TASK": "2", "SLURMD_NODENAME": "n1", "SRUN_DEBUG": "3",
    "PMI_RANK": "0", "PMIX_RANK": "0", "PMIX_SERVER_URI41": "x", "OMPI_COMM_WORLD_SIZE": "2",
}  # fmt: skip
OF_THE_USER = {
    "SLURM_CONF": "/etc/elsewhere.conf",
    "SBATCH_ACCOUNT": "mine",
    "OMPI_MCA_osc": "rdma",
    "PMIX_MCA_gds": "hash",
}


def test_a_job_that_is_submitted_within_a_job_inherits_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (OF_A_JOB | OF_THE_USER).items():
        monkeypatch.setenv(name, value)
    own = submit._environment(BatchJob("train", "a", (Resources(account="theirs"),), ("true",)))
    assert not own.keys() & OF_A_JOB.keys() and "SBATCH_ACCOUNT" not in own
    assert {name: own[name] for name in OF_THE_USER if name != "SBATCH_ACCOUNT"}.items() < OF_THE_USER.items()


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"no sinfo on PATH.*hpcasync slurm render"):
        run("submit mine.yaml")


def test_any_option_of_sbatch_goes_to_every_job() -> None:
    options = "--qos long --reservation r1 --mail-type END --sbatch '--comment \"a b\" -L x --exclusive'"
    script = run(f"render mine.yaml --chain train,evaluate {options}")
    for line in ("--qos=long", "--reservation=r1", "--mail-type=END", "'--comment=a b'", "-Lx", "--exclusive"):
        assert script.count(f"#SBATCH {line}\n") == 2, line
    with pytest.raises(UserError, match="'comment' is no option of sbatch"):
        run("render mine.yaml --sbatch comment")


def test_gres_stands_for_gpus() -> None:
    script = run("render mine.yaml --chain train,evaluate --gres gpu:a100:4,tmp:1")
    train, evaluate = script.split("#!/bin/bash")[1:]
    assert "#SBATCH --gres=gpu:a100:4,tmp:1\n" in train and "#SBATCH --ntasks-per-node=5\n" in train
    assert "#SBATCH --gres=gpu:a100:1,tmp:1\n" in evaluate and "--gpus-per-node" not in script


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu:a100:4", 4), ("gpu:2", 2), ("gpu", 1), ("gpu:a100", 1), ("mps:100", 0), ("gpu:2,gpu:b:1", 3)],
)
def test_the_gpus_of_gres(gres: str, count: int) -> None:
    assert gpus_of_gres(gres) == count


@pytest.mark.parametrize(
    ("time", "is_refused"), [("2", True), ("3", True), ("0:04:00", False), ("", False), ("1-0", False)]
)
def test_a_time_limit_near_the_warning_is_refused(monkeypatch: pytest.MonkeyPatch, time: str, is_refused: bool) -> None:
    monkeypatch.setattr("hpcasync.slurm.submit._run", lambda command: "cpu*|n0|8|(null)|infinite\n")
    job = BatchJob("train", "mine", (Resources(),), ("train_job",), time=time, signal_seconds=120)
    if is_refused:
        with pytest.raises(UserError, match=f"--time {time} leaves no time to train.*more than 3 minutes"):
            check_jobs([job], {})
    else:
        check_jobs([job], {})
