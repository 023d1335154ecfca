"""What a worker computes in, where the configuration leaves that to the device."""

import torch

from hpcasync.config.schema import Precision


def precision_on(device: torch.device, wanted: Precision) -> Precision:
    """`wanted`; of `auto`, bf16 on a GPU whose tensor cores have it: fp32 leaves most of such a card idle."""
    if wanted != "auto":
        return wanted
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"
