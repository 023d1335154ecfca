"""The corpus of a run, refused before anything starts where training would fail on it later."""

from hpcasync.config.schema import Config
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.languages import check_tokenizer, choose_tokenizer
from hpcasync.data.mixture import Mixture
from hpcasync.errors import UserError
from hpcasync.nmt.comet import find_comet


def open_corpora(config: Config) -> Mixture:
    """Open the corpora that a run is to be trained on."""
    corpus = PreparedCorpus.open(config.data.path)
    mixture = Mixture((corpus, *map(PreparedCorpus.open, config.data.more)), config.data.repeats)
    mixture.check_vocabularies()
    if config.validation.score and not corpus.has_split("valid"):
        raise UserError(
            f"{corpus.path} has no valid text to score snapshots with: prepare the corpus with --valid SRC TGT, or set "
            "validation.score=false"
        )
    if config.validation.score and config.validation.comet:
        find_comet(config.validation.comet)
    if config.validation.score:
        check_tokenizer(choose_tokenizer(config.validation.tokenize, corpus.manifest.target_language))
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    if config.model.tie == "all" and source.pieces(range(len(source))) != target.pieces(range(len(target))):
        raise UserError(
            f"model.tie=all needs one joint vocabulary, but {corpus.path} has two, of {len(source)} "
            f"and {len(target)} pieces: set model.tie=target, or prepare the corpus with --joint"
        )
    limit = config.model.max_length
    for corpus in mixture.corpora:
        longest = 1 + max(corpus.manifest.source.max_length, corpus.manifest.target.max_length)
        if longest > limit:
            raise UserError(
                f"model.max_length={limit} is less than the longest sentence of the corpus {corpus.path}, {longest} "
                f"with its end: raise it, or prepare the corpus with --max-length {limit - 1}"
            )
    return mixture
