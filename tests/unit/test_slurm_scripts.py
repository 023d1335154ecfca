"""What the batch scripts decide: the size of the job, resuming, signals. The scripts themselves run in tests/system."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpcasync.config.schema import Config, parse_config
from hpcasync.errors import UserError
from hpcasync.exit_codes import PREEMPTED
from hpcasync.slurm.__main__ import assignments, main
from hpcasync.slurm.environment import Allocation, allocated_cpus, check_world_size, read_allocation
from hpcasync.slurm.plan import JobPlan, plan_job
from hpcasync.slurm.step import step_command

SCRIPTS = Path(__file__).parents[2] / "slurm"
ALL_SCRIPTS = sorted(SCRIPTS.glob("*.sbatch"))


def make_config(**values: Any) -> Config:
    return parse_config({"data": {"path": "data/x"}, "stop": {"updates": 1}, **values}, "test")


def run_bash(program: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "SLURM_JOB_ID": "7", **variables}
    program = f"source {shlex.quote(str(SCRIPTS / 'common.sh'))}; set -eu\n{program}"
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30, env=environment)


class TestAllocation:
    def test_reads_the_run_length_form(self) -> None:
        environment = {
            "SLURM_JOB_ID": "1",
            "SLURM_TASKS_PER_NODE": "4(x2),1",
            "SLURM_JOB_CPUS_PER_NODE": "8(x3)",
            "SLURM_GPUS_ON_NODE": "2",
        }
        (allocation,) = read_allocation(environment)
        assert allocation == Allocation((4, 4, 1), (8, 8, 8), 2)
        assert (allocation.num_nodes, allocation.num_tasks) == (3, 9)

    def test_has_no_gpus_unless_slurm_says_so(self) -> None:
        environment = {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "1"}
        assert read_allocation(environment)[0].gpus_per_node == 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"SLURM_JOB_ID": None}, "no job of SLURM .* sbatch"),
            ({"SLURM_TASKS_PER_NODE": None}, "SLURM_TASKS_PER_NODE=''"),
            ({"SLURM_JOB_CPUS_PER_NODE": "many"}, "SLURM_JOB_CPUS_PER_NODE='many'"),
            ({"SLURM_TASKS_PER_NODE": "2(x2)"}, "speak of 2 and 1 nodes"),
            ({"SLURM_HET_SIZE": "2"}, "SLURM_TASKS_PER_NODE_HET_GROUP_0=''"),
        ],
    )
    def test_refuses_what_sbatch_does_not_set(self, changes: dict[str, str | None], message: str) -> None:
        environment = {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "1", **changes}
        with pytest.raises(UserError, match=message):
            read_allocation({name: value for name, value in environment.items() if value is not None})


class TestWorldSize:
    @pytest.mark.parametrize(
        ("world_size", "environment"),
        [
            (1, {}),
            (1, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}),  # a process in a batch script
            (8, {"SLURM_STEP_NUM_TASKS": "8"}),  # srun with an MPI that it knows
            (1, {"SLURM_STEP_NUM_TASKS": "1"}),
            (2, {"SLURM_NTASKS": "8", "OMPI_COMM_WORLD_SIZE": "2"}),  # mpirun -n 2, on purpose
            # A rank of mpirun whose node's daemon is a task of a step of three.
            (1, {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "3"}),
            (2, {"PMI_SIZE": "2", "SLURM_STEP_NUM_TASKS": "3"}),
            (1, {"PMI_SIZE": "unknown"}),
        ],
    )
    def test_accepts_what_the_launcher_announced(self, world_size: int, environment: dict[str, str]) -> None:
        check_world_size(world_size, environment)

    @pytest.mark.parametrize(
        ("world_size", "environment", "launcher"),
        [
            (1, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, "srun started 4 "),
            (1, {"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "4"}, "mpiexec, or srun with PMI, started 4 "),
            (1, {"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI's mpirun started 4 "),
            (2, {"OMPI_COMM_WORLD_SIZE": "4"}, r"\(OMPI_COMM_WORLD_SIZE=4\), but MPI_COMM_WORLD has 2"),
        ],
    )
    def test_refuses_singletons(self, world_size: int, environment: dict[str, str], launcher: str) -> None:
        with pytest.raises(UserError, match=f"{launcher}.*hpcasync launch") as caught:
            check_world_size(world_size, environment)
        assert caught.value.everywhere


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"SLURM_CPUS_ON_NODE": "4"}, 0),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "16(x2)", "SLURM_CPUS_ON_NODE": "1"}, 16),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "16,8", "SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_JOB_ID": "1"}, 0),
    ],
)
def test_the_cpus_that_a_job_has_on_a_host(environment: dict[str, str], expected: int) -> None:
    assert allocated_cpus(environment) == expected


class TestPlan:
    def test_one_server_beside_the_workers_of_each_node(self) -> None:
        plan = plan_job(make_config(), [Allocation((5, 5), (20, 20), 0)], "async")
        assert (plan.num_ranks, plan.is_changed) == (10, False)
        # 20 CPUs less the server's one, for four workers.
        assert plan.overrides == ("roles.servers=2", "roles.worker_threads=4")
        assert "ranks per node 5: 2 server(s) and 8 worker(s)" in plan.description
        assert plan.run_dir == Path("runs/run-async-global-seed1")

    def test_what_the_configuration_says_stands(self) -> None:
        roles = {"servers": 3, "worker_threads": 2}
        plan = plan_job(make_config(roles=roles), [Allocation((5, 5), (20, 20), 0)], "async")
        assert plan.overrides == ("roles.servers=3",)

    @pytest.mark.parametrize(("server_device", "servers", "ranks"), [("cuda", 8, (8, 8)), ("cpu", 2, (5, 5))])
    def test_a_server_for_each_device(self, server_device: str, servers: int, ranks: tuple[int, ...]) -> None:
        config = make_config(roles={"servers": "per-device", "server_device": server_device})
        plan = plan_job(config, [Allocation((2, 2), (32, 32), 4)], "async")
        assert plan.ranks_per_node == ranks and plan.overrides[0] == f"roles.servers={servers}"

    def test_the_threads_suit_the_fullest_node(self) -> None:
        # Node 0: 1 server and 3 workers on 9 CPUs, (9 - 2) // 3. Node 1: 1 server and 1 worker on 4, (4 - 2) // 1.
        config = make_config(roles={"server_threads": 2})
        assert "roles.worker_threads=2" in plan_job(config, [Allocation((4, 2), (9, 4), 0)], "async").overrides

    def test_a_worker_has_a_thread_at_least(self) -> None:
        assert "roles.worker_threads=1" in plan_job(make_config(), [Allocation((4,), (1,), 0)], "async").overrides

    def test_each_gpu_has_a_worker(self) -> None:
        plan = plan_job(make_config(), [Allocation((2, 2), (16, 16), 4)], "async")
        assert (plan.ranks_per_node, plan.is_changed) == ((5, 5), True)
        assert plan.overrides == ("roles.servers=2", "roles.server_threads=4", "roles.worker_threads=3")
        assert "too few" not in plan.description

    @pytest.mark.parametrize(
        ("mode", "tasks", "cpus", "threads", "cure"),
        [
            # 4 workers of 3 CPUs and a server need 13; sbatch's defaults give 2 tasks a CPU each.
            ("async", 2, 2, "roles.server_threads=1 roles.worker_threads=1", "--cpus-per-task 7"),
            ("async", 5, 64, "roles.server_threads=52 roles.worker_threads=3", ""),
            ("sync", 1, 1, "roles.worker_threads=1", "--cpus-per-task 12"),
            ("sync", 4, 64, "roles.worker_threads=16", ""),
        ],
    )
    def test_workers_on_gpus_do_not_starve(self, mode: str, tasks: int, cpus: int, threads: str, cure: str) -> None:
        plan = plan_job(make_config(mode=mode), [Allocation((tasks,), (cpus,), 4)], "any")
        assert threads in " ".join(plan.overrides)
        assert ("too few CPUs" in plan.description) == bool(cure) and cure in plan.description

    def test_sync_has_a_rank_per_gpu(self) -> None:
        plan = plan_job(make_config(mode="sync"), [Allocation((1, 1), (8, 8), 4)], "sync")
        assert (plan.num_ranks, plan.overrides) == (8, ("roles.worker_threads=2",))

    def test_more_tasks_than_gpus_stand(self) -> None:
        plan = plan_job(make_config(mode="sync"), [Allocation((4,), (8,), 2)], "sync")
        assert (plan.num_ranks, plan.is_changed) == (4, False)

    def test_gpus_do_not_count_for_training_on_the_cpu(self) -> None:
        plan = plan_job(make_config(device="cpu"), [Allocation((2,), (8,), 4)], "async")
        assert (plan.num_ranks, plan.is_changed) == (2, False)

    @pytest.mark.parametrize(
        ("values", "allocation", "kind", "message"),
        [
            ({}, Allocation((1,), (4,), 0), "async", r"1 rank\(s\) .* 1 server.*--ntasks-per-node 3"),
            ({"roles": {"servers": 4}}, Allocation((2, 2), (4, 4), 0), "any", "4 server.*--ntasks-per-node 4"),
            ({"mode": "sync"}, Allocation((2,), (4,), 0), "async", "mode=sync .*slurm/train-sync.sbatch"),
            ({}, Allocation((2,), (4,), 0), "sync", "mode=async-global .*slurm/train-async.sbatch"),
        ],
    )
    def test_refuses_what_cannot_run(self, values: Any, allocation: Allocation, kind: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            plan_job(make_config(**values), [allocation], kind)


class TestServersApart:
    """A heterogeneous job: the first component for the servers."""

    GROUPS = (Allocation((1, 1), (2, 2), node_list="c[0-1]"), Allocation((4, 3), (32, 32), node_list="g[0-1]"))

    def test_the_first_component_holds_the_servers(self) -> None:
        plan = plan_job(make_config(), self.GROUPS, "async")
        assert (plan.ranks_per_node, plan.num_ranks, plan.is_changed) == ((1, 1, 4, 3), 9, False)
        assert plan.overrides == ("roles.servers=2", "roles.placement=first", "roles.worker_threads=8")

    @pytest.mark.parametrize(
        ("values", "groups", "message"),
        [
            ({"roles": {"servers": 3}}, GROUPS, r"roles.servers=3, but the first component .* 2 task"),
            ({"mode": "sync"}, GROUPS, "mode=sync has no servers for the first component"),
            ({}, GROUPS * 2, "4 components: give two"),
        ],
    )
    def test_refuses_what_cannot_run(self, values: Any, groups: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            plan_job(make_config(**values), groups, "any")

    def test_reads_the_components(self) -> None:
        environment = {"SLURM_JOB_ID": "1", "SLURM_HET_SIZE": "2", "SLURM_GPUS_ON_NODE": "9"}
        for index, (tasks, cpus, nodes) in enumerate((("1(x2)", "2(x2)", "c[0-1]"), ("4,3", "32(x2)", "g[0-1]"))):
            for name, value in (("TASKS_PER_NODE", tasks), ("JOB_CPUS_PER_NODE", cpus), ("JOB_NODELIST", nodes)):
                environment[f"SLURM_{name}_HET_GROUP_{index}"] = value
        assert read_allocation(environment) == self.GROUPS


class TestStep:
    """The command before `train …`."""

    PLAN = JobPlan(Path("runs/x"), (2, 2), False, (), "")
    CHANGED = JobPlan(Path("runs/x"), (5, 5), True, (), "")
    APART = JobPlan(Path("runs/x"), (1, 4), False, (), "")
    MPICH = ("srun", "--mpi=pmi2", "--kill-on-bad-exit=1", "--cpu-bind=none")

    def step(self, plan: JobPlan, flavour: Any, hosts: Any = ((),)) -> tuple[str, ...]:
        return step_command(plan, flavour, hosts, Path("/opt/slurm"))

    def test_open_mpi_is_started_by_mpirun(self) -> None:
        assert self.step(self.PLAN, "openmpi") == ("hpcasync", "launch", "-n", "4", "--")
        expected = ("hpcasync", "launch", "-n", "10", "--map-by", "ppr:5:node:oversubscribe", "--")
        assert self.step(self.CHANGED, "openmpi") == expected

    def test_mpich_is_started_by_srun(self) -> None:
        assert self.step(self.PLAN, "mpich") == (*self.MPICH, "hpcasync")
        ranks = ("--ntasks=10", "--ntasks-per-node=5", "--overcommit")
        assert self.step(self.CHANGED, "mpich") == (*self.MPICH, *ranks, "hpcasync")

    def test_a_heterogeneous_job_is_one_job_of_mpi(self) -> None:
        hosts = (("c0",), ("g0",))
        assert self.step(self.APART, "mpich", hosts) == (*self.MPICH, "--het-group=0,1", "hpcasync")
        words = self.step(self.APART, "openmpi", hosts)
        assert words[words.index("--host") + 1] == "c0:1,g0:4"
        assert words[words.index("plm_ssh_agent") + 1] == "/opt/slurm/srun-agent"


class TestCommand:
    def test_assignments_survive_the_shell(self) -> None:
        run_dir, overrides = Path("runs/it's $HOME"), ("a=[1, 2]", "b=*")
        shell = assignments(JobPlan(run_dir, (3,), False, overrides, ""), ("srun", "-n 3"))
        done = run_bash(f'{shell}\nprintf "%s\\n" "$run_dir" "${{step[@]}}" "${{overrides[@]}}"')
        assert done.stdout.splitlines() == [str(run_dir), "srun", "-n 3", *overrides]

    def test_prints_the_plan(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "x.yaml"
        config.write_text("name: base\ndata: {path: data/x}\nstop: {updates: 1}\n")
        environment = {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "2"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["async", str(config), "seed=2"]) == 0
        printed = capsys.readouterr().out
        assert "run_dir=runs/base-async-global-seed2" in printed and "step=(" in printed
        assert main(["sync", str(config)]) == 2
        assert "train-async.sbatch" in capsys.readouterr().err


class TestScripts:
    @pytest.mark.parametrize("path", ALL_SCRIPTS, ids=lambda path: path.stem)
    def test_is_bash_and_leaves_the_site_to_site_sh(self, path: Path) -> None:
        subprocess.run(["bash", "-n", str(path)], check=True)
        options = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
        names = [option.partition("=")[0] for option in options]
        assert {"--job-name", "--output", "--open-mode", "--requeue"} <= set(names)
        assert not {"--account", "--partition", "--qos", "--time", "--constraint", "--mem"} & set(names)

    def test_all_find_the_common_part_in_the_same_way(self) -> None:
        starts = {
            path.read_text().split("# sbatch runs a copy")[1].split("prepare_environment\n")[0] for path in ALL_SCRIPTS
        }
        assert len(ALL_SCRIPTS) == 6
        assert len(starts) == 1

    def test_a_job_without_hpcasync_says_where_to_put_it_right(self, tmp_path: Path) -> None:
        site = tmp_path / "site.sh"
        site.write_text("hpcasync_environment() { PATH=/usr/bin:/bin; }\n")
        done = run_bash("prepare_environment", HPCASYNC_SITE=str(site))
        assert done.returncode == 2
        assert "hpcasync is not on PATH of the job: say in slurm/site.sh" in done.stderr

    def test_steps_are_given_what_the_script_has(self) -> None:
        """Whatever `sbatch --export=NONE` has said of the user's own environment."""
        program = "prepare_environment; [[ -z ${SLURM_EXPORT_ENV+set} ]]"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = run_bash(program, PATH=path, SLURM_EXPORT_ENV="NONE", SLURM_JOB_NAME="x", SLURM_JOB_NODELIST="n[0-1]")
        assert done.returncode == 0
        assert re.fullmatch(r"hpcasync: \S+T\S+, job 7 \(x\) on n\[0-1\], start number 1\n", done.stderr)

    def test_an_active_environment_is_kept(self) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = run_bash('before=$PATH; prepare_environment; [[ $PATH == "$before" ]]', PATH=path)
        assert done.returncode == 0, done.stderr


class TestRequeue:
    """`choose_flags`: what train is told at the first and at later starts of a job."""

    PROGRAM = 'flags=($GIVEN); choose_flags; echo "${flags[@]}"'

    @pytest.fixture
    def run_dir(self, tmp_path: Path) -> Path:
        return tmp_path / "runs" / "x-sync-seed1"

    def start(self, run_dir: Path, restarts: int, given: str = "") -> str:
        done = run_bash(self.PROGRAM, run_dir=str(run_dir), SLURM_RESTART_COUNT=str(restarts), GIVEN=given)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def make_run(self, run_dir: Path, *checkpoints: str, age_seconds: float = -1) -> None:
        for name in checkpoints:
            (run_dir / "checkpoints" / name).mkdir(parents=True)
            (run_dir / "checkpoints" / name / "state.json").touch()
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").touch()
        at = time.time() - age_seconds
        os.utime(run_dir / "config.yaml", (at, at))

    @pytest.mark.parametrize("given", ["", "--overwrite", "--resume"])
    def test_the_first_start_does_as_it_is_told(self, run_dir: Path, given: str) -> None:
        self.make_run(run_dir, "u00000010")
        assert self.start(run_dir, 0, given) == given

    @pytest.mark.parametrize("given", ["", "--overwrite"])
    def test_goes_on_from_what_the_job_did_before(self, run_dir: Path, given: str) -> None:
        self.start(run_dir, 0, given)
        self.make_run(run_dir, "u00000010")
        assert self.start(run_dir, 1, given) == "--resume"
        assert self.start(run_dir, 2, given) == "--resume"

    def test_begins_again_without_a_complete_checkpoint(self, run_dir: Path) -> None:
        self.start(run_dir, 0)
        self.make_run(run_dir, "u00000010.partial")
        assert self.start(run_dir, 1) == "--overwrite"

    @pytest.mark.parametrize("given", ["", "--overwrite", "--resume"])
    def test_a_run_from_before_the_job_is_not_its_own(self, run_dir: Path, given: str) -> None:
        self.make_run(run_dir, "u00000010", age_seconds=60)
        self.start(run_dir, 0, given)
        assert self.start(run_dir, 1, given) == given

    def test_a_restart_whose_first_start_left_no_mark_is_a_first_start(self, run_dir: Path) -> None:
        self.make_run(run_dir, "u00000010")
        assert self.start(run_dir, 1, "--overwrite") == "--overwrite"


class TestPreemption:
    """`pass_signals`: a command that has saved and ended is put back into the queue."""

    def run(self, tmp_path: Path, command: str, *, requeue_code: int = 0) -> "subprocess.CompletedProcess[str]":
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "scontrol $*"; exit {requeue_code}\n')
        scontrol.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return run_bash(f"pass_signals bash -c {shlex.quote(command)}", PATH=path)

    def test_the_exit_code_is_that_of_training(self) -> None:
        assert f"\nEXIT_PREEMPTED={PREEMPTED}\n" in (SCRIPTS / "common.sh").read_text()

    def test_a_preempted_job_is_requeued(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, f"exit {PREEMPTED}")
        assert (done.returncode, done.stdout) == (PREEMPTED, "scontrol requeue 7\n")

    def test_a_job_that_died_of_the_signal_is_requeued(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "kill -USR1 $PPID; sleep 0.3; kill -USR1 $$; sleep 9")
        assert (done.returncode, done.stdout) == (138, "scontrol requeue 7\n")

    @pytest.mark.parametrize("code", [0, 1, 86, 138])
    def test_no_other_is(self, tmp_path: Path, code: int) -> None:
        done = self.run(tmp_path, f"exit {code}")
        assert (done.returncode, done.stdout) == (code, "")

    def test_a_job_that_may_not_be_requeued_says_what_to_do(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, f"exit {PREEMPTED}", requeue_code=1)
        assert done.returncode == PREEMPTED and "submit it again with --resume" in done.stderr

    @pytest.mark.parametrize("name", ["train-async", "train-sync", "train-hetero"])
    def test_training_is_warned(self, name: str) -> None:
        assert "#SBATCH --signal=B:USR1@120\n" in (SCRIPTS / f"{name}.sbatch").read_text()


class TestProgress:
    """`has_got_forward`: a job that its time limit stops before it gets anywhere is not queued for ever."""

    def start(self, tmp_path: Path, number: int, checkpoint: str = "") -> "subprocess.CompletedProcess[str]":
        """A start that is warned, and makes a checkpoint or none."""
        for name in ("scontrol", "squeue"):
            (tmp_path / name).write_text('#!/bin/sh\necho "$0 $*" | grep -o "scontrol .*"; exit 0\n')
            (tmp_path / name).chmod(0o755)
        run_dir = tmp_path / "runs" / "x-sync-seed1"
        saved = run_dir / "checkpoints" / checkpoint
        make = f"mkdir -p {saved}; touch {run_dir}/config.yaml {saved}/state.json; " if checkpoint else ""
        train = f"pass_signals bash -c '{make}exit {PREEMPTED}'"
        program = f"flags=(); choose_flags; before=$(newest_checkpoint); {train}"
        path = f"{tmp_path}:{os.environ['PATH']}"
        return run_bash(program, run_dir=str(run_dir), SLURM_RESTART_COUNT=str(number), PATH=path)

    def marks(self, tmp_path: Path) -> list[str]:
        return [path.name for path in (tmp_path / "runs").glob(".*")]

    def test_two_starts_without_a_checkpoint_are_enough(self, tmp_path: Path) -> None:
        done = self.start(tmp_path, 0, "u00000010")
        assert (done.returncode, done.stdout) == (PREEMPTED, "scontrol requeue 7\n"), done.stderr
        done = self.start(tmp_path, 1)
        assert (done.returncode, done.stdout) == (PREEMPTED, "scontrol requeue 7\n")
        assert self.marks(tmp_path) == [".x-sync-seed1.job-7"]
        done = self.start(tmp_path, 2)
        assert (done.returncode, done.stdout) == (PREEMPTED, "")
        assert "two starts of job 7 have brought no new checkpoint" in done.stderr and "--time" in done.stderr
        assert self.marks(tmp_path) == []

    def test_a_checkpoint_in_between_counts(self, tmp_path: Path) -> None:
        for number, checkpoint in enumerate(["", "u00000010", "", "u00000020", ""]):
            assert self.start(tmp_path, number, checkpoint).stdout == "scontrol requeue 7\n"

    @pytest.mark.parametrize("code", [0, 2, 1])
    def test_no_mark_stays_of_a_job_that_has_ended(self, tmp_path: Path, code: int) -> None:
        program = f"flags=(); choose_flags; before=; pass_signals bash -c 'exit {code}'"
        run_dir = tmp_path / "runs" / "x"
        run_dir.parent.mkdir()
        (run_dir.parent / ".x.job-3").touch()  # of a job that was cancelled
        (tmp_path / "squeue").write_text(
            "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n"
        )
        (tmp_path / "squeue").chmod(0o755)
        done = run_bash(program, run_dir=str(run_dir), PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert done.returncode == code, done.stderr
        assert self.marks(tmp_path) == []


class TestSignals:
    """`pass_signals`: bash alone would act on a signal only when its command has ended."""

    @pytest.mark.parametrize("code", [0, 3])
    def test_keeps_the_exit_code(self, code: int) -> None:
        assert run_bash(f"pass_signals bash -c 'exit {code}'").returncode == code

    def test_hands_every_usr1_on_and_waits_for_the_end(self, tmp_path: Path) -> None:
        ready, seen = tmp_path / "ready", tmp_path / "seen"
        count_two = "while ((n < 2)); do sleep 0.02; done; exit 5"
        child = f"n=0; trap 'n=$((n + 1)); echo $n >>{seen}' USR1; touch {ready}; {count_two}"
        program = f"source {SCRIPTS}/common.sh; set -eu; pass_signals bash -c {shlex.quote(child)}"
        process = subprocess.Popen(["bash", "-c", program])
        try:
            self.wait_for(ready.exists)
            for count in (1, 2):
                process.send_signal(signal.SIGUSR1)
                self.wait_for(lambda count=count: seen.exists() and len(seen.read_text().split()) == count)
            assert process.wait(10) == 5
        finally:
            process.kill()

    def wait_for(self, condition: Any) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [([], {}, "^ucx"), (["mlx5_0"], {}, ""), ([], {"OMPI_MCA_osc": "rdma"}, "rdma")],
)
def test_one_sided_traffic_leaves_ucx_only_where_it_has_no_hardware(
    tmp_path: Path, devices: list[str], given: dict[str, str], expected: str
) -> None:
    for device in devices:
        (tmp_path / device).mkdir()
    script = 'set -eu; source slurm/site.sh; hpcasync_environment; printf %s "${OMPI_MCA_osc:-}"'
    environment = {"PATH": os.environ["PATH"], "HPCASYNC_ROOT": str(tmp_path), "HPCASYNC_FABRICS": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], env=environment | given, capture_output=True, text=True, cwd=SCRIPTS.parent, check=True
    )
    assert done.stdout == expected
