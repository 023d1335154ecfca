"""Saves a checkpoint over and over in child processes that are killed in the middle; DIRECTORY must be empty.

Killed before every call that opens, makes, renames, removes or syncs something, and, by the limit on the size of files,
at every STEP-th byte of every file. After each death what counts as complete must be whole, and saving must go on.
Prints how many times it was killed.
"""

import itertools
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.complete_files import list_complete, remove_partial, write_text_atomically
from hpcasync.config.validation import CheckpointConfig
from hpcasync.runs.checkpoints import CheckpointDirectory, ShardWriter, read_shard
from hpcasync.runs.files import read_state

NUM_ELEMENTS = 100
NUM_SHARDS = 2
STEP = 7
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fsync"}


def values(number: int) -> torch.Tensor:
    return torch.arange(NUM_ELEMENTS, dtype=torch.float32) + 1000 * number


def save(checkpoints: Path, number: int) -> None:
    """What coordinator and servers do; the pointer stands for `best` and `last`."""
    remove_partial(checkpoints)
    directory = CheckpointDirectory(checkpoints, NUM_SHARDS, CheckpointConfig(keep=2))
    writer = ShardWriter(checkpoints, NUM_SHARDS)
    name = f"u{number:08d}"
    assert directory.begin(name, {"number": number}, 1) == ""
    for index, shard in enumerate(cut_shards(NUM_ELEMENTS, NUM_SHARDS)):
        tensors = {"parameters": values(number)[shard.start : shard.stop].clone(), "optimizer.step": torch.tensor(1.0)}
        writer.save_shard(name, index, shard, tensors)
    results = [directory.shard_saved(saved) for saved in writer.wait()]
    assert results[-1] is not None and not results[-1].error, results
    write_text_atomically(checkpoints.parent / "last", name)


def check(checkpoints: Path, newest: set[int]) -> None:
    complete = list_complete(checkpoints)
    assert complete and int(complete[-1].name[1:]) in newest, complete
    for path in complete:
        number = int(path.name[1:])
        assert read_state(path)["number"] == number
        tensors = read_shard(path, NUM_SHARDS, Shard(0, NUM_ELEMENTS))
        assert torch.equal(tensors["parameters"], values(number)), path
    assert (checkpoints.parent / "last").read_text() in ("u00000002", "u00000003")


def run_child(prepare: Callable[[], None], checkpoints: Path) -> bool:
    """Save number 3 in a child; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare()
            save(checkpoints, 3)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, status
    return os.WIFSIGNALED(status)


def kill_at_call(number: int) -> None:
    seen = itertools.count(1)  # by several threads

    def count(event: str, _arguments: object = ()) -> None:
        if event in EVENTS and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count("fsync")
        fsync(descriptor)

    os.fsync = counted_fsync  # type: ignore[assignment]
    sys.addaudithook(count)


def kill_at_byte(number: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


def campaign(directory: Path, kill: Callable[[int], None], step: int) -> int:
    """Kill at 1, 1 + step, … until the child survives; returns how often it was killed."""
    template = directory / "template"
    if not template.exists():
        (template / "checkpoints").mkdir(parents=True)
        for number in (1, 2):
            save(template / "checkpoints", number)
    num_killed = 0
    while True:
        run = directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(template, run)
        at = 1 + num_killed * step
        was_killed = run_child(lambda: kill(at), run / "checkpoints")  # noqa: B023 - called at once
        check(run / "checkpoints", {2, 3} if was_killed else {3})
        save(run / "checkpoints", 3)
        check(run / "checkpoints", {3})
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"u00000002", "u00000003"}
        if not was_killed:
            return num_killed
        num_killed += 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    print(campaign(where, kill_at_call, 1), campaign(where, kill_at_byte, STEP))
