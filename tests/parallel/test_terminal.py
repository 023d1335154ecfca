"""`hpcasync launch … train` on a pseudo-terminal: progress is seen while it is made, and Ctrl-C ends it calmly."""

import os
import re
import shlex
import sys
from pathlib import Path

import mpich
import pytest
import yaml
from terminal import Terminal
from tiny_training import CONFIG, TinyCorpus

from hpcasync.exit_codes import PREEMPTED
from hpcasync.launch.restarts import newest_checkpoint

CTRL_C = b"\x03"
NAME = "it's my $HOME.yaml"
LIVE = re.compile(rb"\r\x1b\[2K\[[#-]{10}\] update (\d+) loss")


@pytest.mark.parametrize("library", ["installed", "mpich"])
def test_progress_is_seen_and_ctrl_c_says_how_to_go_on(tmp_path: Path, tiny_corpus: TinyCorpus, library: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    if library == "mpich":
        mpich.require()
        environment |= mpich.ENVIRONMENT
    values = {**CONFIG, "data": {**CONFIG["data"], "path": str(tiny_corpus.path)}, "stop": {"updates": 1_000_000}}
    # No record, no newline, no checkpoint before the end.
    values |= {"logging": {"every": 1_000_000, "tensorboard": False}, "validation": {"score": False}}
    (tmp_path / NAME).write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "hpcasync", "launch", "-n", "2", "--", "train", NAME, "seed=2", "--overwrite"]
    with Terminal(command, environment, tmp_path) as terminal:
        terminal.wait_until(lambda shown: len(set(LIVE.findall(shown))) >= 2, "progress")
        terminal.press(CTRL_C)
        assert terminal.wait() == PREEMPTED, terminal.shown
    assert newest_checkpoint(tmp_path / "runs" / "tiny-async-global-seed2")
    shown = re.sub(r"\x1b\[2K", "", terminal.shown.decode())
    lines = [line.rstrip("\r").rpartition("\r")[2].strip() for line in shown.split("\n")]
    how = next(line for line in lines if line.startswith("hpcasync: interrupted"))
    told, _, printed = how.partition(": hpcasync launch ")
    assert told == "hpcasync: interrupted; go on with"
    assert shlex.split(printed) == ["-n", "2", "--", "train", NAME, "seed=2", "--resume"]
    assert [line for line in lines if line][-1] == how, "nothing comes after it"
    assert any(line.startswith("stopped (interrupted): ") for line in lines)
    assert "SIGUSR1" not in shown and "prterun" not in shown and "Abort(" not in shown

    # What was printed, with an end.
    pasted = ["bash", "-c", f"hpcasync launch {printed} stop.updates=1"]
    with Terminal(pasted, environment, tmp_path) as terminal:
        assert terminal.wait() == 0, terminal.shown
    assert b"resuming from runs/tiny-async-global-seed2/checkpoints/" in terminal.shown
