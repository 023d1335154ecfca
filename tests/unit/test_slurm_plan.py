"""What a job of SLURM starts: read from its allocation, planned, and written for the shell."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcasync.config.schema import Config, parse_config
from hpcasync.errors import UserError
from hpcasync.slurm.__main__ import assignments, main
from hpcasync.slurm.environment import Allocation, allocated_cpus, check_world_size, read_allocation
from hpcasync.slurm.plan import JobPlan, plan_job
from hpcasync.slurm.step import step_command


def make_config(**values: Any) -> Config:
    return parse_config({"data": {"path": "data/x"}, "stop": {"updates": 1}, **values}, "test")


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
        shell = assignments(JobPlan(run_dir, (3,), False, overrides, ""), ("srun", "-n 3"), ["--resume"], Path("a b"))
        program = f'{shell}\nprintf "%s\\n" "$run_dir" "${{step[@]}}" "${{overrides[@]}}" "${{flags[@]}}" "$started"'
        done = subprocess.run(["bash", "-euc", program], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [str(run_dir), "srun", "-n 3", *overrides, "--resume", "a b"]

    def test_prints_the_plan(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
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
