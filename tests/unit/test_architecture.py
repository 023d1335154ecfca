"""Imports point one way. A layer may import the layers named here, and itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcasync

ROOT = Path(hpcasync.__file__).parent
BASE = {"choices", "complete_files", "errors", "command_line", "config", "exit_codes", "sole_writer"}
TRAIN = {"train", "train.loop", "train.machine", "train.modes", "train.records", "train.supervise"}
PS = {"ps", "ps.protocol", "ps.transport", "ps.server", "ps.worker"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "exit_codes": set(),
    "choices": set(),
    "command_line": set(),
    "complete_files": set(),
    "extras": {"errors", "command_line"},
    "timeline": {"errors"},
    "device_kernels": set(),
    "live_line": set(),
    "onednn": set(),
    "config": {"choices", "errors"},
    "sole_writer": {"errors"},
    "comm": {"errors", "command_line"},
    "deaths": BASE | {"comm"},
    "data": BASE,
    "ps.protocol": {"choices", "comm"},
    "ps.transport": {"choices", "errors", "comm", "ps.protocol"},
    "ps.server": {"choices", "errors", "comm", "device_kernels", "onednn", "timeline", "ps.protocol", "ps.transport"},
    "ps.worker": {"choices", "errors", "comm", "timeline", "ps.protocol", "ps.transport"},
    "ps": {"choices", "errors", "comm", "timeline"} | PS - {"ps"},
    "runs": BASE | {"comm", "data", "ps.protocol"},
    "nmt": BASE | {"data", "device_kernels", "onednn", "runs"},
    "export": BASE | {"data", "nmt", "runs"},
    "train.machine": BASE | {"comm", "device_kernels"},
    "train.records": BASE | {"comm", "extras", "live_line", "ps.protocol", "runs", "timeline"},
    "train.loop": BASE | PS - {"ps"} | {"data", "nmt", "runs", "timeline", "train.records"},
    "train.supervise": BASE
    | PS - {"ps"}
    | {"comm", "data", "deaths", "nmt", "runs", "train.loop", "train.machine", "train.records"},
    "train.modes": BASE | PS - {"ps"} | {"comm", "deaths", "runs", "timeline", "train.loop", "train.supervise"},
    "train": BASE | PS | TRAIN - {"train"} | {"comm", "deaths", "runs", "slurm", "timeline"},
    "program": BASE | PS | TRAIN | {"comm", "deaths", "launch", "runs", "slurm", "timeline"},
    "report": BASE | {"runs", "timeline"},
    "experiment": BASE | {"report", "runs", "simulate", "slurm"},
    "launch": BASE | {"deaths", "live_line"},
    "slurm": BASE | {"launch"},
    "doctor": BASE | TRAIN | {"comm", "device_kernels", "launch", "ps.server", "slurm"},
    "simulate": BASE | TRAIN | PS | {"comm", "data", "nmt", "runs", "timeline"},
    "demo": BASE | TRAIN | {"comm", "data", "nmt", "runs", "launch", "report"},
    "bench": BASE | TRAIN | PS | {"comm", "launch", "timeline"},
    "cli": BASE
    | TRAIN
    | {"bench", "comm", "data", "export", "nmt", "launch", "slurm", "doctor", "demo"}
    | {"report", "runs", "simulate", "experiment", "deaths", "extras"},
    "__main__": {"errors", "cli", "launch", "deaths"},
    "__init__": {"program"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def layer_of(module: str) -> str:
    """The layer that a dotted name within the package belongs to: a sub-package, if the table names it."""
    parts = module.split(".")
    assert parts[0] == "hpcasync"
    if ".".join(parts[1:3]) in ALLOWED:
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 else "__init__"


def imported(tree: ast.Module, path: Path) -> Iterator[str]:
    """Dotted names of everything that is imported, also within functions and by relative imports."""
    package = ["hpcasync", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from hpcasync import ps` names a layer by the alias.
                yield f"{base}.{alias.name}" if base == "hpcasync" else base


def is_layer(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).is_dir() or (ROOT / f"{name}.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    layer = layer_of(".".join(["hpcasync", *relative.with_suffix("").parts]))
    assert layer in ALLOWED, f"{relative}: say in this test what the new layer {layer} may import"
    allowed = ALLOWED[layer] | {layer}
    for name in imported(ast.parse(path.read_text()), path):
        if name.split(".")[0] != "hpcasync":
            continue
        other = layer_of(name)
        if is_layer(other):
            assert other in allowed, f"{relative} imports {name}: {layer} may import {sorted(allowed)}"


def test_the_allowed_imports_have_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {layer for layer, below in ALLOWED.items() if layer not in done and below <= done}
        assert ready, f"a circle among {set(ALLOWED) - done}"
        done |= ready


@pytest.mark.parametrize(
    ("layer", "foreign"),
    [
        ("comm", {"torch.nn", "horovod"}),
        ("ps", {"horovod", "sentencepiece"}),
        ("nmt", {"mpi4py", "horovod"}),
        ("data", {"mpi4py", "horovod"}),
    ],
)
def test_layers_know_nothing_of_what_is_not_theirs(layer: str, foreign: set[str]) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        for name in imported(ast.parse(path.read_text()), path):
            assert not any(name == other or name.startswith(f"{other}.") for other in foreign), f"{path}: {name}"


def test_lock_epochs_and_flushes_are_in_comm_alone() -> None:
    calls = {"Lock", "Lock_all", "Unlock", "Unlock_all", "Flush", "Flush_all", "Flush_local", "Fetch_and_op", "Put"}
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] in ("comm", "doctor"):  # doctor tries MPI itself out
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_threading = isinstance(node.func.value, ast.Name) and node.func.value.id == "threading"
                assert is_threading or node.func.attr not in calls, f"{path}:{node.lineno} calls {node.func.attr}"


def test_modules_and_functions_are_small() -> None:
    for path in MODULES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno} {node.name}"
                if node.name == "__init__":
                    num_parameters = len([*node.args.args, *node.args.kwonlyargs]) - 1
                    assert num_parameters <= 8, f"{path}:{node.lineno} takes {num_parameters} parameters"


def test_nothing_is_loaded_by_pickle() -> None:
    for path in MODULES:
        for name in imported(ast.parse(path.read_text()), path):
            assert name not in ("pickle", "cloudpickle", "dill"), path
        assert "torch.load(" not in path.read_text(), path
