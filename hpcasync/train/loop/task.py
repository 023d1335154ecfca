"""What a run trains, whatever ranks and clock it has: a corpus in batches, and a model in one vector."""

from dataclasses import dataclass

import torch

from hpcasync.config.schema import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.manifest import SIDES, vocabulary_file
from hpcasync.data.mixture import Mixture
from hpcasync.data.sampling import SubwordSampling
from hpcasync.nmt.build import build_model
from hpcasync.nmt.memory import keep_freed_memory
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.transformer import Transformer
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.identity import identity
from hpcasync.train.loop.corpus_checks import open_corpora
from hpcasync.train.loop.fine_tuning import freeze_, start_from_
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.records.trackers import trackers_of


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
        """What a resumed run must share with the one before it."""
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

    def fresh_updates(self, num_workers: int) -> int:
        """Updates of staleness.fresh_start; none where nobody waits: an update of one push is there with it."""
        if self.config.mode == "sync" or self.config.pushes_per_update(num_workers) == 1:
            return 0
        return self.config.fresh_updates(num_workers, self.tokens_per_batch, self.plan.num_batches())

    def open_recorder(self) -> Recorder:
        """Where the records of the run go: its directory, which exists, and standard output."""
        config, num_batches = self.config, self.plan.num_batches()
        console = Console(config.stop, num_batches)
        trackers = trackers_of(config, console.line)
        return Recorder(
            config.output_dir, console, every=config.logging.every, trackers=trackers, batches_per_epoch=num_batches
        )


def make_task(config: Config, device: torch.device) -> Task:
    """Open the corpus and build the model on a device.

    Raises:
        UserError: the corpus cannot be used.
    """
    if device.type == "cpu":
        keep_freed_memory()
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
    return Task(config, mixture, plan, model, FlatParameters(model), start_digest, frozen_digest)


def _identity(config: Config, corpus: PreparedCorpus) -> dict[str, str]:
    files = corpus.manifest.files
    return identity(config.model, {side: files[vocabulary_file(side)].sha256 for side in SIDES})
