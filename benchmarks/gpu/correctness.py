"""Part A of the check: gradients against float64, and training runs of every kind that must end well."""

import copy
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from hpcasync import device_kernels
from hpcasync.config.model import ModelConfig
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.build import build_model
from hpcasync.nmt.evaluation import EvaluationSettings, score_parameters
from hpcasync.nmt.load import choose_device, load_model
from hpcasync.nmt.loss import summed_cross_entropy
from hpcasync.nmt.search import Searcher, SearchSettings
from hpcasync.nmt.transformer import Transformer
from hpcasync.ps.server import fused_apply
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.loop.optimizers import optimizer_factory

ROOT = Path(__file__).parents[2]
Check = tuple[str, Callable[[], dict[str, Any]]]
# How far a gradient may be from float64's, in parts of its norm.
_LIMITS = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
_SMALL_MODEL = {"dim": 64, "ffn_dim": 128, "heads": 4, "encoder_layers": 2, "decoder_layers": 2}
_ON_DEVICE = "roles.server_device={device}"
_MAPPED = (_ON_DEVICE, "exchange.window=mapped")
# name -> settings of a run of two workers and a server that share the GPU; what matters most comes first. Each start of
# a job takes seconds of the lease: what does not meddle with each other is tried together.
_RUNS: dict[str, tuple[str, ...]] = {
    "defaults": ("roles.server_device=auto", "precision=auto"),
    "async-global": ("mode=async-global", "accumulate.global=2"),
    "mapped": _MAPPED,
    "mapped, overlap full": (*_MAPPED, "exchange.overlap=full"),
    "mapped, overlap push, bf16": (
        *(*_MAPPED, "exchange.overlap=push", "precision=bf16"),
        *("exchange.gradients=bf16", "exchange.parameters=bf16"),
    ),
    "mapped, a server per device, compensation": (
        *(*_MAPPED, "roles.servers=per-device", "optimizer.ema_decay=0.99"),
        "staleness={{limit: 2, compensation: 0.1, lookahead: 0}}",
    ),
    "mapped, adam": (*_MAPPED, "optimizer.name=adam", "roles.server_threads=2"),
    "bf16": ("precision=bf16", "exchange.gradients=bf16", "exchange.parameters=bf16"),
    "fp16": ("precision=fp16",),
    "shards on the device, overlap full": (_ON_DEVICE, "exchange.window=mpi", "exchange.overlap=full"),
    "shards on the device, bf16": (
        *(_ON_DEVICE, "exchange.window=mpi"),
        *("exchange.gradients=bf16", "exchange.parameters=bf16"),
    ),
    "scores, overlap full": (
        "validation={{score: true, every: 6, beam: 2, max_sentences: 20, device: {device}}}",
        "exchange.overlap=full",
    ),
    "async, overlap push": ("mode=async", "exchange.overlap=push"),
    "async-combined, straggler": (
        *("mode=async-combined", "accumulate.local=2", "accumulate.global=2"),
        *("straggler.worker=1", "straggler.slowdown=3"),
    ),
    "async-local, topk": ("mode=async-local", "accumulate.local=2", "exchange.gradients=topk", "exchange.topk=0.1"),
    "mapped, topk, recurrent model": (
        *(*_MAPPED, "exchange.gradients=topk", "exchange.topk=0.1"),
        "model.architecture=rnn",
    ),
}


def run_python(*words: str | Path) -> str:
    """Run Python on something and return what it said, which is in the log of the check, too, as it comes."""
    command = [sys.executable, *map(str, words)]
    print("$", *command, flush=True)
    said = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            print(line, end="", flush=True)
    if process.returncode:
        last = next(filter(None, reversed(said.splitlines())), "nothing")
        raise RuntimeError(f"exit code {process.returncode}: {last}")
    return said


def run_hpcasync(*words: str | Path) -> str:
    """Run a command of the program."""
    return run_python("-m", "hpcasync", *words)


@dataclass(frozen=True)
class Place:
    """Where checks leave what others use, too, and for which device they are; the first that needs it makes it."""

    work: Path
    device: str

    @property
    def is_rehearsal(self) -> bool:
        """All is small then."""
        return self.device == "cpu"

    @property
    def num_updates(self) -> int:
        """Of a run."""
        return 12 if self.is_rehearsal else 24

    def corpus(self) -> Path:
        """Generated: the same everywhere, without a network."""
        prepared = self.work / "corpus"
        with (self.work / "corpus.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._prepare(prepared)
        return prepared

    def _prepare(self, prepared: Path) -> None:
        text = self.work / "text"
        if not (prepared / "manifest.json").is_file():
            run_hpcasync("data", "fetch", "embedded", text, "--pairs", "4000")
            sides = [sorted(text.glob(f"{split}*")) for split in ("train", "valid")]
            train, valid = ([path for path in found if path.suffix != ".json"] for found in sides)
            run_hpcasync("data", "prepare", *train, "--valid", *valid, "--vocab-size", "2000", "--out", prepared)

    def config(self) -> Path:
        """What runs begin with."""
        values = {
            "run_dir": str(self.work / "runs"),
            "data": {"path": str(self.corpus()), "batch_tokens": 400 if self.is_rehearsal else 1000},
            "device": self.device,
            "roles": {"server_device": "cpu"},
            "precision": "fp32",
            "model": _SMALL_MODEL,
            "optimizer": {"learning_rate": 0.002, "clip_norm": 1.0},
            "schedule": {"warmup": 10},
            "stop": {"updates": self.num_updates},
            "validation": {"score": False},
            "logging": {"every": 1, "tensorboard": False},
        }
        path = self.work / "check.yaml"
        _write_whole(path, lambda new: new.write_text(yaml.safe_dump(values)))
        return path


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Checks that run at once read what others write."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    write(new)
    new.replace(path)


def correctness_checks(device: str, work: Path) -> Iterator[Check]:
    """Name and action of each check, in order."""
    place = Place(work, device)
    yield "doctor", _doctor
    yield "tests of device vectors", partial(_device_tests, device)
    for precision in _LIMITS:
        yield f"gradient in {precision} against float64", partial(_compare_gradients, place, precision)
    yield "kernels against torch's operations", partial(_compare_kernels, device)
    yield "windows make no difference", partial(_compare_windows, place)
    yield "search and scores against the host's", partial(_compare_search, place)
    yield "a resume makes no difference", partial(_resume, place)
    yield "training, sync by torch", partial(_train, place, "sync", ["mode=sync", "sync.backend=torch"], 1)
    yield "a joined program", partial(_join, place)
    for name, settings in _RUNS.items():
        words = [word.format(device=device) for word in settings]
        yield f"training, {name}", partial(_train, place, name, words, 3)
    # Compiling takes longest: last.
    yield "gradient compiled, bf16", partial(_compare_gradients, place, "bf16", is_compiled=True)


def _doctor() -> dict[str, Any]:
    said = run_hpcasync("doctor", "--json")
    checks = json.loads(said[said.index("{") :])["checks"]
    return {name: checks[name]["status"] for name in ("torch", "cuda", "mpi4py") if name in checks}


def _device_tests(device: str) -> dict[str, Any]:
    tests = ["tests/unit/test_device_copy.py", "tests/parallel/test_device_vectors.py"]
    options = ["-q", "-p", "no:cacheprovider", "--timeout=600"]
    return {"pytest": run_python("-m", "pytest", *options, "-k", device, *tests).strip().splitlines()[-1]}


def _compare_kernels(device: str) -> dict[str, Any]:
    """An update, of which the bits are those of the compiled kernel on the host, and the loss with its gradients."""
    lack = device_kernels.lack()
    if device == "cuda" and lack:
        raise RuntimeError(f"there are none: {lack}")
    generator = torch.Generator().manual_seed(1)
    pushes = [torch.randn(4, 1_000_001, generator=generator) for _ in range(3)]
    states: dict[str, dict[str, torch.Tensor]] = {}
    for where in ("cpu", device):
        parameters = torch.ones(1_000_001, device=where)
        state = ShardState(parameters, optimizer_factory(OptimizerConfig(name="adam", weight_decay=0.1)), ema_decay=0.9)
        published = torch.empty(1_000_001, dtype=torch.bfloat16, device=where)
        for version, parts in enumerate(pushes, start=1):
            moved = list(parts.to(where))
            state.apply(
                lambda start, stop, moved=moved: [part[start:stop] for part in moved],
                scale=0.1, learning_rate=0.01, version=version, publish=published, lookahead=1.0,
            )  # fmt: skip
        states[where] = {**state.state_tensors(), "published": published.cpu()}
    differing = [key for key, value in states["cpu"].items() if not torch.equal(value, states[device][key])]
    rows, pieces = (3000, 32_000) if device == "cuda" else (300, 2_000)
    hidden, weight = torch.randn(rows, 512, generator=generator), torch.randn(pieces, 512, generator=generator) / 20
    targets = torch.randint(pieces, (rows,), generator=generator)
    errors = {}
    for precision in ("fp32", "bf16"):
        given = [tensor.to(device).requires_grad_() for tensor in (hidden, weight)]
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = summed_cross_entropy(*given, targets.to(device), 0.1)
        actual = torch.cat([gradient.flatten().cpu() for gradient in torch.autograd.grad(loss, given)])
        exact = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        plain = torch.nn.functional.cross_entropy(
            exact[0] @ exact[1].t(), targets, reduction="sum", label_smoothing=0.1
        )
        expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(plain, exact)])
        errors[precision] = float((actual - expected).norm() / expected.norm())
        if not errors[precision] < _LIMITS[precision]:
            raise RuntimeError(f"the loss's gradient in {precision} is off by {errors[precision]:.2e} of its norm")
    if not fused_apply.is_available():
        return {"errors": errors, "update": "not compared: no compiled kernel on the host"}
    if differing:
        raise RuntimeError(f"other bits than on the host: {', '.join(differing)}")
    return {"errors": errors}


def _make_model(place: Place, *, is_rounded: bool) -> tuple[Any, BatchPlan]:
    corpus = PreparedCorpus.open(place.corpus())
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    num_tokens = 200 if place.is_rehearsal else 2000
    plan = BatchPlan(corpus.train, source, target, batch_tokens=num_tokens, seed=1, rounded=is_rounded)
    sizes = _SMALL_MODEL if place.is_rehearsal else {"preset": "small"}
    config = ModelConfig.model_validate({**sizes, "dropout": 0.0})
    torch.manual_seed(1)
    return build_model(config, len(source), len(target), source.pad_id, target.pad_id), plan


def _exact_gradient(place: Place, num_batches: int, *, is_rounded: bool) -> torch.Tensor:
    kept = place.work / f"gradient-{'rounded' if is_rounded else 'exact'}.pt"
    if not kept.is_file():
        model, plan = _make_model(place, is_rounded=is_rounded)
        gradient = _gradient(model.double(), plan, "cpu", "fp64", num_batches)
        _write_whole(kept, partial(torch.save, gradient))
    exact: torch.Tensor = torch.load(kept)
    return exact


def _compare_gradients(place: Place, precision: str, *, is_compiled: bool = False) -> dict[str, Any]:
    device = place.device
    num_batches = 1 if is_compiled else 3  # each shape of a batch is compiled anew
    expected = _exact_gradient(place, num_batches, is_rounded=is_compiled)
    model, plan = _make_model(place, is_rounded=is_compiled)
    if is_compiled:
        assert isinstance(model, Transformer)
        model.compile_layers(backend_for(device))
        _gradient(copy.deepcopy(model).to(device), plan, device, precision, num_batches, may_wait=True)
    actual = _gradient(model.to(device), plan, device, precision, num_batches)
    error = float((actual - expected).norm() / expected.norm())
    if not error < _LIMITS[precision]:
        raise RuntimeError(f"the gradient is off by {error:.2e} of its norm, more than {_LIMITS[precision]:g}")
    return {"error": error}


def _gradient(
    model: Any, plan: BatchPlan, device: str, precision: str, num_batches: int, *, may_wait: bool = False
) -> torch.Tensor:
    """Of some batches; compiling kernels and layers, the first time, may wait for the GPU."""
    device_kernels.lack()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    flat = FlatParameters(model) if precision != "fp64" else None
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    for ticket in range(num_batches):
        batch = plan.batch(ticket).to(device)
        if device == "cuda" and not may_wait:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")  # between here and there nothing may wait for the GPU
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model.summed_loss(batch.source, batch.target_input, batch.target_output, 0.1, batch.target_rows)
        loss.backward()
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    torch.set_float32_matmul_precision("highest")
    parts = [parameter.grad for parameter in model.parameters()] if flat is None else flat.views(flat.gradient)
    return torch.cat([part.detach().double().cpu().flatten() for part in parts])


def backend_for(device: str) -> str:
    """Of torch.compile: in a rehearsal the one that only traces, for a compiler of C++ takes minutes."""
    return "inductor" if device == "cuda" else "aot_eager"


def _train(place: Place, name: str, settings: list[str], num_ranks: int, *flags: str) -> dict[str, Any]:
    config = place.config()
    named = f"name={name.replace(',', '').replace(' ', '-')}"
    said = run_hpcasync(
        "launch", "-n", str(num_ranks), "--", "train", config, named, *settings, *(flags or ("--overwrite",))
    )
    run_dir = Path(said.rsplit("run directory: ", 1)[1].splitlines()[0])
    summary = json.loads((run_dir / "summary.json").read_text())
    pushed, applied, dropped = (summary[f"gradients_{what}"] for what in ("pushed", "applied", "dropped"))
    updates = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in updates if record["event"] == "update"]
    assert pushed == applied + dropped, f"pushed {pushed} are not applied {applied} and dropped {dropped}"
    assert summary["num_updates"] == place.num_updates or flags, summary["stop_reason"]
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0], f"the loss went from {losses[0]} to {losses[-1]}"
    if name.startswith("scores"):
        assert any(record["event"] == "validation" for record in updates), "no snapshot was scored"
    return {"loss": losses[-1], "dropped": dropped, **speed_and_windows(said, summary)}


def speed_and_windows(said: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Of a run, for the table."""
    windows = next((line.strip() for line in said.splitlines() if line.startswith("  windows: ")), "windows: none")
    return {"tok/s": round(summary["target_tokens_per_second"]), "windows": windows.removeprefix("windows: ")}


def _join(place: Place) -> dict[str, Any]:
    """An example, to its end: what is scored and translated there is not on the device by itself."""
    program, run_dir = ROOT / "examples" / "translation.py", place.work / "joined"
    shutil.rmtree(run_dir, ignore_errors=True)
    options = place.corpus(), "--epochs", "1", "--run", run_dir
    said = run_hpcasync("launch", "-n", "3", "--", sys.executable, program, *options)
    nats = float(said.partition(" nats per token")[0].split()[-1])
    assert nats < 7, f"{nats} nats per token"
    return {"nats per token": nats}


def _compare_search(place: Place) -> dict[str, Any]:
    """What `hpcasync evaluate` and `translate` do, with a model that has been trained."""
    _train(place, "searched", ["mode=async-global"], 3)
    run_dir = next((place.work / "runs").glob("searched*/last")).parent
    corpus = PreparedCorpus.open(place.corpus())
    found = []
    for device in ("cpu", place.device):
        trained = load_model(run_dir, device=choose_device(device))
        settings = EvaluationSettings(beam=1, max_sentences=4)
        searcher = Searcher(
            trained.model, trained.source_vocabulary, trained.target_vocabulary, SearchSettings(beam=4), max_length=64
        )
        best = [hypotheses[0].score for hypotheses in searcher.translate(corpus.raw("valid")[0][:10])]
        found.append((score_parameters(trained, corpus, settings).loss, sum(best) / len(best)))
    for here, there in zip(*found, strict=True):
        if not abs(here - there) < 1e-3 * abs(here):
            raise RuntimeError(f"loss and score of translations are {found[1]}, on the host {found[0]}")
    return {"loss": found[1][0], "score of translations": found[1][1]}


def _resume(place: Place) -> dict[str, Any]:
    """One worker and one server, so that the order of pushes cannot differ."""
    settings = ["mode=async", "exchange.pull=applied"]
    straight = _train(place, "straight", settings, 2)
    half = [*settings, f"stop.updates={place.num_updates // 2}"]
    _train(place, "resumed", half, 2, "--overwrite")
    resumed = _train(place, "resumed", settings, 2, "--resume")
    return _compare_losses(resumed["loss"], straight["loss"])


def _compare_windows(place: Place) -> dict[str, Any]:
    """Through host memory, and in mapped memory: the same losses."""
    settings = ["mode=async", "exchange.pull=applied", f"roles.server_device={place.device}"]
    by_kind = {
        kind: _train(place, f"windows-{kind}", [*settings, f"exchange.window={kind}"], 2) for kind in ("mpi", "mapped")
    }
    if place.device == "cuda" and "page-locked for GPUs" not in (windows := by_kind["mpi"]["windows"]):
        raise RuntimeError(f"windows of MPI: {windows}")
    return _compare_losses(by_kind["mapped"]["loss"], by_kind["mpi"]["loss"])


def _compare_losses(actual: float, expected: float) -> dict[str, Any]:
    """Of two runs that compute the same: an update more or less shows in the third digit.

    The last bits are the same only where every kernel of torch adds in one order: attention's backward pass may not.
    """
    if not abs(actual - expected) < 1e-3 * expected:
        raise RuntimeError(f"the last loss is {actual!r} and was {expected!r}")
    return {"loss": actual, "same bits": actual == expected}
