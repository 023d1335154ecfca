"""What is said of kernels for GPUs, and that ranks must agree on them."""

import pytest
import torch

from hpcasync import device_kernels
from hpcasync.errors import UserError
from hpcasync.train.machine.resources import describe_kernels


def test_the_header_says_how_gpus_compute() -> None:
    assert describe_kernels([None, None]) == [], "no rank has a GPU"
    assert describe_kernels([None, "", ""]) == [
        "loss and updates on GPUs: in one pass over memory, by kernels in Triton"
    ]
    (line,) = describe_kernels([None, "no compiler", "no compiler"])
    assert line.endswith("by torch, in a pass for each operation; no kernels: no compiler")


def test_ranks_that_differ_are_refused() -> None:
    with pytest.raises(UserError, match=r"rank 2 has no kernels for its GPU \(no compiler\), but other ranks have"):
        describe_kernels([None, "", "no compiler"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_are_none() -> None:
    assert device_kernels.lack() == "there is no GPU"
    assert not device_kernels.can_use(torch.device("cuda")) and not device_kernels.can_use(torch.device("cpu"))


def test_what_keeps_kernels_from_running_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this torch, which has no CUDA, the first thing that fails."""
    if torch.version.cuda:
        pytest.skip("a CUDA build of torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "CUDA" in device_kernels.lack.__wrapped__()
