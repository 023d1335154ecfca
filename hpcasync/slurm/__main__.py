"""`python -m hpcasync.slurm sync|async|any CONFIG [key=value …]`: the plan of a job, as assignments for its shell."""

import argparse
import shlex
import sys
from pathlib import Path

from hpcasync.config import load_config
from hpcasync.errors import UserError
from hpcasync.slurm.environment import Allocation
from hpcasync.slurm.plan import JobPlan, plan_job


def main(arguments: list[str]) -> int:
    """Print the assignments on stdout and what was decided on stderr; 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m hpcasync.slurm", description=__doc__)
    parser.add_argument("kind", choices=("sync", "async", "any"))
    parser.add_argument("--suffix", default="", help="Of the run's name.")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args(arguments)
    overrides = tuple(given.overrides)
    try:
        config = load_config(given.config, overrides)
        name: tuple[str, ...] = ()
        if given.suffix:
            name = (f"name={config.name}{given.suffix}",)
            config = load_config(given.config, overrides + name)
        plan = plan_job(config, Allocation.from_environment(), given.kind)
    except UserError as error:
        print(f"hpcasync: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"hpcasync: {plan.description}", file=sys.stderr)
    print(assignments(plan, name))
    return 0


def assignments(plan: JobPlan, name: tuple[str, ...] = ()) -> str:
    """The plan in bash: run_dir, num_ranks, and the arrays placement and overrides."""
    return "\n".join(
        [
            f"run_dir={shlex.quote(str(plan.run_dir))}",
            f"num_ranks={plan.num_ranks}",
            f"placement=({shlex.join(plan.placement)})",
            f"overrides=({shlex.join(name + plan.overrides)})",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
