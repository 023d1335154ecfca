"""Scores snapshots beside the training: a child process of its own, so that neither server nor workers stop."""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

# A child that finds these would take itself for a rank of the job.
_MPI_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_LOCAL", "HYDRA_", "HYDI_")


class Scorer:
    """Feeds snapshot names to `python -m hpcasync.train.supervise.scorer_process` and collects the scores, in order.

    The process runs at low priority and ends with its parent. Should it fail, training goes on; the snapshots stay and
    can be scored later by `hpcasync evaluate RUN_DIR --all`.

    Attributes:
        num_pending: snapshots that have been submitted and not been scored yet.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._process: subprocess.Popen[str] | None = None
        self._results: deque[dict[str, Any]] = deque()
        self._reader: threading.Thread | None = None
        self.num_pending = 0

    def submit(self, name: str) -> None:
        """Have a complete snapshot scored."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self.num_pending += 1
        try:
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `poll` reports that the process is gone

    def poll(self) -> list[dict[str, Any]]:
        """Scores that have come since the last call; a dict with the key "error" if the process failed."""
        results = []
        while self._results:
            results.append(self._results.popleft())
        self.num_pending -= len(results)
        if self.num_pending and self._reader is not None and not self._reader.is_alive() and not self._results:
            assert self._process is not None
            code = self._process.wait()
            results.append({"error": f"the scoring process ended with code {code}", "num_unscored": self.num_pending})
            self.num_pending = 0
            self._process = None
        return results

    def close(self) -> None:
        """End the process; what is pending is not scored."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        # Its threads, if it has several, are in the way of training while they wait.
        environment = {"OMP_WAIT_POLICY": "passive"}
        environment |= {key: value for key, value in os.environ.items() if not key.startswith(_MPI_PREFIXES)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpcasync.train.supervise.scorer_process", str(self._run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # mpirun and terminals send signals to the process group: what asks the job to save would end this process.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._results.append(json.loads(line))
