"""Scores of the snapshots of a run, kept in RUN_DIR/evaluation-SPLIT.jsonl so that none is scored twice."""

import fcntl
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.evaluation import EvaluationSettings, score_parameters
from hpcasync.nmt.load import build_untrained, load_parameters_
from hpcasync.runs.files import PARAMETERS_FILE
from hpcasync.runs.identity import check_parameters, identity_of_run
from hpcasync.runs.records import Record, evaluation_file, read_records
from hpcasync.runs.snapshots import Snapshot

logger = logging.getLogger(__name__)


def evaluate_snapshots(
    run_dir: Path,
    snapshots: Sequence[Snapshot],
    corpus: PreparedCorpus,
    settings: EvaluationSettings,
    device: torch.device,
) -> Iterator[Record]:
    """Yield a record per snapshot, in order: from the file, or scored now and appended to it.

    A record has the snapshot's name, version, num_updates, target_tokens and wall_seconds; the `settings` and the
    corpus digest; and the scores (null where not finite).

    Raises:
        UserError: a snapshot cannot be loaded, the corpus has no such text.
    """
    settings = settings.for_corpus(corpus)
    path = run_dir / evaluation_file(settings.split)
    known = read_records(path)
    trained = None
    if snapshots and (before := snapshots[0].corpus_digest) not in ("", corpus.digest):
        logger.warning(
            "%s is not the corpus as the run was trained on it (%s, now %s)", corpus.path, before, corpus.digest
        )
    for snapshot in snapshots:
        identity = _identity(snapshot, corpus, settings)
        record = next((r for r in known if all(r.get(key) == value for key, value in identity.items())), None)
        if record is None:
            trained = trained or build_untrained(run_dir, device)
            check_parameters(snapshot.path / PARAMETERS_FILE, run_dir, identity_of_run(run_dir), run_dir)
            load_parameters_(trained.model, [snapshot.path / PARAMETERS_FILE])
            scores = score_parameters(trained, corpus, settings).to_dict()
            record = {**identity, **{key: _finite(value) for key, value in scores.items()}}
            _append(path, record)
        yield record


def _identity(snapshot: Snapshot, corpus: PreparedCorpus, settings: EvaluationSettings) -> Record:
    return {
        "snapshot": snapshot.name,
        "version": snapshot.version,
        "num_updates": snapshot.num_updates,
        "target_tokens": snapshot.target_tokens,
        "wall_seconds": snapshot.wall_seconds,
        "settings": settings.identity(),
        "corpus_digest": corpus.digest,
    }


def _append(path: Path, record: Record) -> None:
    """Keep a record, where that can be done: the scores of a run of somebody else's are shown all the same."""
    try:
        with path.open("a+b") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX)  # another `evaluate` may be about to write, too
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # without what a crash left of a line
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
    except OSError as error:
        logger.warning("the scores are not kept: cannot write %s: %s", path, error.strerror)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
