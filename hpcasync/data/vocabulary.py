"""Vocabularies: a SentencePiece model together with the special tokens that training needs."""

import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from hpcasync.errors import UserError, describe

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's spelling of a blank


class Vocabulary:
    """The pieces of one language, or of two that share them.

    A model made elsewhere may lack the padding, the beginning or the end of sentence: each gets an id of its own after
    the last piece, in this order. `len()` counts those too.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
        self.path = path
        self._processor = processor
        self._num_pieces: int = processor.get_piece_size()
        specials = [processor.pad_id(), processor.bos_id(), processor.eos_id()]
        self._size = self._num_pieces
        for position, piece_id in enumerate(specials):
            if piece_id < 0:
                specials[position] = self._size
                self._size += 1
        self.num_added = self._size - self._num_pieces
        self.pad_id: int = specials[0]
        self.bos_id: int = specials[1]
        self.eos_id: int = specials[2]
        self.unk_id: int = processor.unk_id()
        self._hidden = frozenset(specials)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a SentencePiece model.

        Raises:
            UserError: the file is missing, unreadable or no SentencePiece model.
        """
        try:
            serialized = Path(path).read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read the SentencePiece model {path}: "
                + describe(error, "give a file that spm_train or `data prepare` wrote, or restore it")
            ) from error
        processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(serialized) and processor.LoadFromSerializedProto(serialized)
        except RuntimeError:
            loaded = False
        if not loaded or processor.get_piece_size() == 0:
            raise UserError(f"{path} is no SentencePiece model (a file that spm_train or `data prepare` writes)")
        return cls(processor, Path(path))

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """The ids of a sentence, without beginning and end of sentence."""
        return self._processor.encode(text)  # type: ignore[no-any-return]

    def sample(self, text: str, alpha: float) -> list[int]:
        """The ids of a sentence by a segmentation that is drawn (see `data.sampling`)."""
        return self._processor.encode(text, enable_sampling=True, alpha=alpha, nbest_size=-1)  # type: ignore[no-any-return]

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of many sentences, on the calling thread alone."""
        return self._processor.encode(list(texts), num_threads=1)  # type: ignore[no-any-return]

    def unknown_pieces(self, text: str) -> list[str]:
        """What a sentence has that no piece stands for."""
        found = zip(self._processor.encode(text), self._processor.encode(text, out_type=str), strict=True)
        return [piece for piece_id, piece in found if piece_id == self.unk_id]

    def is_changed(self, text: str) -> bool:
        """Whether the model's normalisation changes more than blanks: such text is never written as it is."""
        normalized: str = self._processor.normalize(text).replace(_BLANK, " ")
        return normalized.strip(" ") != re.sub(" +", " ", text).strip(" ")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; padding, beginning and end of sentence leave no trace."""
        return self._processor.decode([int(i) for i in ids if int(i) not in self._hidden])  # type: ignore[no-any-return]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The spelling of each id, for display."""
        names = {self.pad_id: "<pad>", self.bos_id: "<s>", self.eos_id: "</s>"}
        return [names.get(int(i)) or self._processor.id_to_piece(int(i)) for i in ids]
