"""COMET (Rei et al. 2020, "COMET: A Neural Framework for MT Evaluation"): by its own package and a model on disk."""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hpcasync.command_line import pip_install
from hpcasync.data.digests import file_digest
from hpcasync.errors import UserError

if TYPE_CHECKING:
    from hpcasync.nmt.scoring import Score

_PACKAGE = "unbabel-comet"
_BATCH_SIZE = 16
_DIGEST_DIGITS = 16


def find_comet(path: Path) -> Path:
    """The checkpoint of a COMET model: a file, or that in a directory as Hugging Face's hub has them."""
    try:
        metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"COMET needs the package {_PACKAGE}, which is not installed: {pip_install('hpcasync[comet]')}; in an "
            "environment of its own, as it wants an older transformers than `hpcasync export`"
        ) from error
    checkpoint = path / "checkpoints" / "model.ckpt" if path.is_dir() else path
    hparams = checkpoint.parent.parent / "hparams.yaml"
    for needed in (checkpoint, hparams):
        if not needed.is_file():
            raise UserError(
                f"{path} holds no COMET model: there is no {needed}; download one where there is a network, and give "
                "its directory, which has checkpoints/model.ckpt and hparams.yaml"
            )
    return checkpoint


@lru_cache(maxsize=1)
def comet_identity(path: Path) -> str:
    """Which model it is."""
    return f"model:{file_digest(find_comet(path))[:_DIGEST_DIGITS]}"


@lru_cache(maxsize=1)
def load_comet(path: Path, device: torch.device) -> "Comet":
    """A model, which is loaded once for all snapshots that it scores."""
    return Comet(path, device)


class Comet:
    """A COMET model.

    Args:
        path: see `find_comet`.
        device: where it computes.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._checkpoint = checkpoint = find_comet(path)
        self._identity = comet_identity(path)
        self._num_gpus = int(device.type == "cuda")
        if "SLURM_NTASKS" in os.environ:
            os.environ["SLURM_JOB_NAME"] = "interactive"  # Lightning would take this job's tasks for ranks of its own
        from comet import load_from_checkpoint

        try:
            # Its encoder's own files (tokenizer, sizes) are looked for in Hugging Face's cache.
            self._model = load_from_checkpoint(str(checkpoint), local_files_only=True)
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(
                f"the COMET model {checkpoint} cannot be loaded: {error}; its encoder's files have to be in Hugging "
                "Face's cache (HF_HOME): score something once where there is a network"
            ) from error

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> "Score":
        """Mean over the sentences, times 100 as BLEU is; models differ in their range."""
        from hpcasync.nmt.scoring import Score  # which ranks that train do without

        samples = [
            {"src": source, "mt": hypothesis, "ref": reference}
            for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
        ]
        found = self._model.predict(
            samples, batch_size=_BATCH_SIZE, gpus=self._num_gpus, progress_bar=False, num_workers=0
        )
        return Score("COMET", 100 * float(found.system_score), f"{self._identity}|version:{metadata.version(_PACKAGE)}")
