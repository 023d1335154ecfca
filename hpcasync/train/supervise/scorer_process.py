"""The child process that scores snapshots: names on standard input, one JSON line of scores each on standard output."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import torch

from hpcasync.config.schema import load_config
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError
from hpcasync.nmt.evaluation import EvaluationSettings, score_parameters
from hpcasync.nmt.load import build_untrained, load_parameters_
from hpcasync.runs.files import FILES_KEY, PARAMETERS_FILE, read_state
from hpcasync.runs.identity import LAYOUT_KEY
from hpcasync.train.machine.cores import unbind
from hpcasync.train.machine.gpus import SCORING_GPU_VARIABLE, narrow_to

# Below the training's own processes: on a busy machine scores may come late, but training keeps its pace.
_NICENESS = 10


def main(run_dir: Path) -> None:
    """Score snapshots until standard input ends."""
    os.nice(_NICENESS)
    unbind()
    # Scores alone go to what was standard output; whatever a library prints joins the errors.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    config = load_config(run_dir / "config.yaml")
    validation = config.validation
    torch.set_num_threads(validation.threads)
    if gpu := os.environ.get(SCORING_GPU_VARIABLE):
        narrow_to(gpu)
    device = "cuda" if gpu else "cpu"
    corpus = PreparedCorpus.open(config.data.path)
    settings = EvaluationSettings(
        split="valid",
        beam=validation.beam,
        max_sentences=validation.max_sentences,
        tokenize=validation.tokenize,
        comet=validation.comet,
    )
    trained = build_untrained(run_dir, torch.device(device))
    for name in _names():
        directory = run_dir / "snapshots" / name
        state = read_state(directory)
        if state.pop(LAYOUT_KEY, {}).get("corpus", corpus.digest) != corpus.digest:
            raise UserError(f"{corpus.path} has been prepared anew since training began: its scores would not compare")
        state.pop(FILES_KEY, None)
        load_parameters_(trained.model, [directory / PARAMETERS_FILE])
        scores = score_parameters(trained, corpus, settings)
        print(json.dumps({"name": name, **state, **scores.to_dict()}), file=results, flush=True)


def _names() -> Iterator[str]:
    """Names as they come; the process ends at once when its parent does, also in the middle of a search."""
    queue: Queue[str] = Queue()

    def read() -> None:
        for line in sys.stdin:
            queue.put(line.strip())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield queue.get()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
