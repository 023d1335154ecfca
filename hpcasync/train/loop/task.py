"""What a run trains, whatever ranks and clock it has: a corpus in batches, and a model in one vector."""

from dataclasses import dataclass

import torch

from hpcasync.config.schema import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.manifest import SIDES, vocabulary_file
from hpcasync.nmt.build import build_model
from hpcasync.nmt.memory import keep_freed_memory
from hpcasync.nmt.model import TranslationModel
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.identity import identity
from hpcasync.train.loop.corpus_checks import open_corpus
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder


@dataclass(frozen=True)
class Task:
    """Corpus and model of a run.

    Attributes:
        config: of the run.
        corpus, plan: the batches.
        model: newly made, the same for the same seed.
        flat: its parameters and gradient.
    """

    config: Config
    corpus: PreparedCorpus
    plan: BatchPlan
    model: TranslationModel
    flat: FlatParameters

    @property
    def layout(self) -> dict[str, str]:
        """What a resumed run must share with the one before it."""
        files = self.corpus.manifest.files
        return {
            "model": self.flat.digest,
            "corpus": self.corpus.digest,
            "batches": f"{self.config.data.batch_tokens} tokens, seed {self.config.seed}",
            **identity(self.config.model, {side: files[vocabulary_file(side)].sha256 for side in SIDES}),
        }

    @property
    def tokens_per_batch(self) -> float:
        """Target tokens, on average, ends of sentences included."""
        return (int(self.corpus.train.target_file.offsets[-1]) + len(self.corpus.train)) / self.plan.num_batches()

    def fresh_updates(self, num_workers: int) -> int:
        """Updates of staleness.fresh_start; none where nobody waits: an update of one push is there with it."""
        if self.config.mode == "sync" or self.config.pushes_per_update(num_workers) == 1:
            return 0
        return self.config.fresh_updates(num_workers, self.tokens_per_batch, self.plan.num_batches())

    def open_recorder(self) -> Recorder:
        """Where the records of the run go: its directory, which exists, and standard output."""
        config, num_batches = self.config, self.plan.num_batches()
        return Recorder(
            config.output_dir,
            Console(config.stop, num_batches),
            every=config.logging.every,
            tensorboard=config.logging.tensorboard,
            batches_per_epoch=num_batches,
        )


def make_task(config: Config, device: torch.device) -> Task:
    """Open the corpus and build the model on a device.

    Raises:
        UserError: the corpus cannot be used.
    """
    if device.type == "cpu":
        keep_freed_memory()
    corpus = open_corpus(config)
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    plan = BatchPlan(corpus.train, source, target, batch_tokens=config.data.batch_tokens, seed=config.seed)
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id).to(device)
    return Task(config, corpus, plan, model, FlatParameters(model))
