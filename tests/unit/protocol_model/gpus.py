"""What a worker's GPU does: at any later moment, each of its two streams in the order in which it was asked.

Its host waits where `ps.worker.client` and `comm.mapped_window` do (`has_to_wait` and the flush), and nowhere else.
"""

from collections.abc import Iterator

from protocol_model.options import Options
from protocol_model.world import At, Computation, Copy, Gpu, Worker, World, fill, put, require, set_worker


def has_to_wait(options: Options, worker: Worker, index: int) -> bool:
    """Whether a worker's next step waits for its GPU."""
    gpu, sequence = worker.gpu, worker.announced + 1
    if gpu is None:
        return False
    if worker.at in (At.BUFFER, At.WRITING):
        return bool(gpu.copying) and "no wait for the pull" not in options.bugs
    if worker.at is At.DRAW:
        is_coming = any(copy.content is not None for copy in gpu.copying)
        return is_coming and "no wait for what was received" not in options.bugs
    if worker.at is At.WRITE:
        is_whole = options.num_tokens(index, sequence) > 0
        bug = "no wait for the computation" if is_whole else "no wait for what is not pushed"
        return any(asked.sequence <= sequence for asked in gpu.computing) and bug not in options.bugs
    return False


def ask_for_gradient(world: World, index: int, sequence: int) -> World:
    """Of the parameters that the worker has now, unless it has been asked for ahead."""
    worker = world.workers[index]
    gpu = worker.gpu
    if gpu is None or sequence <= gpu.num_asked:
        return world
    asked = Computation(sequence, worker.version, gpu.current)
    return _with_gpu(world, index, gpu._replace(num_asked=sequence, computing=(*gpu.computing, asked)))


def ask_to_store(world: World, index: int) -> World:
    """The gradient in the slot at a server."""
    worker = world.workers[index]
    gpu = worker.gpu
    assert gpu is not None
    copy = Copy(worker.server, sequence=worker.announced + 1)
    return _with_gpu(world, index, gpu._replace(copying=(*gpu.copying, copy)))


def ask_for_shard(worker: Worker) -> Worker:
    """Of the version that is pulled."""
    gpu = worker.gpu
    assert gpu is not None
    copy = Copy(worker.server, version=worker.target, vector=_pulled_into(gpu))
    return worker._replace(gpu=gpu._replace(copying=(*gpu.copying, copy)))


def accept(options: Options, worker: Worker) -> Worker:
    """What has been received is copied to where the rest of the pull is; then it is computed with."""
    gpu = worker.gpu
    if gpu is None:
        return worker
    vector, received = _pulled_into(gpu), zip(sorted(options.far), worker.read, strict=True)
    copies = (Copy(server, version=worker.target, vector=vector, content=content) for server, content in received)
    return worker._replace(gpu=gpu._replace(current=vector, copying=(*gpu.copying, *copies)))


def take_parameters(worker: Worker) -> Worker:
    """A pull in one step."""
    gpu = worker.gpu
    if gpu is None:
        return worker
    vector = _pulled_into(gpu)
    whole = (worker.version,) * len(gpu.parameters[vector])
    return worker._replace(gpu=gpu._replace(current=vector, parameters=_with(gpu.parameters, vector, whole)))


def gpu_steps(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    """The GPU comes to what is next in one of its streams, also when the worker has died."""
    gpu = world.workers[index].gpu
    if gpu is None:
        return
    if gpu.computing:
        first = gpu.computing[0]
        verb = "ends" if first.has_begun else "begins"
        yield f"worker {index}'s GPU {verb} gradient {first.sequence}", _compute(options, world, index, gpu)
    if gpu.copying:
        copy = gpu.copying[0]
        if copy.sequence == 0:
            yield f"worker {index}'s GPU copies server {copy.server}'s shard", _load(world, index, gpu)
        else:
            verb = "ends" if copy.has_begun else "begins"
            name = f"worker {index}'s GPU {verb} to write to server {copy.server}"
            yield name, _store(options, world, index, gpu)


def _compute(options: Options, world: World, index: int, gpu: Gpu) -> World:
    """Its parameters are one version when it begins, and are still when it ends."""
    first, *others = gpu.computing
    found = gpu.parameters[first.vector]
    require(set(found) == {first.version}, f"a gradient of version {first.version} is computed from {found}")
    if first.has_begun:
        content, computing = first.sequence, tuple(others)
    else:
        content, computing = -first.sequence, (first._replace(has_begun=True), *others)
    gpu = gpu._replace(computing=computing)
    if not options.in_place:
        return _with_gpu(world, index, gpu._replace(gradient=content))
    world = _with_gpu(world, index, gpu)
    for number in range(options.num_servers):
        world = (fill if content < 0 else put)(options, world, index, number, content)
    return world


def _load(world: World, index: int, gpu: Gpu) -> World:
    copy, *others = gpu.copying
    there = world.servers[copy.server].buffers[copy.version % 2]
    parts = list(gpu.parameters[copy.vector])
    parts[copy.server] = there if copy.content is None else copy.content
    parameters = _with(gpu.parameters, copy.vector, tuple(parts))
    return _with_gpu(world, index, gpu._replace(parameters=parameters, copying=tuple(others)))


def _store(options: Options, world: World, index: int, gpu: Gpu) -> World:
    copy, *others = gpu.copying
    if not copy.has_begun:
        begun = _with_gpu(world, index, gpu._replace(copying=(copy._replace(has_begun=True), *others)))
        return fill(options, begun, index, copy.server, -copy.sequence)
    ended = _with_gpu(world, index, gpu._replace(copying=tuple(others)))
    return put(options, ended, index, copy.server, gpu.gradient, copy.sequence)


def _pulled_into(gpu: Gpu) -> int:
    return (gpu.current + 1) % len(gpu.parameters)


def _with(parameters: tuple[tuple[int, ...], ...], vector: int, parts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (*parameters[:vector], parts, *parameters[vector + 1 :])


def _with_gpu(world: World, index: int, gpu: Gpu) -> World:
    return set_worker(world, index, world.workers[index]._replace(gpu=gpu))
