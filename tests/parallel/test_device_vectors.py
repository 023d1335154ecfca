"""Workers on GPUs; the CPU stands in for one where there is none, for all but the streams. See the program."""

from pathlib import Path

import pytest
import torch
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_device_vectors.py"


@pytest.mark.parametrize(("overlap", "gradients"), [("none", "fp32"), ("push", "fp32"), ("push", "bf16")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_vectors_of_a_device_travel_by_way_of_the_host(
    mpirun: MpiRunner, device: str, overlap: str, gradients: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    assert "device vectors passed" in mpirun.python(3, PROGRAM, device, overlap, gradients, timeout=300).stdout
