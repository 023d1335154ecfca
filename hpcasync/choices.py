"""What can be chosen of the protocol, by name: for the configuration, and for what acts on it."""

from typing import Literal

PullPolicy = Literal["latest", "added", "handled", "applied"]
GradientFormat = Literal["fp32", "bf16", "topk"]
ParameterFormat = Literal["fp32", "bf16"]
WindowKind = Literal["auto", "mpi", "mapped"]
StalenessPolicy = Literal["wait", "drop", "scale"]
# Gradients that are written and read a shard at a time: nothing of one can travel or be summed before all of it.
WHOLE_GRADIENT_FORMATS: frozenset[GradientFormat] = frozenset({"topk"})
