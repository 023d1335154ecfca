"""The snapshots of a run: written beside the training, scored, the best and the last named, old ones removed."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcasync.command_line import own_command
from hpcasync.complete_files import list_complete, remove_complete, write_text_atomically
from hpcasync.config.validation import ValidationConfig
from hpcasync.runs.background_writer import BackgroundWriter
from hpcasync.runs.files import SavedSnapshot, explain, write_snapshot
from hpcasync.runs.records import read_validations
from hpcasync.runs.retention import superseded
from hpcasync.runs.scores import BestScore
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.supervise.scorer import Scorer

# Below it the tokeniser may be to blame for a BLEU that does not change.
_HOPELESS_BLEU = 1.0


def blind_score(metric: str, scores: Mapping[str, Any]) -> str:
    """What to say of a score that has come out the same three times."""
    cure = (
        f" It was made with {scores['bleu_signature']}: for a target language without blanks between words choose "
        "another tokeniser (validation.tokenize)."
        if metric == "bleu" and scores["bleu"] < _HOPELESS_BLEU and scores.get("bleu_signature")
        else ""
    )
    name = {"bleu": "BLEU", "chrf": "chrF", "comet": "COMET"}[metric]
    return f"{name} is {scores[metric]:.2f} three times in a row and tells no snapshots apart: the loss decides.{cure}"


class Snapshots:
    """RUN_DIR/snapshots, and `best` and `last` beside it."""

    def __init__(self, config: ValidationConfig, run_dir: Path, recorder: Recorder, best: BestScore) -> None:
        self._config = config
        self._run_dir = run_dir
        self._recorder = recorder
        self._best = best
        self._writer: BackgroundWriter[SavedSnapshot] = BackgroundWriter()
        self._scorer = Scorer(run_dir) if config.score else None
        self._pending: list[str] = []
        self.failed: set[str] = set()

    @property
    def protected(self) -> set[str]:
        """Names of the best one and of those that may yet turn out to be."""
        return {self._best.name, *self._pending}

    def resume(self, num_updates: int) -> None:
        """Take up a resumed run: `best` names its best, and what was not scored before it ended is scored now."""
        if self._best.name:
            self._point("best", self._best.name)
        if self._scorer is None:
            return
        validated = {record["name"] for record in read_validations(self._run_dir)}
        newest = max((name for name in validated if int(name[1:]) <= num_updates), default="")
        for path in list_complete(self._run_dir / "snapshots"):
            if newest < path.name and int(path.name[1:]) <= num_updates:
                self._score(path.name)

    def write(self, name: str, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Start to write a snapshot, and have it scored then."""
        directory = self._run_dir / "snapshots" / name
        self._writer.submit(lambda: write_snapshot(directory, arrays, state))

    def poll(self) -> bool:
        """Take note of what has been written and scored since the last call; return whether scores have come."""
        self._written(self._writer.poll())
        return self._collect_scores()

    def wait_for_files(self) -> None:
        """Wait until all that were started are on disk."""
        self._written(self._writer.wait())

    def wait_for_scores(self, should_give_up: Callable[[], bool]) -> bool:
        """Wait for scores unless told not to; return whether some have come."""
        have_come = False
        while self._pending and not should_give_up():
            have_come = self._collect_scores() or have_come
            time.sleep(0.05)
        return have_come

    def end_scoring(self) -> None:
        """End the scoring process; what it has not scored is scored by a resumed run."""
        if self._scorer is not None:
            self._scorer.close()

    @property
    def num_unscored(self) -> int:
        return len(self._pending)

    def _score(self, name: str) -> None:
        if self._scorer is not None:
            self._pending.append(name)
            self._scorer.submit(name)

    def _written(self, results: Iterable[SavedSnapshot]) -> None:
        for saved in results:
            if saved.error:
                self.failed.add(saved.name)
                self._recorder.note(f"the snapshot {saved.name} was not written: {saved.error}; training goes on")
                continue
            self.failed.discard(saved.name)
            self._point("last", saved.name)
            self._score(saved.name)
            self._remove_old(saved.name)

    def _remove_old(self, last: str) -> None:
        directory = self._run_dir / "snapshots"
        names = [path.name for path in list_complete(directory)]
        for name in superseded(names, keep=self._config.keep, protected={*self.protected, last}):
            try:
                remove_complete(directory / name)
            except OSError as error:
                self._recorder.note(f"the old snapshot {name} cannot be removed: {explain(error)}")

    def _point(self, pointer: str, name: str) -> None:
        try:
            write_text_atomically(self._run_dir / pointer, f"snapshots/{name}\n")
        except OSError as error:
            self._recorder.note(f"{self._run_dir / pointer} cannot be made to name {name}: {explain(error)}")

    def _collect_scores(self) -> bool:
        results = self._scorer.poll() if self._scorer is not None else []
        for scores in results:
            if "error" in scores:
                self._pending.clear()
                self._recorder.note(
                    f"{scores['error']}: {scores['num_unscored']} snapshot(s) not scored; training goes on, score them "
                    f"later with `{own_command('evaluate', self._run_dir, '--all')}`"
                )
                continue
            if scores["name"] in self._pending:
                self._pending.remove(scores["name"])
            is_best = self._best.update(scores)
            if is_best:
                self._point("best", scores["name"])
            self._recorder.validation(scores, is_best=is_best)
            if self._best.is_blind:
                self._recorder.note(blind_score(self._config.metric, scores))
        return bool(results)
