"""The jobs of a training run: what each asks for and does; a pure function of configuration and request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError
from hpcasync.slurm.environment import Allocation
from hpcasync.slurm.plan import CPUS_PER_GPU_WORKER, plan_job, servers_of
from hpcasync.slurm.resources import Resources, with_gpus
from hpcasync.slurm.script import SETTINGS_WORD, BatchJob

Kind = Literal["prepare", "train", "evaluate"]
KINDS: tuple[Kind, ...] = ("prepare", "train", "evaluate")
# Enough for a checkpoint, also of a large model to a slow disk.
_WARNING_SECONDS = 120


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
        sweep: settings of each task of an array; empty: no array.
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
    sweep: tuple[tuple[str, ...], ...] = ()

    @property
    def num_cpus(self) -> int:
        """CPUs of a task."""
        return self.cpus_per_task or (CPUS_PER_GPU_WORKER if self.gpus_per_node else 1)


def plan_jobs(path: Path, overrides: tuple[str, ...], request: Request) -> tuple[BatchJob, ...]:
    """The jobs of a chain, in order.

    Args:
        path, overrides: of the configuration.
        request: what else was asked for.

    Raises:
        UserError: the configuration is not valid, with the settings of any task of a sweep, or does not fit the ranks.
    """
    _check_chain(request)
    configs = _configs(path, overrides, request)
    jobs = {
        "prepare": lambda: _prepare(_base_name(path, overrides), configs, request),
        "train": lambda: _train(path, overrides, configs, request),
        "evaluate": lambda: _evaluate(_base_name(path, overrides), configs, request),
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
    if request.sweep and request.server_nodes:
        raise UserError("--array and --server-nodes: SLURM has no arrays of heterogeneous jobs; leave out one of them")


def _configs(path: Path, overrides: tuple[str, ...], request: Request) -> list[Config]:
    common = overrides + (() if request.servers is None else (f"roles.servers={request.servers}",))
    if not request.sweep:
        return [load_config(path, common)]
    name = load_config(path, common + request.sweep[0]).name
    configs = [
        load_config(path, common + _named(settings, name, index))
        for index, settings in enumerate(request.sweep, start=1)
    ]
    directories = [config.output_dir for config in configs]
    for directory in directories:
        if directories.count(directory) > 1:
            raise UserError(f"two tasks of the sweep would write the run directory {directory}: do not set name in it")
    return configs


def _named(settings: tuple[str, ...], name: str, index: int) -> tuple[str, ...]:
    """The settings of a task, with a name of its own unless they have one."""
    has_name = any(setting.startswith("name=") for setting in settings)
    return settings if has_name else (*settings, f"name={name}-{index}")


def _prepare(name: str, configs: Sequence[Config], request: Request) -> BatchJob:
    corpora = {config.data.path for config in configs}
    if len(corpora) > 1:
        raise UserError("--chain with prepare makes one corpus, but the sweep changes data.path: prepare them before")
    cpus = _training_components(configs, request)[-1].cpus_per_node
    command = ("hpcasync", "data", "prepare", "--processes", str(cpus), *request.prepare, "--out")
    return BatchJob(
        kind="prepare",
        name=f"{name}-prepare",
        components=(_single(request, cpus=cpus, gpus=0),),
        command=(*command, str(corpora.pop())),
        time=request.time,
        requeue=request.requeue,
    )


def _train(path: Path, overrides: tuple[str, ...], configs: Sequence[Config], request: Request) -> BatchJob:
    components = _training_components(configs, request)
    roles: tuple[str, ...] = ()
    if any(config.mode != "sync" for config in configs) and not _sweeps_servers(request):
        roles = (f"roles.servers={_num_servers(configs[0], request)}",)
    settings = tuple(_named(task, _base_name(path, overrides), i) for i, task in enumerate(request.sweep, start=1))
    return BatchJob(
        kind="train",
        name=_base_name(path, overrides),
        components=components,
        command=("train_job", "any", str(path), *overrides, *roles, *((SETTINGS_WORD,) if settings else ())),
        settings=settings,
        time=request.time,
        requeue=request.requeue,
        signal_seconds=_WARNING_SECONDS,
        notes=tuple(dict.fromkeys(_descriptions(configs, components, request))),
    )


def _evaluate(name: str, configs: Sequence[Config], request: Request) -> BatchJob:
    cpus, gpus = request.num_cpus, min(1, request.gpus_per_node)
    command = ("hpcasync", "evaluate", "--all", "--threads", str(cpus), *request.evaluate)
    run_dirs = [str(config.output_dir) for config in configs]
    return BatchJob(
        kind="evaluate",
        name=f"{name}-evaluate",
        components=(_single(request, cpus=cpus, gpus=gpus),),
        command=(*command, SETTINGS_WORD if request.sweep else run_dirs[0]),
        settings=tuple((run_dir,) for run_dir in run_dirs) if request.sweep else (),
        time=request.time,
        requeue=request.requeue,
    )


def _base_name(path: Path, overrides: tuple[str, ...]) -> str:
    return load_config(path, overrides).name


def _sweeps_servers(request: Request) -> bool:
    return any(setting.startswith("roles.servers=") for task in request.sweep for setting in task)


def _num_servers(config: Config, request: Request) -> int:
    """Servers on all nodes."""
    return servers_of(config, request.nodes, request.gpus_per_node) or request.server_nodes or request.nodes


def _training_components(configs: Sequence[Config], request: Request) -> tuple[Resources, ...]:
    asynchronous = [config for config in configs if config.mode != "sync"]
    if request.server_nodes and not asynchronous:
        raise UserError("--server-nodes: mode=sync has no servers; leave it out, or give an asynchronous mode")
    num_servers = max((_num_servers(config, request) for config in asynchronous), default=0)
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
        cpus_per_task=configs[0].roles.server_threads,
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


def _descriptions(configs: Sequence[Config], components: Sequence[Resources], request: Request) -> Iterator[str]:
    groups = tuple(
        Allocation(
            (component.tasks_per_node,) * component.nodes,
            (component.cpus_per_node,) * component.nodes,
            component.gpus_per_node,
        )
        for component in components
    )
    for config in configs:
        yield plan_job(config, groups, "any").description
