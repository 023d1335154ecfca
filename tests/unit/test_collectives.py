"""What may sum gradients in mode sync is decided before the first sum."""

from typing import Any

import pytest
import torch

from hpcasync.config.schema import Config, parse_config
from hpcasync.errors import UserError
from hpcasync.train.modes.collectives import check_horovod_sums

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def config(**sync: Any) -> Config:
    return parse_config({"mode": "sync", "data": {"path": "x"}, "stop": {"updates": 1}, "sync": sync}, "test")


def test_horovod_without_nccl_is_refused_on_gpus_alone() -> None:
    check_horovod_sums(config(), CPU, has_nccl=False)
    check_horovod_sums(config(), GPU, has_nccl=True)
    with pytest.raises(UserError, match=r"built without NCCL: set sync.backend=torch, .*HOROVOD_GPU_OPERATIONS=NCCL"):
        check_horovod_sums(config(), GPU, has_nccl=False)


def test_horovod_does_not_sum_bfloat16() -> None:
    check_horovod_sums(config(compression="fp16"), CPU, has_nccl=False)
    with pytest.raises(UserError, match=r"sync.compression=bf16, .*sync.backend=torch"):
        check_horovod_sums(config(compression="bf16"), CPU, has_nccl=False)
