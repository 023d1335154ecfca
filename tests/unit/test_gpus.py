"""Which rank computes on which GPU, decided from what nvidia-smi tells and before CUDA starts."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpcasync.comm.roles import Roles, assign_beside, assign_roles
from hpcasync.config.program import program_config
from hpcasync.config.schema import Config, parse_config
from hpcasync.errors import UserError
from hpcasync.train.machine import gpus as module
from hpcasync.train.machine.devices import plan_gpus
from hpcasync.train.machine.gpus import Gpu, SeenGpus, choose_visible, narrow_to, see_gpus, take
from hpcasync.train.machine.resources import describe_gpus
from hpcasync.train.machine.settle_roles import count_devices

LISTING = (
    "GPU-aaaa, 00000000:18:00.0, NVIDIA H100\n"
    "GPU-bbbb, 00000000:3B:00.0, NVIDIA H100\n"
    "GPU-cccc, 00010001:86:00.0, NVIDIA A100, 80 GB\n"
)


def config(**values: Any) -> Config:
    return parse_config({"data": {"path": "x"}, "stop": {"updates": 1}, **values}, "test")


def some(number: int, host: str = "") -> SeenGpus:
    return SeenGpus(tuple(Gpu(str(index), f"GPU-{host}{index}", "H100") for index in range(number)))


NONE = SeenGpus()
BROKEN = SeenGpus(problem="nvidia-smi fails: version mismatch")


def chosen(config: Config, roles: Roles, seen: list[SeenGpus]) -> list[str | None]:
    return [None if gpu is None else gpu.visible for gpu in plan_gpus(config, roles, seen).gpus]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [("GPU-aaaa", "GPU-aaaa"), ("GPU-bbbb", "GPU-bbbb"), ("GPU-cccc", "GPU-cccc")]),
        ("", []),
        ("2,0", [("2", "GPU-cccc"), ("0", "GPU-aaaa")]),
        ("1,7,0", [("1", "GPU-bbbb")]),
        ("0,-1,1", [("0", "GPU-aaaa")]),
        ("GPU-bb", [("GPU-bb", "GPU-bbbb")]),
        ("MIG-1234", [("MIG-1234", "MIG-1234")]),
        ("NoDevFiles", []),
    ],
)
def test_what_is_visible_is_read_as_cuda_reads_it(visible: str | None, expected: list[tuple[str, str]]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [(gpu.visible, gpu.uuid) for gpu in choose_visible(LISTING, environment)] == expected


def test_the_numa_node_of_a_gpu_is_read_by_its_address(tmp_path: Path) -> None:
    """Written by the kernel in small letters, with a domain of four digits or more."""
    for address, node in (("0000:18:00.0", "0\n"), ("0000:3b:00.0", "-1\n"), ("10001:86:00.0", "3\n")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "numa_node").write_text(node)
    found = choose_visible(LISTING, {"CUDA_VISIBLE_DEVICES": "GPU-cc,1,0,MIG-12"}, tmp_path)
    assert [gpu.node for gpu in found] == [3, None, 0, None] and found[0].name == "NVIDIA A100, 80 GB"
    assert [gpu.node for gpu in choose_visible(LISTING, {}, tmp_path / "none")] == [None] * 3


@pytest.mark.parametrize(
    ("script", "has_driver", "problem"),
    [
        (None, False, ""),
        (None, True, "no nvidia-smi"),
        (
            "echo 'Failed: Driver/library version mismatch'; exit 18",
            True,
            "library version mismatch",
        ),
        ("echo 'No devices were found'; exit 6", False, ""),
        ("exec sleep 60", True, "has not answered in 1 s"),
        (f"printf '{LISTING}'", True, "" if torch.version.cuda else "this torch is a build for the CPU"),
        (
            f"printf '{LISTING}'; echo 'WARNING: infoROM is corrupted at gpu 0000:18:00.0'; exit 14",
            True,
            "" if torch.version.cuda else "NVIDIA H100, but this torch is a build for the CPU",
        ),
    ],
)
def test_a_driver_without_a_gpu_to_use_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, has_driver: bool, problem: str
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin" if script else str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "_DRIVER", tmp_path if has_driver else tmp_path / "none")
    monkeypatch.setattr(module, "_MOST_SECONDS", 1)
    seen = see_gpus()
    assert problem in seen.problem and bool(seen.problem) == bool(problem)


def test_workers_and_servers_take_the_gpus_of_their_host_in_turn() -> None:
    roles = assign_roles(["a"] * 4 + ["b"] * 2, 2)
    assert roles.server_ranks == (0, 4)
    seen = [some(2, "a")] * 4 + [some(2, "b")] * 2
    on_cpus = config(roles={"servers": 2, "server_device": "cpu"})
    assert chosen(on_cpus, roles, seen) == [None, "0", "1", "0", None, "0"]
    for on_gpus in (config(roles={"servers": 2}), config(roles={"servers": 2, "server_device": "cuda"})):
        assert chosen(on_gpus, roles, seen) == ["0", "0", "1", "0", "0", "0"]
    assert chosen(config(device="cpu"), roles, seen) == [None] * 6


def test_servers_are_not_on_gpus_by_themselves_where_those_do_not_suit() -> None:
    roles = assign_roles(["a", "b", "b"], 1, "first")
    assert chosen(config(), roles, [NONE, some(1), some(1)]) == [None, "0", "0"], "their host has none"
    part = SeenGpus((Gpu("MIG-1", "MIG-1", "H100"),))
    together = assign_roles(["a"] * 3, 1)
    assert chosen(config(), together, [part] * 3) == [None, "MIG-1", "MIG-1"]
    assert chosen(config(), together, [some(1)] * 3) == ["0", "0", "0"]
    assert program_config("run", {}).roles.server_device == "cpu"
    assert program_config("run", {"roles.server_device": "cuda"}).roles.server_device == "cuda"


def test_a_server_for_each_gpu_that_any_rank_sees() -> None:
    own = [SeenGpus((Gpu("0", f"GPU-{rank % 2}", "H100"),)) for rank in range(4)]
    hosts = ["a"] * 4 + ["b"] * 2
    assert count_devices(hosts, [*own, some(1), some(1)]) == {"a": 2, "b": 1}
    assert count_devices(hosts, [NONE] * 6) == count_devices(hosts, []) == {"a": 1, "b": 1}
    beside = config(roles={"servers": "per-device", "server_device": "cuda"}).with_servers(2)
    assert chosen(beside, assign_beside(["a"] * 4, {"a": 2}), [some(2)] * 4) == ["0", "1", "0", "1"]


def test_a_worker_that_sees_only_its_own_takes_it() -> None:
    roles = assign_roles(["a"] * 3, 1)
    own = [SeenGpus((Gpu("0", f"GPU-{rank}", "H100"),)) for rank in range(3)]
    assert chosen(config(), roles, own) == ["0", "0", "0"]
    assert chosen(config(mode="sync"), assign_roles(["a"] * 3, 0), own) == ["0", "0", "0"]


@pytest.mark.parametrize(
    ("values", "num_servers", "seen", "message"),
    [
        ({"mode": "sync"}, 0, [some(2)] * 3, r"ranks 0 and 2 would share H100 GPU-0 of a, .*\(3 are too many\)"),
        ({}, 1, [some(1), some(1), NONE], "device=auto: rank 1 on a has a GPU, but rank 2 on a sees none"),
        (
            {},
            1,
            [NONE, NONE, BROKEN],
            "device=auto, but no GPU .*rank 2.: .*version mismatch.*device=cpu",
        ),
        (
            {"device": "cuda"},
            1,
            [some(1), NONE, some(1)],
            "device=cuda, but no GPU .*rank 1.: .*no NVIDIA driver",
        ),
        (
            {"roles": {"server_device": "cuda"}, "device": "cpu"},
            1,
            [NONE] * 3,
            "roles.server_device=cuda, but no GPU .*roles.server_device=cpu",
        ),
        (
            {"validation": {"device": "cuda"}},
            1,
            [NONE] * 3,
            "validation.device=cuda, but no GPU can be used on a, where snapshots",
        ),
    ],
)
def test_gpus_that_are_missing_are_refused(values: Any, num_servers: int, seen: list[SeenGpus], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_gpus(config(**values), assign_roles(["a"] * 3, num_servers), seen)
    assert caught.value.everywhere


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected", "line"),
    [
        ("auto", 3, "2", "snapshots are scored on H100 GPU-2"),
        ("auto", 2, None, "snapshots are scored on the CPU"),
        ("cuda", 2, "0", "snapshots are scored on H100 GPU-0, which rank 0 computes on"),
        ("cpu", 3, None, "snapshots are scored on the CPU"),
    ],
)
def test_scores_take_no_workers_gpu_unasked(device: str, num_gpus: int, expected: str | None, line: str) -> None:
    roles, settings = assign_roles(["a"] * 3, 1), config(validation={"device": device})
    plan = plan_gpus(settings, roles, [some(num_gpus)] * 3)
    assert (plan.scoring and plan.scoring.visible) == expected
    told = describe_gpus(settings, roles, plan)
    assert told[:2] == ["GPUs of a: rank 0 H100 GPU-0, rank 1 H100 GPU-0, rank 2 H100 GPU-1", line]


@pytest.mark.parametrize(
    ("values", "is_told"),
    [
        ({}, False),
        ({"roles": {"server_device": "cpu"}}, True),
        ({"roles": {"server_device": "cpu"}, "optimizer": {"name": "adam"}}, False),
    ],
)
def test_muon_on_the_cpu_beside_gpus_is_told(values: dict[str, Any], is_told: bool) -> None:
    roles, settings = assign_roles(["a"] * 3, 1), config(**values)
    told = describe_gpus(settings, roles, plan_gpus(settings, roles, [some(3)] * 3))
    assert any("roles.server_device=cuda" in line for line in told) == is_told


def test_nothing_is_said_of_gpus_where_there_are_none() -> None:
    roles = assign_roles(["a"] * 3, 1)
    assert describe_gpus(config(), roles, plan_gpus(config(), roles, [NONE] * 3)) == []


def test_a_process_sees_its_own_gpu_alone_from_the_start() -> None:
    """Nothing that decides it may start CUDA, which would keep what it saw first."""
    environment: dict[str, str] = {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    narrow_to(Gpu("2", "GPU-cccc", "H100"), environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": "2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    source = (
        "import torch; from hpcasync.train.machine.gpus import see_gpus; from hpcasync.train.machine import devices\n"
        "see_gpus(); assert not torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork()"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


class StartedCuda:
    """A recording stand-in of torch.cuda, for what no CPU shows: CUDA looks at the variable once, when it starts."""

    def __init__(self, patch: pytest.MonkeyPatch, saw: str) -> None:
        """`saw`: what the variable was then; empty: it has not started."""
        self._saw = saw
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch._C, "_cuda_getDeviceCount", lambda: len(self._uuids()), raising=False)
        patch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=self._uuids()[index]))

    def _uuids(self) -> list[str]:
        self._saw = self._saw or os.environ["CUDA_VISIBLE_DEVICES"]
        return [f"uuid-{word}" for word in self._saw.split(",")]


@pytest.mark.parametrize(
    ("saw", "visible", "number", "left"),
    [("", "2", 0, "2"), ("2", "2", 0, "2"), ("0,2,3", "2", 1, "0,2,3"), ("3,2", "3", 0, "3,2")],
)
def test_a_program_may_have_started_cuda_before(
    monkeypatch: pytest.MonkeyPatch, saw: str, visible: str, number: int, left: str
) -> None:
    """`torch.cuda.is_available()` is enough; without more, each rank of a host would take the first GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", saw or "0,1,2,3")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    StartedCuda(monkeypatch, saw)
    assert take(Gpu(visible, f"GPU-uuid-{visible}", "H100")) == number
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_a_gpu_that_cuda_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    StartedCuda(monkeypatch, "0,1")
    with pytest.raises(UserError, match=r"cannot use H100 GPU-uuid-2: CUDA was started before hpcasync chose it"):
        take(Gpu("2", "GPU-uuid-2", "H100"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"cannot use H100 GPU-uuid-1: compare it with `nvidia-smi`"):
        take(Gpu("1", "GPU-uuid-1", "H100"))
