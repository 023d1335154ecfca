"""The timeline of a rank of a run, where one is recorded."""

from mpi4py import MPI

from hpcasync.comm.roles import Roles
from hpcasync.config.schema import RunConfig
from hpcasync.timeline import Timeline, TimelineFile
from hpcasync.train.records.ranges import with_ranges


def open_timeline(config: RunConfig, roles: Roles, rank: int) -> Timeline:
    """In the run directory, which exists (logging.timeline, logging.ranges)."""
    return with_ranges(config.logging.ranges, _open_file(config, roles, rank), config.output_dir, rank)


def _open_file(config: RunConfig, roles: Roles, rank: int) -> Timeline:
    if not config.logging.timeline:
        return Timeline()
    is_server = rank in roles.server_ranks
    return TimelineFile(
        config.output_dir,
        rank=rank,
        role="server" if is_server else "worker",
        index=(roles.server_ranks if is_server else roles.worker_ranks).index(rank),
        host=MPI.Get_processor_name(),
    )
