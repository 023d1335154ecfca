"""What `data prepare` has doubts about, though it can be done: lines for people."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcasync.data.languages import AUTO, DEFAULT, choose_tokenizer, lacks_blanks
from hpcasync.data.text import is_same_file

Pair = tuple[Path, Path]
# Spellings of special pieces, which SentencePiece keeps out of the training of a vocabulary, their letters included.
RESERVED = ("<s>", "</s>", "<unk>", "<pad>")
_MANY_UNKNOWN = 0.01
_NUM_SHOWN = 5


def of_overlap(train: Pair, held_out: dict[str, Pair]) -> Iterator[str]:
    """Held-out text that is trained on."""
    for name, pair in held_out.items():
        if any(is_same_file(ours, other) for ours, other in zip(pair, train, strict=True)):
            yield f"the {name} text is the training text; its scores will say nothing about other text."


def of_blanks(language: str | None, sentences: Iterable[str]) -> Iterator[str]:
    """Target text that BLEU's usual tokeniser takes for single words."""
    if choose_tokenizer(AUTO, language) == DEFAULT and lacks_blanks(sentences):
        yield (
            "the target text has no blanks between words, and BLEU by the tokeniser 13a will be near 0: give "
            "--target-language (zh, ja, ko), or train with validation.tokenize=char or validation.metric=chrf."
        )


def of_unknown(side: str, unknown: Counter[str], share: float, given_model: Path | None) -> Iterator[str]:
    """Text that the vocabulary has no pieces for: `share` of the pieces, of which `unknown` are examples."""
    pieces = Counter({piece: number for piece, number in unknown.items() if piece not in RESERVED})
    if share >= _MANY_UNKNOWN:
        examples = ", ".join(repr(piece[:20]) for piece, _ in pieces.most_common(_NUM_SHOWN))
        cure = (
            f"--{side}-model {given_model} does not fit this text: give another, or none to have one trained"
            if given_model
            else "raise --character-coverage or --vocab-size, or give --byte-fallback"
        )
        yield f"{share:.1%} of the pieces of the {side} side are unknown, such as {examples}; {cure}."
    if any("\0" in piece for piece in pieces):
        yield f"the {side} text holds NUL characters, which become unknown pieces: remove them."
    if names := [name for name in RESERVED if name in unknown]:
        yield (
            f"the {side} text holds {', '.join(names)}, the names of special pieces, which become unknown pieces: "
            "replace them by other words."
        )
