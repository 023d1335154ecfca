"""The jobs of a training run: what each asks for and does; a pure function of configuration and request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcasync.config.roles import CPUS_PER_GPU_WORKER, SERVER_THREADS
from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError
from hpcasync.slurm.environment import Allocation
from hpcasync.slurm.plan import plan_job, servers_of
from hpcasync.slurm.resources import Resources, with_gpus
from hpcasync.slurm.script import WARNING_SECONDS, BatchJob

Kind = Literal["prepare", "train", "evaluate"]
KINDS: tuple[Kind, ...] = ("prepare", "train", "evaluate")


@dataclass(frozen=True)
class Request:
    """What the user asks for beside the configuration.

    Attributes:
        nodes, gpus_per_node, partition, account, memory, constraint, time, requeue: of the training
            job, as sbatch's options of these names.
        cpus_per_task: None: 1, or what a worker on a GPU needs.
        gres: of the training job; counts its GPUs where gpus_per_node does not. extra: options of sbatch, for all jobs.
        tasks_per_node: ranks on each node; None: a worker for each GPU, or one, and the servers beside them.
        servers: servers on all nodes; None: as configured, else one for each node.
        server_nodes: nodes of their own for the servers, as another component of the job; 0: beside the workers.
        server_partition: of those nodes; empty: the same.
        chain: which jobs; each begins when the one before it has ended well.
        prepare, evaluate: arguments of `hpcasync data prepare` but for --out, and of `hpcasync evaluate RUN_DIR --all`.
    """

    nodes: int = 1
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    partition: str = ""
    account: str = ""
    memory: str = ""
    constraint: str = ""
    gres: str = ""
    extra: tuple[str, ...] = ()
    time: str = ""
    requeue: bool = True
    servers: int | None = None
    server_nodes: int = 0
    server_partition: str = ""
    chain: tuple[Kind, ...] = ("train",)
    prepare: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()

    @property
    def num_cpus(self) -> int:
        return self.cpus_per_task or (CPUS_PER_GPU_WORKER if self.gpus_per_node else 1)


def plan_jobs(path: Path, overrides: tuple[str, ...], request: Request) -> tuple[BatchJob, ...]:
    """The jobs of a chain, in order.

    Raises:
        UserError: the configuration is not valid, or does not fit the ranks.
    """
    _check_chain(request)
    config = load_config(path, overrides + (() if request.servers is None else (f"roles.servers={request.servers}",)))
    jobs = {
        "prepare": lambda: _prepare(config, request),
        "train": lambda: _train(path, overrides, config, request),
        "evaluate": lambda: _evaluate(config, request),
    }
    return tuple(jobs[kind]() for kind in request.chain)


def _check_chain(request: Request) -> None:
    order = [KINDS.index(kind) for kind in request.chain]
    if not order or order != sorted(set(order)):
        raise UserError(
            f"--chain {','.join(request.chain)}: give one or more of {', '.join(KINDS)}, each once, in this order"
        )
    if ("prepare" in request.chain) != bool(request.prepare):
        raise UserError(
            "--chain with prepare and --prepare belong together: `--chain prepare,train --prepare 'SRC TGT --valid SRC "
            "TGT'` gives the arguments of `hpcasync data prepare` but for --out, which is data.path"
        )
    if "--out" in request.prepare:
        raise UserError("--prepare has an --out: leave it out, the corpus goes to data.path of the configuration")
    if request.evaluate and "evaluate" not in request.chain:
        raise UserError("--evaluate has arguments for a job that --chain does not name: add evaluate to it")


def _prepare(config: Config, request: Request) -> BatchJob:
    cpus = _training_components(config, request)[-1].cpus_per_node
    command = ("hpcasync", "data", "prepare", "--processes", str(cpus), *request.prepare, "--out")
    return BatchJob(
        kind="prepare",
        name=f"{config.name}-prepare",
        components=(_single(request, cpus=cpus, gpus=0),),
        command=(*command, str(config.data.path)),
        time=request.time,
        requeue=request.requeue,
    )


def _train(path: Path, overrides: tuple[str, ...], config: Config, request: Request) -> BatchJob:
    components = _training_components(config, request)
    roles = () if config.mode == "sync" else (f"roles.servers={_num_servers(config, request)}",)
    return BatchJob(
        kind="train",
        name=config.name,
        components=components,
        command=("train_job", "any", str(path), *overrides, *roles),
        time=request.time,
        requeue=request.requeue,
        signal_seconds=WARNING_SECONDS,
        notes=(plan_job(config, _groups(components), "any").description,),
    )


def _evaluate(config: Config, request: Request) -> BatchJob:
    cpus, gpus = request.num_cpus, min(1, request.gpus_per_node)
    command = ("hpcasync", "evaluate", "--all", "--threads", str(cpus), *request.evaluate)
    return BatchJob(
        kind="evaluate",
        name=f"{config.name}-evaluate",
        components=(_single(request, cpus=cpus, gpus=gpus),),
        command=(*command, str(config.output_dir)),
        time=request.time,
        requeue=request.requeue,
    )


def _num_servers(config: Config, request: Request) -> int:
    """Servers on all nodes."""
    return servers_of(config, request.nodes, request.gpus_per_node) or request.server_nodes or request.nodes


def _training_components(config: Config, request: Request) -> tuple[Resources, ...]:
    if request.server_nodes and config.mode == "sync":
        raise UserError("--server-nodes: mode=sync has no servers; leave it out, or give an asynchronous mode")
    num_servers = 0 if config.mode == "sync" else _num_servers(config, request)
    num_workers = max(1, request.gpus_per_node)
    if not request.server_nodes:
        tasks = request.tasks_per_node or num_workers + -(-num_servers // request.nodes)
        if request.gpus_per_node and not request.tasks_per_node and num_servers % request.nodes:
            raise UserError(
                f"{num_servers} servers on {request.nodes} nodes leave ranks without a GPU on some of them: give "
                f"--servers a multiple of --nodes {request.nodes}, or say --ntasks-per-node"
            )
        return (_component(request, request.nodes, tasks),)
    if num_servers % request.server_nodes:
        raise UserError(
            f"--servers {num_servers} on --server-nodes {request.server_nodes}: give a multiple, so that each node has "
            "as many"
        )
    servers = Resources(
        nodes=request.server_nodes,
        tasks_per_node=num_servers // request.server_nodes,
        cpus_per_task=config.roles.server_threads or SERVER_THREADS,
        partition=request.server_partition or request.partition,
        account=request.account,
        extra=request.extra,
    )
    return servers, _component(request, request.nodes, request.tasks_per_node or num_workers)


def _component(request: Request, nodes: int, tasks: int) -> Resources:
    return Resources(
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=request.num_cpus,
        gpus_per_node=request.gpus_per_node,
        partition=request.partition,
        account=request.account,
        memory=request.memory,
        constraint=request.constraint,
        gres=request.gres,
        extra=request.extra,
    )


def _single(request: Request, *, cpus: int, gpus: int) -> Resources:
    """One task on one node."""
    return Resources(
        cpus_per_task=cpus,
        gpus_per_node=gpus,
        partition=request.partition,
        account=request.account,
        constraint=request.constraint,
        gres=with_gpus(request.gres, gpus) if request.gres else "",
        extra=request.extra,
    )


def _groups(components: Sequence[Resources]) -> tuple[Allocation, ...]:
    """What SLURM will give."""
    return tuple(
        Allocation(
            (component.tasks_per_node,) * component.nodes,
            (component.cpus_per_node,) * component.nodes,
            component.gpus_per_node,
        )
        for component in components
    )
