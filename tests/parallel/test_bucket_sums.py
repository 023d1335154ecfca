"""The synchronous baseline's sums, in every form they take."""

from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_bucket_sums.py"


@pytest.mark.parametrize(
    ("backend", "description", "compressions"),
    [
        ("horovod", "Horovod (MPI), 6 bucket(s) during backward", {"none": "", "fp16": ", as float16"}),
        ("torch", "torch.distributed (gloo), 6 bucket(s) during backward", {"none": "", "bf16": ", as bfloat16"}),
    ],
)
def test_sums_are_exact_and_begin_during_backward(
    mpirun: MpiRunner, backend: str, description: str, compressions: dict[str, str]
) -> None:
    if backend == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed: make setup")
    job = mpirun.python(3, PROGRAM, *(word for compression in compressions for word in (backend, compression)))
    for form in compressions.values():
        assert job.stdout.count(f"{description}{form}: bucket sums are exact") == 3
