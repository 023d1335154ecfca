"""The GPUs of a host, told apart without starting CUDA: a process that has started it keeps what it saw then."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hpcasync.errors import UserError

# For the process that scores snapshots: CUDA_VISIBLE_DEVICES of its GPU; empty: the CPU.
SCORING_GPU_VARIABLE = "HPCASYNC_SCORING_GPU"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ("nvidia-smi", "--query-gpu=uuid,pci.bus_id,name", "--format=csv,noheader")
_DEVICES = Path("/sys/bus/pci/devices")
_DRIVER = Path("/proc/driver/nvidia/version")
# A GPU that has failed can keep it waiting for ever.
_MOST_SECONDS = 60


@dataclass(frozen=True)
class Gpu:
    """One that a rank may use.

    Attributes:
        visible: what to set CUDA_VISIBLE_DEVICES to, for it alone.
        uuid: by which ranks that number differently know it.
        name: of the card.
        node: NUMA node that it is near to; None where the system does not say.
    """

    visible: str
    uuid: str
    name: str
    node: int | None = None

    @property
    def is_part(self) -> bool:
        """Of a card (MIG): other parts cannot map its memory."""
        return self.uuid.startswith("MIG")

    def __str__(self) -> str:
        return f"{self.name} {self.uuid[:12]}"


@dataclass(frozen=True)
class SeenGpus:
    """What a rank sees: GPUs, or why there are none although there is a driver."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def see_gpus() -> SeenGpus:
    """The GPUs that this process may use, in CUDA's order."""
    if shutil.which(_QUERY[0]) is None:
        return SeenGpus(problem="there is a driver, but no nvidia-smi" if _DRIVER.exists() else "")
    try:
        listed = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return SeenGpus(problem=f"nvidia-smi has not answered in {_MOST_SECONDS} s")
    # It fails, too, for what keeps no GPU from computing, such as a damaged information ROM.
    if listed.returncode and not _fields_of(listed.stdout):
        said = (listed.stdout + listed.stderr).strip().splitlines() or ["nothing"]
        return SeenGpus(problem=f"nvidia-smi fails: {said[0]}" if _DRIVER.exists() else "")
    gpus = choose_visible(listed.stdout, os.environ)
    if gpus and torch.version.cuda is None:
        return SeenGpus(problem=f"{gpus[0].name}, but this torch is a build for the CPU")
    return SeenGpus(gpus)


def choose_visible(listing: str, environment: Mapping[str, str], devices: Path = _DEVICES) -> tuple[Gpu, ...]:
    """Those of nvidia-smi's list that CUDA_VISIBLE_DEVICES leaves, in its order."""
    every = [Gpu(uuid, uuid, name, _node_of(bus_id, devices)) for uuid, bus_id, name in _fields_of(listing)]
    if _VISIBLE not in environment:
        return tuple(every)
    chosen = []
    for word in filter(None, map(str.strip, environment[_VISIBLE].split(","))):
        if word.isdecimal() and int(word) < len(every):
            chosen.append(replace(every[int(word)], visible=word))
        elif word.isalnum() or word.startswith("-"):
            break  # as CUDA does: what follows a number that there is not, is not seen
        else:
            named = [gpu for gpu in every if gpu.uuid.startswith(word)]
            chosen.append(replace(named[0], visible=word) if named else Gpu(word, word, "part of a GPU"))
    return tuple(chosen)


def _fields_of(listing: str) -> list[list[str]]:
    return [line.split(", ", 2) for line in listing.splitlines() if line.count(", ") >= 2]


def _node_of(bus_id: str, devices: Path) -> int | None:
    """The NUMA node of a device: the kernel writes -1 where there is none, and fewer digits than nvidia-smi."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        node = int((devices / f"{int(domain, 16):04x}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def narrow_to(gpu: Gpu | str, environment: "dict[str, str] | os._Environ[str]" = os.environ) -> None:
    """Let this process, which has not started CUDA, see one GPU alone: `cuda:0`."""
    # Numbers then mean what they mean to nvidia-smi.
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    environment[_VISIBLE] = gpu if isinstance(gpu, str) else gpu.visible


def take(gpu: Gpu) -> int:
    """Narrow this process to a GPU; returns its number for torch.

    That is 0, unless something has started CUDA already: then all that it saw stays. `torch.cuda.is_available` does,
    and MPI_Init of a library that takes GPU memory.

    Raises:
        UserError: torch cannot use it.
    """
    before = os.environ.get(_VISIBLE)
    narrow_to(gpu)
    number = torch._C._cuda_getDeviceCount() if torch.cuda.is_available() else 0  # by CUDA, not by the variable
    if number == 1:
        return 0
    if before is None:
        del os.environ[_VISIBLE]
    else:
        os.environ[_VISIBLE] = before
    for index in range(number):
        if str(torch.cuda.get_device_properties(index).uuid).lower() == gpu.uuid.partition("-")[2].lower():
            return index
    why = "CUDA was started before hpcasync chose it, and sees others" if number else "compare it with `nvidia-smi`"
    raise UserError(f"torch, built for CUDA {torch.version.cuda}, cannot use {gpu}: {why}")
