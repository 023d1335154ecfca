"""The command that starts the ranks of a job inside its allocation: pure."""

from collections.abc import Sequence
from pathlib import Path

from hpcasync.launch.mpirun import Flavour
from hpcasync.slurm.plan import JobPlan


def step_command(plan: JobPlan, flavour: Flavour, hosts: Sequence[Sequence[str]], scripts: Path) -> tuple[str, ...]:
    """The words before `train …`.

    Open MPI's ranks are started by its mpirun, since SLURM's PMIx seldom fits; those of MPICH and its relatives by
    srun, whose pmi2 they speak. Open MPI's mpirun knows the first component of a heterogeneous job only: it is told the
    hosts, and reaches them through srun.

    Args:
        hosts: the nodes of each component.
    """
    if flavour == "mpich":
        # No binding: ranks choose their cores themselves.
        srun = ("srun", "--mpi=pmi2", "--kill-on-bad-exit=1", "--cpu-bind=none")
        return (*srun, *_srun_options(plan, len(hosts)), "hpcasync")
    launch = ("hpcasync", "launch", "-n", str(plan.num_ranks))
    if len(hosts) > 1:
        names = [host for component in hosts for host in component]
        slots = ",".join(f"{host}:{ranks}" for host, ranks in zip(names, plan.ranks_per_node, strict=True))
        prte = {
            "ras": "^slurm",
            "plm": "ssh",
            "plm_ssh_agent": str(scripts / "srun-agent"),
            "plm_ssh_no_tree_spawn": "1",
        }
        options = [word for name, value in prte.items() for word in ("--prtemca", name, value)]
        return (*launch, *options, "--host", slots, "--map-by", "slot", "--")
    if plan.is_changed:
        # SLURM's tasks, which mpirun takes for slots, are fewer.
        return (*launch, "--map-by", f"ppr:{plan.ranks_per_node[0]}:node:oversubscribe", "--")
    return (*launch, "--")


def _srun_options(plan: JobPlan, num_components: int) -> tuple[str, ...]:
    if num_components > 1:
        return (f"--het-group={','.join(map(str, range(num_components)))}",)
    if plan.is_changed:
        per_node = plan.ranks_per_node[0]
        return (f"--ntasks={plan.num_ranks}", f"--ntasks-per-node={per_node}", "--overcommit")
    return ()
