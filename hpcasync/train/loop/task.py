"""What a run trains, whatever ranks and clock it has: a corpus in batches, and a model in one vector."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hpcasync.config.schema import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.manifest import SIDES, vocabulary_file
from hpcasync.data.mixture import Mixture
from hpcasync.data.sampling import SubwordSampling
from hpcasync.errors import UserError
from hpcasync.nmt.build import build_model
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.transformer import Transformer
from hpcasync.ps.server.kernel_library import describe_updates
from hpcasync.ps.server.parameter_groups import Optimizers, cost_of_dearest_shard
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.counters import Counters
from hpcasync.runs.directory import optimizer_of_run
from hpcasync.runs.identity import identity
from hpcasync.runs.run_state import FreshStart, RunState
from hpcasync.train.loop.batch_order import BatchOrder
from hpcasync.train.loop.corpus_checks import open_corpora
from hpcasync.train.loop.fine_tuning import freeze_, start_from_
from hpcasync.train.loop.optimizers import make_optimizers
from hpcasync.train.loop.precision import precision_on
from hpcasync.train.loop.schedule import rate_of

# Times an equal part of an update that the dearest shard may cost before a run says so.
_UNEVEN = 1.5


@dataclass(frozen=True)
class Task:
    """Corpus and model of a run.

    Attributes:
        config: of the run.
        mixture, plan: the batches.
        model: newly made, the same for the same seed and `model.start_from`.
        flat: its parameters and gradient.
        start_digest, frozen_digest: which parameters it begins with, and which of them stay; empty: none.
    """

    config: Config
    mixture: Mixture
    plan: BatchPlan
    model: TranslationModel
    flat: FlatParameters
    start_digest: str = ""
    frozen_digest: str = ""

    @property
    def corpus(self) -> PreparedCorpus:
        """The first corpus, which has vocabularies and validation text."""
        return self.mixture.corpora[0]

    @property
    def layout(self) -> dict[str, str]:
        return {
            "model": self.flat.digest,
            "corpus": self.corpus.digest,
            "batches": f"{self.config.data.batch_tokens} tokens, seed {self.config.seed}",
            **({"sampling": f"{self.config.data.sampling:g}"} if self.config.data.sampling else {}),
            **({"shapes": "rounded"} if self.config.compile else {}),
            **_identity(self.config, self.corpus),
            **({"mixture": self.mixture.digest} if self.mixture.digest != self.corpus.digest else {}),
            **({"frozen parts": self.frozen_digest} if self.frozen_digest else {}),
        }

    @property
    def tokens_per_batch(self) -> float:
        """Target tokens, on average, ends of sentences included."""
        tokens = self.mixture.tokens
        return (tokens.target_file.num_tokens + len(tokens)) / self.plan.num_batches()

    @property
    def unit(self) -> tuple[str, str]:
        return "tok", "target tokens"

    @property
    def batch_weight(self) -> int:
        return self.config.data.batch_tokens

    @property
    def knows_last_backward(self) -> bool:
        """Not in fp16: the scale of its gradients is found and taken out when they are complete."""
        return self.config.precision != "fp16"

    @property
    def optimizers(self) -> Optimizers:
        return make_optimizers(self.config.optimizer, self.model, self.flat)

    @property
    def rate(self) -> Callable[[Counters], float]:
        return rate_of(self.config, self.plan.num_batches())

    @property
    def files(self) -> Iterable[Path]:
        """Vocabularies: a run directory has what it takes to translate."""
        return self.corpus.vocabulary_files

    def order(self, state: RunState) -> BatchOrder:
        return BatchOrder(state.ledger.remaining(), self.plan, self.config.stop.epochs)

    def go_on(self, checkpoint: Path, state: RunState) -> None:
        """Nothing is to be taken up but parameters and the run's state; only their own optimizer knows that of Muon.

        Raises:
            UserError: the checkpoint was written with Muon and the run goes on without it, or the other way round.
        """
        before, now = optimizer_of_run(checkpoint.parent.parent), self.config.optimizer.name
        if before != now and "muon" in (before, now):
            raise UserError(
                f"{checkpoint} was written with optimizer.name={before}, now {now}: go on with optimizer.name={before}"
            )

    def fresh_start(self, num_workers: int) -> FreshStart:
        config = self.config
        updates = 0
        if not config.is_always_fresh(num_workers):
            updates = config.fresh_updates(num_workers, self.tokens_per_batch, self.plan.num_batches())
        return FreshStart(config.staleness.fresh_start, updates)

    def effective_batch(self, num_workers: int) -> float:
        """Target tokens in one update, on average."""
        return self.tokens_per_batch * self.config.accumulate.local * self.config.pushes_per_update(num_workers)

    def cost_of_dearest_shard(self) -> float:
        """Of its update, where an equal part has 1; as for one server where nobody knows their number yet.

        Raises:
            UserError: there are more servers than shards can be cut.
        """
        num_servers = 1 if self.config.has_server_per_device else max(1, self.config.num_servers)
        return cost_of_dearest_shard(self.optimizers, self.flat.num_elements, num_servers)

    def describe(self, num_workers: int, fresh_updates: int) -> Iterator[str]:
        """Sizes of model and corpus, how updates are made, the effective batch, and the fresh start."""
        config, flat, plan, model = self.config, self.flat, self.plan, self.config.model
        device = flat.parameters.device
        yield (
            f"  model: {model.architecture}, {model.encoder_layers}+{model.decoder_layers} layers of {model.dim}, "
            f"{flat.num_trainable:,} parameters, {precision_on(device, config.precision)} on {device.type}"
            + (", layers compiled for each shape of batches" if config.compile else "")
        )
        yield f"  optimizer: {config.optimizer.name}{self._matrices_told()}; updates on CPU: {describe_updates()}"
        if (cost := self.cost_of_dearest_shard()) > _UNEVEN:
            yield (
                f"  shards: matrices are not cut, so one server's update costs {cost:.1f} times an equal part; "
                f"{math.ceil(config.num_servers / cost)} would do about as well (roles.servers)"
            )
        yield (
            f"  corpus: {len(self.mixture.tokens):,} pairs, {plan.num_batches():,} batches per epoch of "
            f"{self.tokens_per_batch:,.0f} target tokens on average, padding {100 * plan.padding().both:.1f} %"
        )
        is_sync = config.mode == "sync"
        summed = f"{num_workers} workers" if is_sync else f"global {config.pushes_per_update(num_workers)}"
        yield (
            f"  effective batch: {self.effective_batch(num_workers):,.0f} target tokens per update "
            f"(local {config.accumulate.local} x {summed})"
        )
        if fresh_updates:
            yield (
                f"  fresh start: workers wait for the first {fresh_updates:,} updates, as in sync "
                "(staleness.fresh_start)"
            )

    def _matrices_told(self) -> str:
        if callable(groups := self.optimizers):
            return ""
        return f" for {sum(group.is_whole for group in groups)} matrices, adamw for the rest"


def make_task(config: Config, device: torch.device) -> Task:
    """Open the corpus and build the model on a device.

    Raises:
        UserError: the corpus cannot be used, or the model cannot be cut into a shard for each server.
    """
    mixture = open_corpora(config)
    corpus = mixture.corpora[0]
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    plan = BatchPlan(
        mixture.tokens,
        source,
        target,
        batch_tokens=config.data.batch_tokens,
        seed=config.seed,
        sampling=SubwordSampling(config.data.sampling, config.model.max_length - 1) if config.data.sampling else None,
        rounded=config.compile,
    )
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
    start_digest = start_from_(model, config.model, _identity(config, corpus))
    frozen_digest = freeze_(model, config.model.frozen)
    model.to(device)
    if config.compile:
        assert isinstance(model, Transformer)
        model.compile_layers()
    task = Task(config, mixture, plan, model, FlatParameters(model), start_digest, frozen_digest)
    task.cost_of_dearest_shard()  # refuses what cannot be cut, before anything is written
    return task


def _identity(config: Config, corpus: PreparedCorpus) -> dict[str, str]:
    files = corpus.manifest.files
    return identity(config.model, {side: files[vocabulary_file(side)].sha256 for side in SIDES})
