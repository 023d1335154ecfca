"""What is imported when: the package itself, and the command line's help, start nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "mpi4py", "mpi4py.MPI", "horovod", "sacrebleu", "sentencepiece", "tensorboard", "numpy")
SHOW = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"


def loaded_after(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", f"{source}\n{SHOW}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "source",
    [
        "import hpcasync",
        "import hpcasync.config.schema, hpcasync.errors",
        "import hpcasync.cli.main",
        "import hpcasync.comm.shards, hpcasync.comm.roles",
        "import hpcasync.cli.main as m\ntry: m.cli(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_loaded(source: str) -> None:
    assert loaded_after(source) == "[]"


def test_the_decisions_need_neither_mpi_nor_horovod() -> None:
    assert "mpi4py" not in loaded_after(
        "import hpcasync.ps.protocol.updates, hpcasync.ps.protocol.tickets, hpcasync.train.loop.schedule"
    )


def test_asynchronous_training_does_not_need_horovod() -> None:
    source = "sys = __import__('sys'); sys.modules['horovod'] = None\nimport mpi4py; mpi4py.rc.initialize = False\n"
    source += "import hpcasync.train.job\nfrom mpi4py import MPI; assert not MPI.Is_initialized()"
    assert "horovod.torch" not in loaded_after(source)


def test_a_wrong_configuration_is_refused_before_mpi_starts(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hpcasync", "train", "absent.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "cannot read the configuration absent.yaml" in done.stderr
    assert "mpi4py" not in done.stderr and "| torch" not in done.stderr


def test_a_rank_that_trains_loads_no_search_no_scores_and_no_report() -> None:
    source = """import mpi4py; mpi4py.rc.initialize = False
import hpcasync.train.job
loaded = [n for n in sys.modules if n.startswith(("sacrebleu", "simpy", "babel", "requests", "matplotlib", "plotly"))]
assert not loaded, loaded
loaded = {"hpcasync.nmt.beam", "hpcasync.nmt.scoring", "hpcasync.report"} & set(sys.modules)
assert not loaded, loaded"""
    loaded_after(f"import sys\n{source}")


def test_no_rank_that_trains_on_cpus_loads_the_compiler_of_torch() -> None:
    """It takes 75 MB of each; whatever makes or steps an optimizer of torch loads it."""
    source = """import torch
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server import fused_apply
from hpcasync.ps.start_checks import require_elementwise
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.train.loop.optimizers import optimizer_factory
for name in ("adam", "adamw"):
    for nesterov in (False, True):
        make = optimizer_factory(OptimizerConfig(name=name, nesterov=nesterov))
        require_elementwise(make, torch.device("cpu"))
        state = ShardState(torch.ones(9), make)
        if fused_apply.is_available():
            state.apply(blocks_of(torch.ones(9)), scale=1.0, learning_rate=0.1, version=1)
            assert state.parameters[0] < 1
assert "torch._dynamo" not in sys.modules"""
    loaded_after(f"import sys\n{source}")


def test_a_command_whose_extra_is_missing_says_which() -> None:
    source = """import sys
sys.modules["simpy"] = None
from hpcasync.__main__ import main
sys.argv = ["hpcasync", "simulate", "configs/multi30k.yaml", "data.path=none", "--no-gradients", "--parameters", "9999"]
main()"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "pip install 'hpcasync[simulate]'" in done.stderr
    assert "Traceback" not in done.stderr
