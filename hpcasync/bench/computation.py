"""A worker's computation, where only its length matters."""

import time

import torch

_SIZE = 256


def compute_for(seconds: float) -> None:
    """Multiply matrices until the time is over: keeps a core and its cache busy, as a step does."""
    matrix = torch.ones(_SIZE, _SIZE)
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        torch.mm(matrix, matrix)
