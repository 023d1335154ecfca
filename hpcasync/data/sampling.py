"""Subword regularisation: a sentence is cut into other pieces each time it is seen.

Source: Kudo 2018, "Subword Regularization" (unigram models); Provilkov et al. 2020, "BPE-Dropout" (BPE models).
"""

import threading
from dataclasses import dataclass

import numpy as np
import sentencepiece

from hpcasync.data.collate import Ragged
from hpcasync.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class SubwordSampling:
    """How sentences are cut anew.

    Attributes:
        alpha: of BPE models the part of the merges that are left out, of unigram models the exponent of the
            probabilities of segmentations.
        longest: pieces of a sentence at most; one that would have more is left as it is.
    """

    alpha: float
    longest: int

    def resegment(self, sentences: Ragged, vocabulary: Vocabulary, seed: np.random.SeedSequence) -> Ragged:
        """The same sentences in other pieces; the same for the same seed. One with unknown pieces stays as it is."""
        cut = np.split(sentences.flat, np.cumsum(sentences.lengths)[:-1])
        chosen: list[list[int]] = []

        def sample() -> None:
            for ids in cut:
                found = ids.tolist()
                if vocabulary.unk_id not in found:
                    sampled = vocabulary.sample(vocabulary.decode(found), self.alpha)
                    found = sampled if 0 < len(sampled) <= self.longest else found
                chosen.append(found)

        # SentencePiece's generator belongs to a thread, and is seeded when that first draws.
        sentencepiece.set_random_generator_seed(int(seed.generate_state(1)[0]))
        thread = threading.Thread(target=sample)
        thread.start()
        thread.join()
        return Ragged.of(chosen)
