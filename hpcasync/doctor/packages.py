"""Checks of Python packages, torch and its devices among them. A package counts as present when it can be imported."""

import importlib
import shutil
from importlib import metadata
from types import ModuleType

from hpcasync import device_kernels
from hpcasync.command_line import pip_install
from hpcasync.doctor.check import Check

_GIB = 1 << 30
# module, distribution, is_required, what its lack disables
_PACKAGES = (
    ("sentencepiece", "sentencepiece", True, "vocabularies: all training and translation of text"),
    ("sacrebleu", "sacrebleu", True, "BLEU, chrF and TER: validation and `hpcasync evaluate`"),
    ("safetensors", "safetensors", True, "snapshots and checkpoints"),
    ("tensorboard", "tensorboard", False, "TensorBoard events of runs"),
    ("simpy", "simpy", False, "`hpcasync simulate`"),
    ("babel", "Babel", False, "`hpcasync demo` and `data fetch embedded`"),
    ("mtdata", "mtdata", False, "`hpcasync data fetch` of the WMT corpora"),
)


def package_checks() -> list[Check]:
    """Packages beside torch, mpi4py and Horovod."""
    return [check_package(*package) for package in _PACKAGES]


def check_package(module: str, distribution: str, is_required: bool, disables: str) -> Check:
    """Import one package and look up its version."""
    loaded, reason = _load(module)
    if loaded is None:
        return _lack(module, distribution, reason, is_required, disables)
    version = metadata.version(distribution)
    return Check(module, "ok", version, is_required, facts={"version": version})


def check_torch() -> Check:
    """PyTorch, its build and its threads."""
    torch, reason = _load("torch")
    if torch is None:
        return _lack("torch", "torch==2.13.0", reason, True, "everything")
    facts = {"version": str(torch.__version__), "threads": torch.get_num_threads(), "cuda_build": torch.version.cuda}
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", "ok", f"{torch.__version__}, {build}, {facts['threads']} threads", True, facts=facts)


def check_cuda() -> Check:
    """NVIDIA devices that torch can use."""
    torch, _ = _load("torch")
    disables = "training and translating on GPUs; everything runs on CPU"
    if torch is not None and torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        described = ", ".join(f"{device.name} ({device.total_memory / _GIB:.0f} GiB)" for device in devices)
        try:
            torch.ones(1, device="cuda").item()
        except (RuntimeError, AssertionError) as error:
            detail = f"{described}; torch cannot compute there: {next(iter(str(error).splitlines()), '')}"
            cure = "see that no process has the GPU for itself (`nvidia-smi`), and that this torch is for one so old"
            return Check("cuda", "broken", detail, disables=disables, cure=cure)
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
        lack = device_kernels.lack()
        facts = {"devices": [device.name for device in devices], "cuda": torch.version.cuda, "nccl": nccl}
        facts["kernels"], facts["locks_pages"] = not lack, not (refusal := _lock_refusal(torch))
        detail = f"{described}; CUDA {torch.version.cuda}, NCCL {nccl}{refusal and f'; shared memory: {refusal}'}"
        if refusal and not lack:
            means = "nothing; between a GPU and MPI's windows vectors pass through other host memory"
            return Check("cuda", "limited", detail, disables=means, cure="see docs/gpu.md", facts=facts)
        if not lack:
            return Check("cuda", "ok", detail, facts=facts)
        return Check(
            "cuda",
            "limited",
            f"{detail}; no kernels of our own: {lack}",
            disables="nothing; torch computes the loss and updates on GPUs, in a pass over memory for each operation",
            cure=f"{pip_install('triton')} in the version that torch requires, and a C compiler (apt-get install gcc)",
            facts=facts,
        )
    if shutil.which("nvidia-smi") is None:
        cure = "a machine with an NVIDIA GPU and its driver"
        return Check("cuda", "missing", "no NVIDIA driver on this machine", disables=disables, cure=cure)
    if torch is not None and torch.version.cuda is None:
        cure = "install a CUDA build of torch, see docs/install.md"
        return Check(
            "cuda", "broken", "there is an NVIDIA driver, but torch is a CPU build", disables=disables, cure=cure
        )
    cure = "compare `nvidia-smi` with the CUDA version of torch: a newer driver, or a torch for an older CUDA"
    return Check("cuda", "broken", "torch cannot use the NVIDIA driver", disables=disables, cure=cure)


def _lock_refusal(torch: ModuleType) -> str:
    """Why CUDA locks no pages of memory that processes share, as MPI's windows are, or nothing."""
    from hpcasync.comm.page_lock import PageLock  # imports torch, which may not be there

    lock = PageLock([torch.zeros(1 << 20, dtype=torch.uint8).share_memory_()], torch.device("cuda"))
    lock.free()
    return lock.refusal


def _load(module: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        return None, "" if error.name == module else str(error)
    except Exception as error:  # a broken installation can raise anything, and is what is looked for here
        return None, f"{type(error).__name__}: {error}"


def _lack(name: str, distribution: str, reason: str, is_required: bool, disables: str) -> Check:
    cure = pip_install(*(["--force-reinstall"] if reason else []), distribution)
    status, detail = ("broken", reason.splitlines()[0]) if reason else ("missing", "not installed")
    return Check(name, "broken" if status == "broken" else "missing", detail, is_required, disables, cure)
