"""Sentences per second of `hpcasync translate`'s search and of CTranslate2 with the exported model, on the same text.

    hpcasync export RUN_DIR --format ctranslate2 --out served
    python benchmarks/serving.py RUN_DIR served test.en [--threads 1] [--rounds 3]

Each is warmed up on the first batch; the best of the rounds counts. Cutting into pieces is within both times, putting
them together again within ours alone.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import sentencepiece
import torch

from hpcasync.data.text import read_sentences
from hpcasync.nmt.load import load_model
from hpcasync.nmt.search import Searcher, SearchSettings

_BATCH_TOKENS = 4096


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sentences = read_sentences(arguments.text)
    print(f"{len(sentences)} sentences, {arguments.threads} thread(s), best of {arguments.rounds}")
    print(f"torch {torch.__version__}, ctranslate2 {ctranslate2.__version__}")
    for beam in (1, 5):
        runs = {"hpcasync": _ours(arguments.run_dir, beam)}
        for compute_type in ("float32", "int8"):
            runs[f"ctranslate2 {compute_type}"] = _theirs(arguments.exported, beam, compute_type, arguments.threads)
        for name, translate in runs.items():
            translate(sentences[:64])
            seconds = min(_seconds(translate, sentences) for _ in range(arguments.rounds))
            print(f"beam {beam}  {name:22} {len(sentences) / seconds:8.1f} sentences/s")


def _seconds(translate: Callable[[list[str]], object], sentences: list[str]) -> float:
    started = time.perf_counter()
    translate(sentences)
    return time.perf_counter() - started


def _ours(run_dir: Path, beam: int) -> Callable[[list[str]], object]:
    trained = load_model(run_dir)
    searcher = Searcher(
        trained.model,
        trained.source_vocabulary,
        trained.target_vocabulary,
        SearchSettings(beam=beam, batch_tokens=_BATCH_TOKENS),
        max_length=trained.config.model.max_length,
    )
    return searcher.translate


def _theirs(directory: Path, beam: int, compute_type: str, threads: int) -> Callable[[list[str]], object]:
    translator = ctranslate2.Translator(str(directory), compute_type=compute_type, intra_threads=threads)
    source = sentencepiece.SentencePieceProcessor(str(directory / "source.spm"))

    def translate(sentences: list[str]) -> object:
        pieces = source.encode(sentences, out_type=str)
        return translator.translate_batch(
            pieces,
            beam_size=beam,
            batch_type="tokens",
            max_batch_size=_BATCH_TOKENS // beam,
            disable_unk=True,
            patience=SearchSettings.patience,
        )

    return translate


if __name__ == "__main__":
    main()
