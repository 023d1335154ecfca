"""Workers on GPUs; the CPU stands in for one where there is none, for all but the streams. See the program."""

from pathlib import Path

import pytest
import torch
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_device_vectors.py"


@pytest.mark.parametrize(
    ("overlap", "gradients", "window"),
    [
        ("none", "fp32", "mpi"),
        ("push", "fp32", "mpi"),
        ("push", "bf16", "mpi"),
        ("none", "fp32", "mapped"),
        ("push", "fp32", "mapped"),
        ("push", "bf16", "mapped"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_vectors_of_a_device_travel(mpirun: MpiRunner, device: str, overlap: str, gradients: str, window: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    job = mpirun.python(3, PROGRAM, device, overlap, gradients, window, timeout=300)
    assert "device vectors passed" in job.stdout
