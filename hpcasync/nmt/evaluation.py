"""Scores of a trained model on the validation or test text of its corpus."""

import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.languages import AUTO, choose_tokenizer
from hpcasync.nmt.comet import comet_identity, load_comet
from hpcasync.nmt.load import TrainedModel
from hpcasync.nmt.scoring import BleuScore, Loss, corpus_loss, corpus_score
from hpcasync.nmt.search import Searcher, SearchSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSettings:
    """What is scored, and how it is searched.

    Attributes:
        split: text of the corpus.
        beam, length_penalty: as in hpcasync.nmt.search.SearchSettings.
        max_sentences: the first so many pairs are searched for BLEU and chrF; 0: all. The loss is that of all pairs.
        tokenize: the tokeniser of BLEU; "auto": by the target language of the corpus.
        batch_tokens: padded tokens per batch, bounds the memory; does not change the scores.
        comet: a COMET model, for that score, too.
    """

    split: str = "valid"
    beam: int = 5
    length_penalty: float = SearchSettings.length_penalty
    max_sentences: int = 0
    tokenize: str = AUTO
    batch_tokens: int = SearchSettings.batch_tokens
    comet: Path | None = None

    def search_settings(self) -> SearchSettings:
        return SearchSettings(beam=self.beam, length_penalty=self.length_penalty, batch_tokens=self.batch_tokens)

    def for_corpus(self, corpus: PreparedCorpus) -> "EvaluationSettings":
        """With the tokeniser that suits the corpus."""
        return replace(self, tokenize=choose_tokenizer(self.tokenize, corpus.manifest.target_language))

    def identity(self) -> dict[str, Any]:
        """What the scores depend on."""
        search = self.search_settings()
        return {
            "split": self.split,
            "beam": self.beam,
            "length_penalty": self.length_penalty,
            "patience": search.patience,
            "max_sentences": self.max_sentences,
            "tokenize": self.tokenize,
            "max_length_factor": search.max_length_factor,
            "max_length_extra": search.max_length_extra,
            **({"comet": comet_identity(self.comet)} if self.comet else {}),
        }


@dataclass(frozen=True)
class Scores:
    """The scores of one set of parameters; of diverged ones, BLEU and chrF are 0 and the loss is not finite.

    Attributes:
        loss: nats per target token, ends of sentence included, without label smoothing.
        perplexity: exp(loss).
        bleu, chrf: 0 to 100, with sacreBLEU's signatures.
        bleu_brevity_penalty, bleu_length_ratio, bleu_precisions: see hpcasync.nmt.scoring.BleuScore.
        num_sentences: pairs searched for BLEU and chrF.
        num_tokens: target tokens that the loss is averaged over.
        seconds: time that scoring took.
        comet, comet_signature: COMET, times 100, and of which model; None without one.
    """

    loss: float
    perplexity: float
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    bleu_brevity_penalty: float
    bleu_length_ratio: float
    bleu_precisions: list[float]
    num_sentences: int
    num_tokens: int
    seconds: float
    comet: float | None = None
    comet_signature: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a loss that is not finite stays a float, and what there is not is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def score_parameters(trained: TrainedModel, corpus: PreparedCorpus, settings: EvaluationSettings) -> Scores:
    """Loss, BLEU and chrF of a model on the device that it is on; the parameters stay as they are.

    Raises:
        UserError: the corpus has no such text.
    """
    start_seconds = time.perf_counter()
    sources, targets = corpus.raw(settings.split)
    max_length = trained.config.model.max_length
    vocabularies = trained.source_vocabulary, trained.target_vocabulary
    loss = corpus_loss(
        trained.model, (sources, targets), vocabularies, max_length=max_length, batch_tokens=settings.batch_tokens
    )
    num_searched = settings.max_sentences or len(sources)
    hypotheses = _translate(trained, sources[:num_searched], loss, settings)
    tokenize = settings.for_corpus(corpus).tokenize
    bleu, chrf = (corpus_score(name, hypotheses, [targets[:num_searched]], tokenize) for name in ("bleu", "chrf"))
    assert isinstance(bleu, BleuScore)
    comet = None
    if settings.comet:
        scorer = load_comet(settings.comet, next(trained.model.parameters()).device)
        comet = scorer.score(sources[:num_searched], hypotheses, targets[:num_searched])
    return Scores(
        loss=loss.per_token,
        perplexity=loss.perplexity,
        bleu=bleu.value,
        chrf=chrf.value,
        bleu_signature=bleu.signature,
        chrf_signature=chrf.signature,
        bleu_brevity_penalty=bleu.brevity_penalty,
        bleu_length_ratio=bleu.length_ratio,
        bleu_precisions=bleu.precisions,
        num_sentences=len(hypotheses),
        num_tokens=loss.num_tokens,
        seconds=time.perf_counter() - start_seconds,
        comet=None if comet is None else comet.value,
        comet_signature=None if comet is None else comet.signature,
    )


def _translate(trained: TrainedModel, sources: list[str], loss: Loss, settings: EvaluationSettings) -> list[str]:
    if not math.isfinite(loss.nll):
        logger.warning("the loss is not finite: the parameters have diverged, and translate nothing")
        return ["" for _ in sources]
    searcher = Searcher(
        trained.model,
        trained.source_vocabulary,
        trained.target_vocabulary,
        settings.search_settings(),
        max_length=trained.config.model.max_length,
    )
    return [hypotheses[0].text for hypotheses in searcher.translate(sources)]
