"""Translation of text: pieces, batches of similar length, beam search, and translations in the order of the input."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from hpcasync.data.collate import collate_sources
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError
from hpcasync.nmt.beam import BeamSettings, NBest, beam_search
from hpcasync.nmt.evaluation_mode import evaluation_mode
from hpcasync.nmt.model import TranslationModel

logger = logging.getLogger(__name__)
_MOST_DIGITS = 34.0  # of what log probabilities are divided by: the quotients are 32-bit numbers


@dataclass(frozen=True)
class Hypothesis:
    """A translation.

    Attributes:
        text: detokenised, without blanks at its ends.
        score: log_prob / len(tokens) ** length_penalty, what hypotheses are ranked by.
        log_prob: total log probability in nats.
        tokens: ids, end of sentence included; empty for an empty source.
    """

    text: str
    score: float
    log_prob: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        beam: hypotheses kept per sentence; 1 is greedy search.
        nbest: translations returned per sentence, at most `beam`.
        length_penalty: exponent of the length by which a log probability is divided (see hpcasync.nmt.beam).
        patience: a sentence is done when beam * patience hypotheses have ended.
        max_length_factor, max_length_extra: a translation of n source pieces has at most
            max_length_factor * n + max_length_extra tokens, end of sentence included.
        batch_tokens: padded source tokens times `beam` in one batch at most; bounds the memory.
    """

    beam: int = 5
    nbest: int = 1
    length_penalty: float = 1.0
    patience: float = 2.0
    max_length_factor: float = 2.0
    max_length_extra: int = 10
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        """Raises UserError for a value that is out of range."""
        for name, minimum in (("beam", 1), ("nbest", 1), ("length_penalty", 0), ("patience", 0), ("batch_tokens", 1)):
            if not getattr(self, name) >= minimum:
                raise UserError(f"{name} must be at least {minimum}, not {getattr(self, name)}")
        if self.nbest > self.beam:
            raise UserError(f"nbest {self.nbest} is more than beam {self.beam} can find: raise beam or lower nbest")
        if not self.max_length_factor >= 0 or self.max_length_extra < 1:
            raise UserError("max_length_factor must be at least 0 and max_length_extra at least 1")


class Searcher:
    """Translates sentences with a model, on the device that the model is on.

    Padding, beginning of sentence and the unknown piece are never generated. A source longer than `max_length`
    (the model's) is cut there, with a warning.
    """

    def __init__(
        self,
        model: TranslationModel,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        settings: SearchSettings,
        *,
        max_length: int,
    ) -> None:
        self._model = model
        self._source_vocabulary = source_vocabulary
        self._target_vocabulary = target_vocabulary
        self._settings = settings
        self._max_length = max_length
        self._device = next(model.parameters()).device
        if settings.length_penalty * math.log10(max_length) > _MOST_DIGITS:
            most = _MOST_DIGITS / math.log10(max_length)
            raise UserError(
                f"length penalty {settings.length_penalty:g}: length ** penalty is beyond 32-bit numbers for "
                f"translations of up to {max_length} pieces (model.max_length); give {most:.1f} at most"
            )
        forbidden = (target_vocabulary.pad_id, target_vocabulary.bos_id, target_vocabulary.unk_id)
        self._beam_settings = BeamSettings(
            beam=settings.beam,
            nbest=settings.nbest,
            length_penalty=settings.length_penalty,
            patience=settings.patience,
            bos_id=target_vocabulary.bos_id,
            eos_id=target_vocabulary.eos_id,
            forbidden=forbidden,
        )

    def translate(self, sentences: Sequence[str], *, first_number: int = 1) -> list[list[Hypothesis]]:
        """The n-best list of every sentence, best first; an empty sentence has one empty hypothesis.

        Args:
            sentences: untokenised text.
            first_number: what warnings and errors call the first sentence.

        Raises:
            UserError: the model's logits are not finite.
        """
        encoded = [self._encode(text, number) for number, text in enumerate(sentences, start=first_number)]
        translations = [[Hypothesis("", 0.0, 0.0, ())] for _ in sentences]
        for batch in self._batches([len(ids) for ids in encoded]):
            found = self._search([encoded[index] for index in batch])
            for index, hypotheses in zip(batch, found, strict=True):
                if not hypotheses:
                    raise UserError(
                        f"sentence {first_number + index}: the model's scores are not finite, so its parameters are "
                        "damaged or have diverged in training: use an earlier snapshot"
                    )
                translations[index] = hypotheses
        return translations

    def stream(self, sentences: Iterable[str], read_ahead: int) -> Iterator[list[Hypothesis]]:
        """Translate without end: read up to `read_ahead` sentences, yield their n-best lists in order, go on."""
        sentences, first_number = iter(sentences), 1
        while window := list(islice(sentences, read_ahead)):
            yield from self.translate(window, first_number=first_number)
            first_number += len(window)

    def _encode(self, text: str, number: int) -> list[int]:
        ids, limit = self._source_vocabulary.encode(text), self._max_length - 1
        if len(ids) > limit:
            logger.warning("sentence %d has %d pieces: only the first %d are translated", number, len(ids), limit)
        return ids[:limit]

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Indices of the sentences that are not empty, longest first, in batches within the token budget."""
        order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            row_tokens = (lengths[order[start]] + 1) * self._settings.beam
            stop = start + max(1, self._settings.batch_tokens // row_tokens)
            yield order[start:stop]
            start = stop

    def _search(self, sources: list[list[int]]) -> list[list[Hypothesis]]:
        factor, extra = self._settings.max_length_factor, self._settings.max_length_extra
        limits = [int(min(factor * len(ids) + extra, self._max_length)) for ids in sources]
        source = collate_sources(sources, self._source_vocabulary).to(self._device)
        with torch.inference_mode(), evaluation_mode(self._model):
            nbest = beam_search(self._model, source, torch.tensor(limits, device=self._device), self._beam_settings)
        return self._hypotheses(nbest)

    def _hypotheses(self, nbest: NBest) -> list[list[Hypothesis]]:
        columns = zip(
            nbest.scores.tolist(), nbest.log_probs.tolist(), nbest.lengths.tolist(), nbest.tokens.tolist(), strict=True
        )
        return [
            [
                Hypothesis(
                    self._target_vocabulary.decode(ids[:length]).strip(" "), score, log_prob, tuple(ids[:length])
                )
                for score, log_prob, length, ids in zip(*row, strict=True)
                if length
            ]
            for row in columns
        ]
