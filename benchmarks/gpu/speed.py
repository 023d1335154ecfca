"""Part B of the check: what takes how long, beside a bare PyTorch loop."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_loop import BareTransformer, bare_batch
from correctness import Place, backend_for, run_hpcasync, speed_and_windows
from torch import Tensor

from hpcasync import device_kernels
from hpcasync.comm.copy_stream import CopyStream
from hpcasync.comm.page_lock import PageLock
from hpcasync.comm.shards import Shard
from hpcasync.config.model import ModelConfig
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.nmt import loss as loss_module
from hpcasync.nmt.build import build_model
from hpcasync.nmt.loss import summed_cross_entropy
from hpcasync.nmt.transformer import Transformer
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.ps.worker.device_copy import DeviceCopy
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.report.spans import ACTIVITIES, read_timelines
from hpcasync.train.loop.optimizers import make_optimizers, matrix_operations, optimizer_factory

Check = tuple[str, Callable[[], dict[str, Any]]]


class Sizes:
    """What is measured: on a CPU small enough to rehearse."""

    def __init__(self, device: str) -> None:
        is_cuda = device == "cuda"
        self.device = device
        tiny = {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
        self.model: dict[str, Any] = {"preset": "base", **dict.fromkeys(tiny, 0)} if is_cuda else tiny
        self.pieces = 32_000 if is_cuda else 1_000
        self.tokens = (8_000, 25_000) if is_cuda else (100, 200)
        self.num_elements = 60_500_000 if is_cuda else 2_000_000
        self.updates = 60 if is_cuda else 6


def speed_checks(device: str, work: Path) -> Iterator[Check]:
    """Name and action of each check, in order."""
    sizes, place = Sizes(device), Place(work, device)
    yield "copies", partial(_copies, sizes)
    for where in dict.fromkeys(("cpu", device)):
        yield f"Adam, shard on {where}", partial(_apply, sizes, where)
    yield f"Muon, whole model on {device}", partial(_apply_muon, sizes)
    for tokens in sizes.tokens:
        yield f"step of {tokens:,} tokens, bf16, beside a bare loop", partial(_step, sizes, tokens)
    yield f"loss of {sizes.tokens[-1]:,} tokens, bf16", partial(_loss, sizes)
    compiled = f"compiled step of {sizes.tokens[-1]:,} tokens, bf16, beside a bare loop"
    # What says most first: time may be over before the end.
    for workers, window in ((2, "mapped"), (1, "mpi"), (2, "mpi")):
        yield from _not_computing_checks(sizes, place, workers, window)
    small, large = sizes.tokens
    for tokens, optimizer in ((small, "adam"), (large, "adam"), (small, "muon")):
        name = f"of {tokens:,} tokens, {optimizer}"
        yield f"steps of one rank, {name}", partial(_alone, sizes, place, tokens, optimizer)
        settings = (f"data.batch_tokens={tokens}", f"optimizer.name={optimizer}")
        for overlap in ("none", "full"):
            yield (
                f"not computing: 1 worker, {name}, mapped, overlap {overlap}",
                partial(_not_computing, sizes, place, 1, overlap, "mapped", settings),
            )
    yield compiled, partial(_step, sizes, sizes.tokens[-1], is_compiled=True)
    if device == "cuda":
        for window in ("mapped", "mpi"):
            yield from _not_computing_checks(sizes, place, 4, window)


def _not_computing_checks(sizes: Sizes, place: Place, workers: int, window: str) -> Iterator[Check]:
    for overlap in ("none", "full"):
        name = f"not computing: {workers} worker(s), {window}, overlap {overlap}"
        yield name, partial(_not_computing, sizes, place, workers, overlap, window)


def wait_for(device: str) -> None:
    """Until everything asked for has been computed."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, action: Callable[[], object]) -> float:
    """Median time of a call, after two that do not count."""
    samples = []
    for number in range(10 if device == "cuda" else 4):
        wait_for(device)
        started = time.perf_counter()
        action()
        wait_for(device)
        if number >= 2:
            samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def _copies(sizes: Sizes) -> dict[str, Any]:
    vector = torch.ones(sizes.num_elements, device=sizes.device)
    copies, whole = DeviceCopy(torch.device(sizes.device)), Shard(0, sizes.num_elements)
    gigabytes = 4e-9 * sizes.num_elements
    out = seconds(sizes.device, lambda: copies.to_host(vector, whole)())
    back = seconds(sizes.device, lambda: copies.to_device(vector, whole))
    figures = {"to the host GB/s": gigabytes / out, "to the device GB/s": gigabytes / back}
    # As a push to a window of MPI, and a pull from there: by way of other memory, then directly.
    window, stream = torch.empty(sizes.num_elements).share_memory_(), CopyStream(torch.device(sizes.device))

    def stage() -> None:
        copies.to_host(vector, whole)()
        window.copy_(copies.host(vector))

    def copy(target: Tensor, values: Tensor) -> None:
        stream.copy(target, values)
        stream.wait()

    figures["to a window, staged GB/s"] = gigabytes / seconds(sizes.device, stage)
    lock = PageLock([window.view(torch.uint8)], torch.device("cuda")) if sizes.device == "cuda" else None
    figures["to a window GB/s"] = gigabytes / seconds(sizes.device, lambda: copy(window, vector))
    figures["from a window GB/s"] = gigabytes / seconds(sizes.device, lambda: copy(vector, window))
    if lock is not None:
        lock.free()
        if lock.refusal:
            raise RuntimeError(f"{figures} without locked pages: {lock.refusal}")
    return figures


def _apply(sizes: Sizes, where: str) -> dict[str, Any]:
    """By kernels, and by torch's operations."""
    parameters, gradient = (torch.ones(sizes.num_elements, device=where) for _ in range(2))
    published = torch.empty_like(parameters)
    figures = {}
    for name, fused in (("", True), ("by torch ", False)):
        state = ShardState(parameters, optimizer_factory(OptimizerConfig(name="adam")), fused=fused)

        def update(state: ShardState = state) -> None:
            state.apply(blocks_of(gradient), scale=1.0, learning_rate=1e-4, version=1, publish=published)

        taken = seconds(where, update)
        figures |= {f"{name}ms": 1e3 * taken, f"{name}GB/s": 36e-9 * sizes.num_elements / taken}
    return figures


def _apply_muon(sizes: Sizes) -> dict[str, Any]:
    """An update of every matrix, and of the rest by Adam."""
    model = build_model(ModelConfig.model_validate(sizes.model), sizes.pieces, sizes.pieces, 0, 0).to(sizes.device)
    flat, config = FlatParameters(model), OptimizerConfig(name="muon")
    state = ShardState(flat.parameters, make_optimizers(config, model, flat))
    gradient = torch.randn_like(flat.parameters)
    published = torch.empty_like(flat.parameters)

    def update() -> None:
        state.apply(blocks_of(gradient), scale=1.0, learning_rate=1e-4, version=1, publish=published)

    return {"ms": 1e3 * seconds(sizes.device, update), "GFLOP": 1e-9 * matrix_operations(config, model)}


def _loss(sizes: Sizes) -> dict[str, Any]:
    """Time and memory of forward and backward: by chunks of several sizes, and by torch's operations."""
    rows, device = sizes.tokens[-1], sizes.device
    hidden = torch.randn(rows, 512, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(sizes.pieces, 512, device=device, requires_grad=True)
    targets = torch.randint(sizes.pieces, (rows,), device=device)

    def compute() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss, _ = summed_cross_entropy(hidden, weight, targets, 0.1)
        torch.autograd.grad(loss, (hidden, weight))

    figures = {}
    usual, can_use = dict(loss_module._CHUNK_ELEMENTS), device_kernels.can_use
    for name, shift in (("", 24), ("", 25), ("", 26), ("", 27), ("by torch ", 26)):
        loss_module._CHUNK_ELEMENTS[device] = 1 << shift
        device_kernels.can_use = (lambda device: False) if name else can_use
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        figures[f"{name}2^{shift} ms"] = 1e3 * seconds(device, compute)
        if device == "cuda":
            figures[f"{name}2^{shift} MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    loss_module._CHUNK_ELEMENTS.update(usual)
    device_kernels.can_use = can_use
    return figures


def _step(sizes: Sizes, tokens: int, *, is_compiled: bool = False) -> dict[str, Any]:
    """Ours and a bare loop of the same sizes: a step in bf16, Adam included."""
    config = ModelConfig.model_validate(sizes.model)
    source, target = bare_batch(tokens, sizes.pieces, sizes.device)
    ours = build_model(config, sizes.pieces, sizes.pieces, 0, 0).to(sizes.device)
    flat = FlatParameters(ours)
    state = ShardState(flat.parameters, optimizer_factory(OptimizerConfig(name="adam")))
    rows = torch.arange(target[:, 1:].numel(), device=sizes.device)

    def step() -> None:
        flat.gradient.zero_()
        with torch.autocast(sizes.device, torch.bfloat16):
            loss, _ = ours.summed_loss(source, target[:, :-1], target[:, 1:], 0.1, rows)
        torch.autograd.backward(loss)
        state.apply(blocks_of(flat.gradient), scale=1 / len(rows), learning_rate=1e-4, version=1)

    bare = BareTransformer(config, sizes.pieces).to(sizes.device)
    loss_of: Callable[[Tensor, Tensor], Tensor] = bare.loss
    if is_compiled:
        backend = backend_for(sizes.device)
        assert isinstance(ours, Transformer)
        ours.compile_layers(backend)
        loss_of = torch.compile(bare.loss, backend=backend)
    own = 1e3 * seconds(sizes.device, step)
    others = 1e3 * seconds(sizes.device, _bare_step(bare, loss_of, source, target, sizes.device))
    return {"ours ms": own, "bare ms": others, "ours / bare": own / others}


def _bare_step(
    model: BareTransformer, loss_of: Callable[[Tensor, Tensor], Tensor], source: Tensor, target: Tensor, device: str
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(source, target)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _not_computing(
    sizes: Sizes, place: Place, workers: int, overlap: str, window: str, others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Share of the workers' time that is not computation, by their timelines; mapped: with the server on the device."""
    settings = [f"exchange.overlap={overlap}", "staleness.fresh_start=0", f"exchange.window={window}"]
    settings.append(f"roles.server_device={sizes.device if window == 'mapped' else 'cpu'}")
    # What is measured is the exchange.
    settings += [f"data.batch_tokens={sizes.tokens[0]}", "optimizer.name=adam", *others]
    return _trained(sizes, place, workers + 1, f"speed-{workers}-{window}-{overlap}", settings)


def _alone(sizes: Sizes, place: Place, tokens: int, optimizer: str) -> dict[str, Any]:
    """The same steps by one rank that exchanges nothing."""
    settings = ["mode=sync", "sync.backend=torch", f"data.batch_tokens={tokens}", f"optimizer.name={optimizer}"]
    return _trained(sizes, place, 1, f"alone-{tokens}-{optimizer}", settings)


def _trained(sizes: Sizes, place: Place, ranks: int, name: str, settings: list[str]) -> dict[str, Any]:
    settings = [f"name={name}", *settings, f"model={json.dumps(sizes.model)}", "precision=bf16"]
    settings += [f"stop.updates={sizes.updates}", "logging={timeline: true, tensorboard: false}"]
    said = run_hpcasync("launch", "-n", str(ranks), "--", "train", place.config(), *settings, "--overwrite")
    run_dir = Path(said.rsplit("run directory: ", 1)[1].splitlines()[0])
    shares, steps = [], []
    for spans in read_timelines(run_dir):
        if not spans.is_server:
            half = spans.start > spans.end / 2  # the first half warms up
            is_step = half & (spans.activity == ACTIVITIES.index("compute"))
            seconds = spans.end - spans.start[half][0]
            shares.append(np.bincount(spans.activity[half], spans.duration[half], len(ACTIVITIES)) / seconds)
            steps.append(seconds / is_step.sum())
    mean = dict(zip(ACTIVITIES, np.mean(shares, axis=0).tolist(), strict=True))
    share = 1 - mean.pop("compute")
    most = {name: value for name, value in mean.items() if value > 0.002}
    summary = json.loads((run_dir / "summary.json").read_text())
    windows = speed_and_windows(said, summary)["windows"]
    return {"share": share, **most, "ms a step": 1e3 * statistics.mean(steps), "windows": windows}
