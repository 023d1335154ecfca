"""The GPUs of a host, told apart without starting CUDA: a process that has started it keeps what it saw then."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

# For the process that scores snapshots: CUDA_VISIBLE_DEVICES of its GPU; empty: the CPU.
SCORING_GPU_VARIABLE = "HPCASYNC_SCORING_GPU"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ("nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One that a rank may use.

    Attributes:
        visible: what to set CUDA_VISIBLE_DEVICES to, for it alone.
        uuid: by which ranks that number differently know it.
        name: of the card.
    """

    visible: str
    uuid: str
    name: str

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
    listed = subprocess.run(_QUERY, capture_output=True, text=True)
    if listed.returncode:
        said = (listed.stdout + listed.stderr).strip().splitlines() or ["nothing"]
        return SeenGpus(problem=f"nvidia-smi fails: {said[0]}" if _DRIVER.exists() else "")
    gpus = choose_visible(listed.stdout, os.environ)
    if gpus and torch.version.cuda is None:
        return SeenGpus(problem=f"{gpus[0].name}, but this torch is a build for the CPU")
    return SeenGpus(gpus)


def choose_visible(listing: str, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those of nvidia-smi's list that CUDA_VISIBLE_DEVICES leaves, in its order."""
    fields = [line.split(", ", 1) for line in listing.splitlines() if ", " in line]
    every = [Gpu(uuid, uuid, name) for uuid, name in fields]
    if _VISIBLE not in environment:
        return tuple(every)
    chosen = []
    for word in filter(None, map(str.strip, environment[_VISIBLE].split(","))):
        if word.isdecimal() and int(word) < len(every):
            chosen.append(Gpu(word, every[int(word)].uuid, every[int(word)].name))
        elif word.isalnum() or word.startswith("-"):
            break  # as CUDA does: what follows a number that there is not, is not seen
        else:
            named = [gpu for gpu in every if gpu.uuid.startswith(word)]
            chosen.append(Gpu(word, named[0].uuid if named else word, named[0].name if named else "part of a GPU"))
    return tuple(chosen)


def narrow_to(gpu: Gpu | str, environment: "dict[str, str] | os._Environ[str]" = os.environ) -> None:
    """Let this process, which has not started CUDA, see one GPU alone: `cuda:0`."""
    # Numbers then mean what they mean to nvidia-smi.
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    environment[_VISIBLE] = gpu if isinstance(gpu, str) else gpu.visible
