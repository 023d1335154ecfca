"""The synchronous baseline's sums, in every form they take."""

from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_bucket_sums.py"


@pytest.mark.parametrize(
    ("backend", "compression", "said"),
    [
        ("horovod", "none", "Horovod (MPI), 6 bucket(s) during backward"),
        ("horovod", "fp16", "Horovod (MPI), 6 bucket(s) during backward, as float16"),
        ("torch", "none", "torch.distributed (gloo), 6 bucket(s) during backward"),
        ("torch", "bf16", "torch.distributed (gloo), 6 bucket(s) during backward, as bfloat16"),
    ],
)
def test_sums_are_exact_and_begin_during_backward(mpirun: MpiRunner, backend: str, compression: str, said: str) -> None:
    if backend == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed: make setup")
    job = mpirun.python(3, PROGRAM, backend, compression)
    assert job.stdout.count(f"{said}: bucket sums are exact") == 3
