"""The record of a push as it lies in a window: float64 words of fixed number."""

import numpy as np
import torch

from hpcasync.ps.protocol.record import PushRecord

_NUM_FIXED = 8


def record_bytes(max_tickets: int) -> int:
    """Space of an encoded record with up to `max_tickets` tickets, a multiple of 64 bytes."""
    return -(-(_NUM_FIXED + max_tickets) * 8 // 64) * 64


def encode_record(record: PushRecord, max_tickets: int) -> torch.Tensor:
    """The record as float64 words; integers stay exact up to 2**53."""
    if len(record.tickets) > max_tickets:
        raise ValueError(
            f"a push covers {len(record.tickets)} batches, but the windows have room for {max_tickets}: "
            f"set LinkOptions.max_tickets={len(record.tickets)} on all ranks"
        )
    # In numpy: torch takes microseconds more for a few numbers.
    words = np.zeros(record_bytes(max_tickets) // 8, np.float64)
    fixed = record.version, record.num_tokens, record.loss_sum, record.num_source_tokens, record.compute_seconds
    words[: len(fixed)] = fixed
    words[len(fixed)] = len(record.tickets)
    words[_NUM_FIXED : _NUM_FIXED + len(record.tickets)] = record.tickets
    return torch.from_numpy(words)


def decode_record(words: torch.Tensor) -> PushRecord:
    values = words.tolist()
    version, num_tokens, loss_sum, num_source_tokens, compute_seconds, num_tickets = values[:6]
    tickets = values[_NUM_FIXED : _NUM_FIXED + int(num_tickets)]
    return PushRecord(
        int(version), int(num_tokens), loss_sum, int(num_source_tokens), compute_seconds, tuple(map(int, tickets))
    )
