"""Scores of translations by sacreBLEU (Post 2018), each with its signature, and the loss on untokenised pairs."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from hpcasync.data.collate import Batch, collate
from hpcasync.data.languages import DEFAULT, check_tokenizer
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError
from hpcasync.nmt.evaluation_mode import evaluation_mode
from hpcasync.nmt.model import TranslationModel

_MOST_SEED_DIGITS = 1000
METRICS: dict[str, type[Metric]] = {"bleu": BLEU, "chrf": CHRF, "ter": TER}


@dataclass(frozen=True)
class Score:
    """A corpus score from 0 to 100 (TER may exceed 100; less is better there alone)."""

    name: str  # as sacreBLEU calls it, for example "BLEU" or "chrF2"
    value: float
    signature: str


@dataclass(frozen=True)
class ComparedScore(Score):
    """A score with its paired bootstrap against the first system (Koehn 2004).

    Attributes:
        mean, interval: mean over resamples, and half the width of the 95 % confidence interval around it.
        p_value: of the difference to the first system; None for that one itself.
    """

    mean: float
    interval: float
    p_value: float | None


@dataclass(frozen=True)
class Loss:
    """Negative log likelihood of target tokens, ends of sentence included."""

    nll: float  # summed, in nats
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats per target token."""
        return self.nll / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(per_token); infinite where that is beyond a float."""
        return math.exp(self.per_token) if self.per_token < 700 else math.inf


@dataclass(frozen=True)
class BleuScore(Score):
    """BLEU with what it is made of: the geometric mean of the precisions times the brevity penalty.

    Attributes:
        brevity_penalty: 1 where translations are no shorter than references.
        length_ratio: tokens of the translations over those of the references.
        precisions: of n-grams, n from 1 to 4, in per cent.
    """

    brevity_penalty: float
    length_ratio: float
    precisions: list[float]


def corpus_score(
    name: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = DEFAULT
) -> Score:
    """Score a corpus with "bleu" (cased), "chrf" or "ter"; `references` holds whole documents.

    Args:
        tokenize: the tokeniser of BLEU.

    Raises:
        UserError: there is no sentence, a reference has another number of sentences, or the tokeniser cannot be used.
    """
    check_lengths({"the hypotheses": hypotheses}, references)
    metric = _metric(name, tokenize)
    result = metric.corpus_score(hypotheses, references)
    score = result.name, result.score, str(metric.get_signature())
    if isinstance(result, BLEUScore):
        return BleuScore(*score, result.bp, result.ratio, list(result.precisions))
    return Score(*score)


def paired_bootstrap(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
    num_samples: int = 1000,
    tokenize: str = DEFAULT,
) -> dict[str, list[ComparedScore]]:
    """Compare systems with the first of them by sacreBLEU's paired bootstrap resampling; its seed is in the signatures.

    Raises:
        UserError: fewer than two systems, or as `corpus_score`.
    """
    if len(systems) < 2:
        raise UserError("a comparison needs at least two systems with different names")
    check_lengths(systems, references)
    _check_seed()
    test = PairedTest(
        list(systems.items()),
        {METRICS[name].__name__: _metric(name, tokenize) for name in metrics},
        references,
        test_type="bs",
        n_samples=num_samples,
    )
    signatures, columns = test()
    first = list(next(iter(systems.values())))
    compared: dict[str, list[ComparedScore]] = {system: [] for system in systems}
    for name, signature in signatures.items():
        for system, result in zip(systems, columns[name], strict=True):
            assert isinstance(result, Result) and result.mean is not None and result.ci is not None
            p_value = result.p_value
            if p_value is not None and list(systems[system]) == first:
                p_value = 1.0  # sacreBLEU counts differences greater than the observed one, and finds none above 0
            compared[system].append(
                ComparedScore(name, result.score, str(signature), float(result.mean), float(result.ci), p_value)
            )
    return compared


def _metric(name: str, tokenize: str) -> Metric:
    """The metric; a tokeniser may need packages, or a model from the network."""
    if name != "bleu":
        return METRICS[name]()
    check_tokenizer(tokenize)
    try:
        return BLEU(tokenize=tokenize)
    except (RuntimeError, OSError, SystemExit) as error:  # sacreBLEU exits where it cannot fetch a model
        raise UserError(
            f"sacreBLEU has no tokeniser {tokenize} here ({error or 'see above'}): flores and spBLEU need the network "
            "once, or their model in ~/.sacrebleu; or choose another, such as char"
        ) from error


def _check_seed() -> None:
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    if seed.lower() != "none" and not (seed.isascii() and seed.isdigit() and len(seed) < _MOST_SEED_DIGITS):
        raise UserError(f"SACREBLEU_SEED={seed!r} is no seed: set it to a whole number, or to none for a random one")


def check_lengths(systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]) -> None:
    """Raise a UserError unless every document has as many sentences as the first reference, and at least one."""
    assert references
    expected = len(references[0])
    if expected == 0:
        raise UserError("the reference is empty: there is nothing to score")
    documents = [(f"reference {n}", document) for n, document in enumerate(references[1:], start=2)]
    for name, document in [*documents, *systems.items()]:
        if len(document) != expected:
            raise UserError(f"{name} has {len(document)} lines but the reference has {expected}: they must be parallel")


def corpus_loss(
    model: TranslationModel,
    pairs: tuple[Sequence[str], Sequence[str]],
    vocabularies: tuple[Vocabulary, Vocabulary],
    *,
    max_length: int,
    batch_tokens: int,
) -> Loss:
    """Negative log likelihood of untokenised targets given their sources, on the device that the model is on.

    Args:
        vocabularies: of the source and of the target language.
        max_length: tokens, end of sentence included, that a side is cut to (the model's limit).
        batch_tokens: padded tokens of the longer side of a batch at most.
    """
    device = next(model.parameters()).device
    nll, num_tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.inference_mode(), evaluation_mode(model):
        for batch in _batches(pairs, vocabularies, max_length, batch_tokens):
            moved = batch.to(device)
            _, batch_nll = model.summed_loss(
                moved.source, moved.target_input, moved.target_output, 0.0, moved.target_rows
            )
            nll += batch_nll
            num_tokens += batch.num_target_tokens
    return Loss(float(nll), num_tokens)


def _batches(
    pairs: tuple[Sequence[str], Sequence[str]],
    vocabularies: tuple[Vocabulary, Vocabulary],
    max_length: int,
    batch_tokens: int,
) -> Iterator[Batch]:
    sources, targets = (
        [vocabulary.encode(text)[: max_length - 1] for text in texts]
        for vocabulary, texts in zip(vocabularies, pairs, strict=True)
    )
    lengths = [max(len(s), len(t)) + 1 for s, t in zip(sources, targets, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], len(targets[i]), i))
    start = 0
    while start < len(order):
        stop = start + max(1, batch_tokens // lengths[order[start]])
        chosen = order[start:stop]
        yield collate([sources[i] for i in chosen], [targets[i] for i in chosen], *vocabularies)
        start = stop
