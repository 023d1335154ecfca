"""How ranks become servers and workers: the section `roles` of a configuration."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hpcasync.config.section import MOST_THREADS, Section

PER_DEVICE = "per-device"
SERVER_THREADS = 2
# What a worker needs whose GPU is not to wait for it: Python, the batches, the copies.
CPUS_PER_GPU_WORKER = 3


def _check_servers(value: Any) -> Any:
    if value == PER_DEVICE or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"must be a positive number or {PER_DEVICE}, not {value}")


class RolesConfig(Section):
    """How ranks become servers and workers. `sync` has no servers: every rank is a worker."""

    servers: Annotated[int | str, BeforeValidator(_check_servers)] = Field(
        1,
        description="ranks that own shards of the parameters; per-device: one beside the workers of each GPU (or, with "
        "device=cpu or server_device=cpu, of each host); ignored by sync",
    )
    server_threads: int | None = Field(
        None,
        ge=1,
        le=MOST_THREADS,
        description="threads of a server's sums and optimizer steps; default: 2, for workers that wait for an update "
        "leave cores idle (1 where each rank has cores of its own then), or what workers on GPUs leave of the host's",
    )
    server_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="where servers hold their shard, its optimizer state and sums; cuda: GPUs of their host in turn; "
        "auto: cuda where all workers are on GPUs, no parts of them (MIG); in a program cpu",
    )
    worker_threads: int | None = Field(
        None, ge=1, le=MOST_THREADS, description="intra-op threads of a worker; default: its share of cores"
    )
    placement: Literal["spread", "first"] = Field(
        "spread", description="of servers: dealt out to the hosts in turn; or the first ranks, wherever they are"
    )
    bind: Literal["auto", "always", "none"] = Field(
        "auto",
        description="auto: where the threads of a host's ranks fit its cores, and these are the job's own (by affinity "
        "or allocation), each rank keeps to cores of its own; always: also on a machine that others may use",
    )
