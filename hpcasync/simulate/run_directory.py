"""The directory of a simulated run: that of a real one, with the description of its cluster."""

from pathlib import Path

from hpcasync.config.schema import Config, load_config
from hpcasync.config.strict import flatten
from hpcasync.errors import UserError
from hpcasync.simulate.cluster import MEASURED, ClusterConfig, load_cluster

CLUSTER_FILE = "cluster.yaml"
# What does not change what has happened before: a run that goes on may have other values.
_MAY_DIFFER = (
    "stop.updates", "stop.tokens", "stop.seconds", "stop.patience", "stop.rejected", "stop.diverged",
    "optimizer.learning_rate", "schedule.", "validation.", "checkpoint.", "logging.", "roles.server_threads",
    "roles.worker_threads", "device", "run_dir", "data.path",
)  # fmt: skip


def check_overwrite(run_dir: Path, *, overwrite: bool) -> None:
    """Refuse to remove a real run."""
    if overwrite and (run_dir / "config.yaml").exists() and not (run_dir / CLUSTER_FILE).exists():
        raise UserError(
            f"{run_dir} holds a run that was not simulated, which --overwrite does not remove here: set name or run_dir"
        )


def cluster_of_run(run_dir: Path, cluster_file: Path | None, overrides: tuple[str, ...]) -> ClusterConfig:
    """The cluster for going on with a run: as given, else as in the run; what was measured then stays."""
    described = run_dir / CLUSTER_FILE
    if not described.is_file():
        raise UserError(f"--resume: {run_dir} holds no simulated run: leave --resume out to start one")
    before = load_cluster(described)
    given = load_cluster(cluster_file or described, overrides)
    measured = before.server.model_dump()
    server = {key: measured[key] if value == MEASURED else value for key, value in given.server.model_dump().items()}
    return given.changed(server=server)


def check_same_run(config: Config, cluster: ClusterConfig) -> None:
    """Refuse to go on with a run on another cluster, or with settings that would have made it another run."""
    run_dir = config.output_dir
    if not (run_dir / CLUSTER_FILE).is_file():
        raise UserError(f"--resume: {run_dir} holds a run that was not simulated: go on with `hpcasync train --resume`")
    before = flatten(load_config(run_dir / "config.yaml").to_dict())
    before |= flatten(load_cluster(run_dir / CLUSTER_FILE).to_dict(), "cluster.")
    now = flatten(config.to_dict()) | flatten(cluster.to_dict(), "cluster.")
    different = [key for key, value in now.items() if value != before.get(key) and not key.startswith(_MAY_DIFFER)]
    if different:
        key = different[0]
        raise UserError(
            f"--resume: {run_dir} was simulated with {key}={before.get(key)}, now {now[key]}: go on with what it was "
            "started with, or start anew with --overwrite"
        )
