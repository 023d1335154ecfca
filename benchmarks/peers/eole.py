"""EOLE's training speed on a prepared corpus, measured by EOLE itself in an environment of its own.

The environment: python -m venv DIR; DIR/bin/pip install torch==2.13.0; DIR/bin/pip install eole==0.6.4 aiohttp
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import sentencepiece

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError

_SPECIALS = ("<unk>", "<blank>", "<s>", "</s>")
_REPORT = re.compile(r"Step +(\d+)/.* +\d+/ *(\d+) tok/s")


class EolePeer:
    """Runs `eole train` for a few steps.

    Args:
        environment: the virtual environment with EOLE.
        corpus: a corpus with a joint vocabulary; its sentences are written out as text for EOLE.
        directory: for EOLE's files; made anew.

    Raises:
        UserError: EOLE is not there, or the vocabulary is not joint.
    """

    def __init__(
        self, environment: Path, corpus: PreparedCorpus, directory: Path, batch_tokens: int, num_steps: int
    ) -> None:
        self._command = environment / "bin" / "eole"
        if not self._command.is_file():
            raise UserError(f"{environment} has no bin/eole: see benchmarks/peers/eole.py for how to install it")
        if not corpus.manifest.joint:
            raise UserError(f"{corpus.path} has two vocabularies: prepare it with a joint one")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._config = directory / "eole.yaml"
        num_pieces = _write_data(corpus, directory)
        text = Path(__file__).with_name("eole.yaml").read_text()
        values = {"DIRECTORY": directory, "STEPS": num_steps, "BATCH_TOKENS": batch_tokens, "NUM_PIECES": num_pieces}
        for key, value in values.items():
            text = text.replace(key, str(value))
        self._config.write_text(text)

    def run(self, num_threads: int) -> list[float]:
        """Target tokens per second, for every ten steps after the first ten (which include loading the data)."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
        # EOLE's own subprocesses are found through its environment.
        environment["PATH"] = f"{self._command.parent}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            [self._command, "train", "-c", self._config],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        rates = [float(rate) for step, rate in _REPORT.findall(done.stdout) if int(step) > 10]
        if done.returncode or not rates:
            raise UserError(f"EOLE failed (exit status {done.returncode}): {done.stdout[-2000:]}")
        return rates


def _write_data(corpus: PreparedCorpus, directory: Path) -> int:
    """Text, subword model and vocabulary of a corpus; returns the number of pieces."""
    model = corpus.path / "source.spm"
    shutil.copy(model, directory / "joint.spm")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    ordinary = [
        piece
        for index, piece in enumerate(pieces)
        if not processor.is_control(index) and not processor.is_unknown(index)
    ]
    (directory / "vocabulary").write_text("\n".join([*_SPECIALS, *ordinary]) + "\n")
    sides = (
        ("source", corpus.train.source, corpus.source_vocabulary),
        ("target", corpus.train.target, corpus.target_vocabulary),
    )
    for side, sentence, vocabulary in sides:
        with (directory / f"train.{side}").open("w") as file:
            for index in range(len(corpus.train)):
                file.write(vocabulary.decode(np.asarray(sentence(index)).tolist()) + "\n")
    return len(pieces)
