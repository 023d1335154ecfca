"""Workers on GPUs; the CPU stands in for one where there is none, for all but the streams. See the program."""

from pathlib import Path

import pytest
import torch
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_device_vectors.py"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_vectors_of_a_device_travel(mpirun: MpiRunner, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    job = mpirun.python(4, PROGRAM, device, timeout=300)
    assert "device vectors passed" in job.stdout
