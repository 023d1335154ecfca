"""What is trained, as far as time depends on it: sizes of batches and of the model, and what travels."""

from dataclasses import dataclass

import numpy as np
import torch

from hpcasync.config.schema import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.mixture import Mixture
from hpcasync.errors import UserError
from hpcasync.nmt.build import build_model
from hpcasync.train.loop.optimizers import matrix_operations

# Batches of one data epoch stand for those of all, and of a large corpus the first ones for the others.
_MOST_BATCHES = 5000
_BYTES = {"fp32": 4.0, "bf16": 2.0}
# Of an element that topk sends: position and value; its message has room for a quarter more positions.
_TOPK_BYTES = 1.25 * 4 + 4


@dataclass(frozen=True)
class Workload:
    """Sizes.

    Attributes:
        batch_tokens: target tokens of batches, in the order of their tickets; repeated from there on.
        num_elements: length of the flat parameter vector.
        matrix_operations: of Muon's iterations at an update.
    """

    batch_tokens: tuple[int, ...]
    num_elements: int
    matrix_operations: int = 0


def find_workload(config: Config, num_parameters: int | None) -> tuple[Workload, str]:
    """The sizes of a configuration's corpus and model, and a line that says where they are from.

    Args:
        config: of the training run.
        num_parameters: of an imagined model instead of the configured one. Then the corpus may be missing: every batch
            has data.batch_tokens target tokens.
    """
    operations = operations_of(config)
    charged = "; Muon's iterations are those of the configured layers" if num_parameters and operations else ""
    if num_parameters is not None and not config.data.path.exists():
        tokens = config.data.batch_tokens
        told = f"{config.data.path} is not there: every batch has {tokens:,} target tokens (data.batch_tokens){charged}"
        return Workload((tokens,), num_parameters, operations), told
    try:
        corpus = PreparedCorpus.open(config.data.path)
    except UserError as error:
        raise UserError(f"{error}; or give --parameters N to simulate without a corpus") from error
    batch_tokens = _batch_tokens(config, corpus)
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    with torch.device("meta"):
        model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    if num_parameters is not None:
        num_elements = num_parameters
    told = f"{len(batch_tokens):,} batches of {np.mean(batch_tokens):,.0f} target tokens on average, from {corpus.path}"
    return Workload(batch_tokens, num_elements, operations), told + charged


def operations_of(config: Config) -> int:
    """As `Workload.matrix_operations`, which do not depend on vocabularies: those are not stepped as matrices."""
    with torch.device("meta"):
        model = build_model(config.model, 8, 8, 0, 0)
    return matrix_operations(config.optimizer, model)


def push_and_pull_bytes(
    config: Config, num_elements: int, *, in_place: bool = False, num_hosts: int = 0
) -> tuple[float, float]:
    """Bytes of a gradient and of the parameters on their way; in sync of what the allreduce sums.

    Args:
        in_place: servers read float32 gradients where they are computed.
        num_hosts: that sum what is pushed there, and have servers of their own; 0: there are no sums.
    """
    if config.mode == "sync":
        return num_elements * _BYTES["fp32" if config.sync.compression == "none" else "bf16"], 0.0
    exchange = config.exchange
    if num_hosts:
        # Gradients are read where they are computed, and the shards of a host's own servers where they are published.
        return 0.0, num_elements * _BYTES[exchange.parameters] * (num_hosts - 1) / num_hosts
    per_element = exchange.topk * _TOPK_BYTES if exchange.gradients == "topk" else _BYTES[exchange.gradients]
    if in_place and exchange.gradients == "fp32":
        per_element = 0.0
    return num_elements * per_element, num_elements * _BYTES[exchange.parameters]


def sum_bytes(config: Config, num_elements: int) -> float:
    """Bytes of a host's sum of gradients on its way."""
    return num_elements * _BYTES.get(config.exchange.gradients, 0.0)


def _batch_tokens(config: Config, corpus: PreparedCorpus) -> tuple[int, ...]:
    vocabularies = corpus.source_vocabulary, corpus.target_vocabulary
    more = map(PreparedCorpus.open, config.data.more)
    tokens = Mixture((corpus, *more), config.data.repeats).tokens
    plan = BatchPlan(
        tokens, *vocabularies, batch_tokens=config.data.batch_tokens, seed=config.seed, rounded=config.compile
    )
    return tuple(plan.num_target_tokens(ticket) for ticket in range(min(plan.num_batches(), _MOST_BATCHES)))
