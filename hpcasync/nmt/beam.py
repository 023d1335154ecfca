"""Batched beam search on tensors of token ids, for any TranslationModel.

Every step extends the live hypotheses of a sentence by their most probable tokens. Of the `beam` best extensions those
that end are finished; the `beam` best of the others live on, so the beam keeps its width. The sentence is done when
`beam * patience` hypotheses have finished (Kasai et al. 2022, "A Call for Clarity in Beam Search"): a patience of 1 is
the rule of fairseq and CTranslate2, a beam of 1 is greedy search. A finished hypothesis scores
log P / length ** length_penalty, its end of sentence counted. A penalty of 1 is the mean log probability per token
(Koehn & Knowles 2017, "Six Challenges for Neural Machine Translation", section 3.6), 0 the plain log probability, the
power between them that of Marian's `--normalize` and of fairseq's `--lenpen`.

It is also done when no live hypothesis can enter the n-best any more, which loses nothing: log probability never rises
and no translation is longer than its `max_length`, so a live hypothesis ends with at most
log P / max_length ** length_penalty.

Ties are broken by the rank of the extended hypothesis and then by the smaller token id, on every device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcasync.nmt.decoder_state import DecoderState
from hpcasync.nmt.model import TranslationModel

_BLOCK = 64  # tokens per block of the two-stage top-k


@dataclass(frozen=True)
class BeamSettings:
    """What beam search needs beside model and input."""

    beam: int
    nbest: int
    length_penalty: float
    patience: float
    bos_id: int
    eos_id: int
    forbidden: tuple[int, ...]  # ids that are never generated

    def __post_init__(self) -> None:
        assert 1 <= self.nbest <= self.beam and self.length_penalty >= 0 and self.eos_id not in self.forbidden

    @property
    def num_finished(self) -> int:
        """Hypotheses of a sentence that have to finish, unless none could win any more; 0: as many as there are.

        By total log probability, which falls with every token, those that end soon would stop the search too soon.
        """
        if self.beam == 1 or self.length_penalty == 0:
            return int(self.beam == 1)
        return max(self.nbest, int(self.beam * self.patience + 0.5))

    def normalise(self, log_probs: Tensor, lengths: Tensor | int) -> Tensor:
        """The scores of hypotheses of these total log probabilities and lengths in tokens."""
        return log_probs / torch.as_tensor(lengths, device=log_probs.device) ** self.length_penalty


@dataclass
class NBest:
    """The best finished hypotheses of B sentences, best first.

    Attributes:
        scores: [B, nbest] float32, normalised; -inf where there are fewer hypotheses.
        log_probs: [B, nbest] float32, total log probability in nats.
        lengths: [B, nbest] int64, end of sentence included; 0 where there is none.
        tokens: [B, nbest, T] int64, of which the first `lengths` count.
    """

    scores: Tensor
    log_probs: Tensor
    lengths: Tensor
    tokens: Tensor

    @classmethod
    def empty(cls, num_sentences: int, nbest: int, max_length: int, device: torch.device) -> "NBest":
        """No hypothesis yet."""
        scores = torch.full((num_sentences, nbest), -torch.inf, device=device)
        lengths = torch.zeros((num_sentences, nbest), dtype=torch.int64, device=device)
        tokens = torch.zeros((num_sentences, nbest, max_length), dtype=torch.int64, device=device)
        return cls(scores, scores.clone(), lengths, tokens)

    def add_(self, scores: Tensor, log_probs: Tensor, tokens: Tensor, length: int) -> None:
        """Merge new hypotheses of one length: scores, log_probs [B, M] (-inf: none), tokens [B, M, T]."""
        nbest = self.scores.shape[1]
        order = torch.cat((self.scores, scores), 1).argsort(dim=1, descending=True, stable=True)[:, :nbest]
        lengths = torch.full_like(scores, length, dtype=torch.int64)
        self.scores = torch.cat((self.scores, scores), 1).gather(1, order)
        self.log_probs = torch.cat((self.log_probs, log_probs), 1).gather(1, order)
        self.lengths = torch.cat((self.lengths, lengths), 1).gather(1, order).masked_fill_(self.scores.isneginf(), 0)
        where = order[:, :, None].expand(-1, -1, tokens.shape[2])
        self.tokens = torch.cat((self.tokens, tokens), 1).gather(1, where)


@dataclass
class _Live:
    """The live hypotheses, one row each, by sentence and then by rank."""

    sentences: Tensor  # [N] int64, ascending
    log_probs: Tensor  # [N] float32
    tokens: Tensor  # [N, T] int64, of which the first ones are decoded

    @classmethod
    def start(cls, num_sentences: int, max_length: int, device: torch.device) -> "_Live":
        sentences = torch.arange(num_sentences, device=device)
        tokens = torch.zeros((num_sentences, max_length), dtype=torch.int64, device=device)
        return cls(sentences, torch.zeros(num_sentences, device=device), tokens)


def beam_search(model: TranslationModel, source: Tensor, max_lengths: Tensor, settings: BeamSettings) -> NBest:
    """The n-best translations of a batch; call it in inference mode, with the model in evaluation mode.

    Args:
        source: [B, S] int64, sentence + eos, padded on the right, on the model's device.
        max_lengths: [B] int64, at least 1: tokens of a translation at most, end of sentence included.

    Returns:
        A hypothesis at least for every sentence, unless the model's logits are not finite.
    """
    num_sentences, longest = len(source), int(max_lengths.max())
    state = model.start(source)
    live = _Live.start(num_sentences, longest, source.device)
    num_missing = torch.full((num_sentences,), settings.num_finished or settings.beam * longest, device=source.device)
    nbest = NBest.empty(num_sentences, settings.nbest, longest, source.device)
    previous = torch.full((num_sentences,), settings.bos_id, device=source.device)
    for length in range(1, longest + 1):
        logits = model.step(previous, state)
        is_last = max_lengths[live.sentences] == length
        log_probs, tokens = _extensions(logits, is_last, settings)
        extended = _Extended.best(live, log_probs, tokens, num_sentences, settings)
        _finish_(extended, live, nbest, num_missing, length, settings)
        previous = _advance_(extended, live, state, nbest, num_missing, max_lengths, length, settings)
        if len(previous) == 0:
            break
    return nbest


def _extensions(logits: Tensor, is_last: Tensor, settings: BeamSettings) -> tuple[Tensor, Tensor]:
    """The most probable next tokens of every row: log probabilities and ids [N, k]; where `is_last`, only the end."""
    log_probs = torch.log_softmax(logits, 1)
    end = log_probs[:, settings.eos_id].clone()
    log_probs[:, list(settings.forbidden)] = -torch.inf
    # One of them may end; as many as the beam is wide live on then.
    best, tokens = top_tokens(log_probs, min(settings.beam + 1, log_probs.shape[1]))
    best = best.masked_fill(is_last[:, None], -torch.inf)
    best[:, 0] = torch.where(is_last, end, best[:, 0])
    tokens = tokens.masked_fill(is_last[:, None], settings.eos_id)
    return best, tokens


def top_tokens(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each row of `scores` [N, V]: values and ids [N, k], greatest first, equals by ascending id."""
    num_kept = min(k + 1, scores.shape[1])
    values, ids = _top_unordered(scores, num_kept)
    if num_kept > k:
        is_ambiguous = values[:, k - 1] == values[:, k]
        if bool(is_ambiguous.any()):
            # Which of the equals at the border topk took is not defined: sort those rows as a whole.
            rows = is_ambiguous.nonzero()[:, 0]
            ids[rows] = scores[rows].argsort(dim=1, descending=True, stable=True)[:, :num_kept]
            values = scores.gather(1, ids)
        values, ids = values[:, :k], ids[:, :k]
    ids, order = ids.sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _top_unordered(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """topk; on the CPU by way of the k blocks of greatest maximum, which hold the k greatest, in half the time."""
    num_rows, num_tokens = scores.shape
    if scores.is_cuda or num_tokens < 4 * k * _BLOCK:
        values, ids = scores.topk(k, 1)
        return values, ids
    if num_tokens % _BLOCK:
        scores = torch.nn.functional.pad(scores, (0, _BLOCK - num_tokens % _BLOCK), value=-torch.inf)
    blocks = scores.view(num_rows, -1, _BLOCK)
    chosen = blocks.amax(2).topk(k, 1).indices
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    values, where = candidates.topk(k, 1)
    return values, chosen.gather(1, where // _BLOCK) * _BLOCK + where % _BLOCK


@dataclass
class _Extended:
    """Extensions of the live hypotheses, [B, n] each, best first."""

    log_probs: Tensor  # -inf where there is none
    tokens: Tensor
    origins: Tensor  # row of the extended hypothesis; 0 where there is none
    is_end: Tensor  # of those that finish
    lives_on: Tensor

    @classmethod
    def best(
        cls, live: _Live, log_probs: Tensor, tokens: Tensor, num_sentences: int, settings: BeamSettings
    ) -> "_Extended":
        """Choose among `log_probs` and `tokens` [N, k]."""
        beam, (num_rows, k) = settings.beam, log_probs.shape
        rows = torch.arange(num_rows, device=log_probs.device)
        first_rows = torch.searchsorted(live.sentences, torch.arange(num_sentences, device=log_probs.device))
        ranks = rows - first_rows[live.sentences]
        totals = log_probs.new_full((num_sentences, beam, k), -torch.inf)
        totals[live.sentences, ranks] = live.log_probs[:, None] + log_probs
        values, order = totals.flatten(1).sort(dim=1, descending=True, stable=True)
        values, order = values[:, : 2 * beam], order[:, : 2 * beam]
        exists = values > -torch.inf  # false for NaN, too
        origins = (first_rows[:, None] + order // k).masked_fill_(~exists, 0)
        chosen = tokens[origins, order % k]
        is_end = exists & (chosen == settings.eos_id)
        goes_on = exists & ~is_end
        lives_on = goes_on & (goes_on.cumsum(1) <= beam)
        is_end[:, beam:] = False
        return cls(values.masked_fill(~exists, -torch.inf), chosen, origins, is_end, lives_on)


def _finish_(
    extended: _Extended, live: _Live, nbest: NBest, num_missing: Tensor, length: int, settings: BeamSettings
) -> None:
    """Move the extensions that end to the n-best; so many fewer are missing then."""
    if not bool(extended.is_end.any()):
        return
    log_probs = extended.log_probs.masked_fill(~extended.is_end, -torch.inf)
    tokens = live.tokens[extended.origins]
    tokens[:, :, length - 1] = settings.eos_id
    nbest.add_(settings.normalise(log_probs, length), log_probs, tokens, length)
    num_missing -= extended.is_end.sum(1)


def _advance_(
    extended: _Extended,
    live: _Live,
    state: DecoderState,
    nbest: NBest,
    num_missing: Tensor,
    max_lengths: Tensor,
    length: int,
    settings: BeamSettings,
) -> Tensor:
    """Make the extensions of sentences that are not done the live rows; returns their last tokens [M]."""
    attainable = settings.normalise(extended.log_probs, max_lengths[:, None])
    can_win = (extended.lives_on & (attainable > nbest.scores[:, -1:])).any(1)
    is_live = extended.lives_on & (can_win & (num_missing > 0))[:, None]
    live.sentences, ranks = is_live.nonzero(as_tuple=True)
    origins = extended.origins[live.sentences, ranks]
    tokens = extended.tokens[live.sentences, ranks]
    live.log_probs = extended.log_probs[live.sentences, ranks]
    live.tokens = live.tokens[origins]
    live.tokens[:, length - 1] = tokens
    if len(tokens):
        state.select_(origins)
    return tokens
