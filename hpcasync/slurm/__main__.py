"""`python -m hpcasync.slurm sync|async|any CONFIG [key=value …]`: how a batch script starts its job, for its shell."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcasync.config.schema import load_config
from hpcasync.errors import UserError
from hpcasync.launch.locate import find_library
from hpcasync.slurm.environment import Allocation, read_allocation
from hpcasync.slurm.plan import JobPlan, plan_job
from hpcasync.slurm.requeue import flags_of_start, start_mark
from hpcasync.slurm.step import step_command


def main(arguments: list[str]) -> int:
    """Print the assignments on stdout and what was decided on stderr; 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m hpcasync.slurm", description=__doc__)
    parser.add_argument("kind", choices=("sync", "async", "any"))
    parser.add_argument("--scripts", type=Path, default=Path("slurm"), help="Where srun-agent is.")
    parser.add_argument("--flags", default="", help="Of `hpcasync train`, with blanks between them.")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.config, tuple(given.overrides))
        groups = read_allocation()
        plan = plan_job(config, groups, given.kind)
        step = step_command(plan, find_library().flavour, _hosts(groups), given.scripts)
    except UserError as error:
        print(f"hpcasync: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"hpcasync: {plan.description}", file=sys.stderr)
    if step[0] == "srun":  # `launch` prints the line of its mpirun
        print(f"hpcasync: {shlex.join(step)} train …", file=sys.stderr)
    flags = flags_of_start(plan.run_dir, given.flags.split())
    if flags != given.flags.split():
        number = int(os.environ["SLURM_RESTART_COUNT"]) + 1
        which = f"start number {number} of job {os.environ['SLURM_JOB_ID']}"
        print(f"hpcasync: {which}: train {shlex.join(flags)}", file=sys.stderr)
    print(assignments(plan, step, flags, start_mark(plan.run_dir)))
    return 0


def assignments(plan: JobPlan, step: Sequence[str], flags: Sequence[str], started: Path) -> str:
    """The plan in bash: run_dir and started, and the arrays step, overrides and flags."""
    return "\n".join(
        [
            f"run_dir={shlex.quote(str(plan.run_dir))}",
            f"started={shlex.quote(str(started))}",
            f"step=({shlex.join(step)})",
            f"overrides=({shlex.join(plan.overrides)})",
            f"flags=({shlex.join(flags)})",
        ]
    )


def _hosts(groups: Sequence[Allocation]) -> list[list[str]]:
    """The nodes of each component; not looked up where there is one only, which mpirun and srun know."""
    if len(groups) == 1:
        return [[]]
    command = ("scontrol", "show", "hostnames")
    return [subprocess.check_output([*command, group.node_list], text=True).split() for group in groups]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
