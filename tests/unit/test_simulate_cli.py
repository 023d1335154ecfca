"""`hpcasync simulate` as a command."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from tiny_run import TinyRun

from hpcasync.cli.main import cli
from hpcasync.errors import UserError
from hpcasync.exit_codes import PREEMPTED
from hpcasync.train.supervise import stop_signals

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[Invoke]:
    """Run the command on a small configuration in this process."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    model = {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "max_length": 64}
    values = {
        "name": "tiny",
        "run_dir": str(tmp_path / "runs"),
        "data": {"path": str(tiny_run.corpus), "batch_tokens": 120},
        "model": model,
        "stop": {"updates": 3},
        "validation": {"score": False},
        "logging": {"tensorboard": False},
        "roles": {"worker_threads": 1},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(cli, ["simulate", str(path), *map(str, arguments)], standalone_mode=False)

    threads = torch.get_num_threads()
    yield run
    stop_signals.forget()
    torch.set_num_threads(threads)


def refusal(result: Result) -> str:
    assert isinstance(result.exception, Exception), result.output
    return getattr(result.exception, "message", str(result.exception))


def test_training(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--workers", 3, "accumulate.global=3", "cluster.compute.seconds_per_token=0.5")
    assert result.exception is None and result.return_value == 0, result.output
    run_dir = tmp_path / "runs" / "tiny-async-global-seed1"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["num_updates"] == 3 and summary["wall_seconds"] > 60, "virtual seconds"
    cluster = yaml.safe_load((run_dir / "cluster.yaml").read_text())
    assert cluster["workers"] == 3 and cluster["compute"]["seconds_per_token"] == 0.5
    assert "holds a run already" in refusal(invoke("--workers", 3))
    assert invoke("--workers", 2, "--overwrite").return_value == 0
    assert yaml.safe_load((run_dir / "cluster.yaml").read_text())["workers"] == 2


def test_going_on(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is the one that the run began with, its measured speeds too."""
    measured = "cluster.server.apply_seconds_per_element=measured"
    arguments = "--workers", 3, "mode=async", measured
    with monkeypatch.context() as patch:
        patch.setattr(stop_signals, "received", lambda: "SIGUSR1")
        assert invoke(*arguments).return_value == PREEMPTED
    assert invoke(*arguments, "--resume").return_value == 0
    summary = json.loads((tmp_path / "runs" / "tiny-async-seed1" / "summary.json").read_text())
    assert summary["num_updates"] == 3
    assert invoke("mode=async", "stop.updates=4", "--resume").return_value == 0
    assert "with cluster.workers=3, now 2" in refusal(invoke("mode=async", "--workers", 2, "--resume"))


def test_throughput(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--no-gradients", "--workers", 8, "accumulate.global=8", "--steps", 12, "--search-servers")
    assert result.exception is None, result.output
    for part in ("mode async-global: 8 workers, 1 server,", "efficiency", "staleness", "bottleneck"):
        assert part in result.output
    assert "servers to use" in result.output
    assert not (tmp_path / "runs").exists()


def test_throughput_as_json(invoke: Invoke) -> None:
    result = invoke("--no-gradients", "--json", "--parameters", 10**9, "--steps", 12, "--search-servers")
    read = json.loads(result.stdout)
    assert read["num_parameters"] == 10**9 and read["cluster"]["workers"] == 4
    assert read["servers_to_use"]["num_servers"] >= 1
    assert sum(read["staleness"]["histogram"].values()) > 0 and read["bottleneck"]


def test_no_corpus_is_needed_for_an_imagined_model(invoke: Invoke, tmp_path: Path) -> None:
    absent = f"data.path={tmp_path / 'absent'}"
    result = invoke("--no-gradients", "--parameters", 1000, "--steps", 12, absent, "data.batch_tokens=77")
    assert "every batch has 77 target tokens" in result.output and "Muon's iterations are those of" in result.output
    assert "or give --parameters N to simulate without a corpus" in refusal(invoke("--no-gradients", absent))


def test_the_sweep(invoke: Invoke) -> None:
    result = invoke("--sweep-workers", "2,4", "--steps", 12)
    lines = [line.split() for line in result.output.splitlines()]
    assert [line[0] for line in lines[-2:]] == ["2", "4"]
    read = json.loads(invoke("--sweep-workers", "2,4", "--steps", 12, "--json").stdout)
    assert [pair["sync"]["num_workers"] for pair in read] == [2, 4]
    assert all(pair["speedup"] > 0 for pair in read)


def test_a_cluster_file(invoke: Invoke, tmp_path: Path) -> None:
    saved, path = tmp_path / "saved.yaml", tmp_path / "cluster.yaml"
    path.write_text("workers: 6\nnetwork: {bandwidth: 1.0e9}\n")
    result = invoke("--cluster", path, "cluster.seed=5", "--save-cluster", saved, "--no-gradients", "--steps", 12)
    assert "6 workers" in result.output and "seed 5" in result.output
    assert yaml.safe_load(saved.read_text())["network"]["bandwidth"] == 1e9


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("cluster.worker=3",), "unknown key cluster.worker: did you mean cluster.workers?"),
        (("accumulate.globl=3",), "unknown key accumulate.globl"),
        (("--cluster", "absent.yaml"), "cannot read the configuration absent.yaml"),
        (("--cluster", "a", "--fit", "b"), "--cluster and --fit exclude each other"),
        (("--sweep-workers", "4,x"), "'4,x' is no list of numbers"),
        (("--sweep-workers", "0,4"), "numbers of workers are 1 or more"),
        (("--search-servers",), "--search-servers goes with --no-gradients"),
        (("--json",), "--json goes with --no-gradients"),
        (("--parameters", "9"), "--parameters goes with --no-gradients"),
        (("--staleness-warmup", "9"), "forced_staleness: warmup needs updates"),
        (("--staleness", "2", "--no-gradients"), "it goes without --no-gradients"),
        (("--staleness", "2"), "forces the staleness of mode=sync"),
        (("--workers", "65"), "with gradients at most 64 workers"),
        (("--workers", "5000", "--no-gradients"), "less than or equal to 4096"),
        (("straggler.worker=4",), "straggler.worker=4, but workers are 0 to 3"),
        (("exchange.host_sums=true",), "host_sums needs a server on every host, and roles.servers=1 for 4 hosts"),
        (("exchange.host_sums=true", "--no-gradients"), "roles.servers=1 for 4 hosts"),
        (("--resume",), "holds no simulated run: leave --resume out"),
        (("--resume", "--overwrite"), "leave --overwrite and --fit out"),
        (("--resume", "--no-gradients"), "holds no simulated run"),
        (("--no-gradients", "--save-cluster", "/proc/none/x"), "cannot write /proc/none/x"),
    ],
)
def test_what_is_refused(invoke: Invoke, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refusal(invoke(*arguments))
    assert not (tmp_path / "runs").exists()


def test_it_is_one_process(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    result = invoke("--no-gradients")
    assert isinstance(result.exception, UserError)
    assert "start it without mpirun and `launch`" in str(result.exception)
