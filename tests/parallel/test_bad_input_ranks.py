"""Mistakes that concern several ranks, or a run that is there: one message for the whole job, and nothing harmed.

Those of one process are in tests/unit/test_bad_input.py.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from bad_input import (
    MOST_CPU_SECONDS,
    PATIENCE_SECONDS,
    Prepare,
    both,
    change,
    check_refusal,
    digest_of,
    remove,
    rename,
    write,
)
from forked_commands import ForkedCommands
from runners import MpiRunner
from tiny_training import Trainer

from hpcasync.launch.process import FinishedJob

NUM_UPDATES = 2
# A job that is refused takes a few seconds; on busy cores the imports alone take a minute.
JOB_SECONDS = 240.0
CHECKPOINT = f"checkpoints/u{NUM_UPDATES:08d}"
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def finished(trainer: Trainer) -> Path:
    """A run directory with a checkpoint of two shards."""
    run = trainer(3, "mode=async", "roles.servers=2", "name=done", f"stop={{updates: {NUM_UPDATES}}}")
    assert (run.path / CHECKPOINT / "state.json").is_file()
    return run.path


def edit_state(**values: object) -> Prepare:
    """Change keys of the checkpoint's state."""

    def edit(text: bytes) -> bytes:
        return json.dumps({**json.loads(text), **values}).encode()

    return change(f"{CHECKPOINT}/state.json", edit)


def without(key: str) -> Prepare:
    """Leave a key of the checkpoint's state out."""
    return change(
        f"{CHECKPOINT}/state.json",
        lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key}).encode(),
    )


NONE: Prepare = lambda _: None  # noqa: E731
STATE = f"{CHECKPOINT}/state.json"
# Overrides, what is done to the run directory, what the message says, and the cure.
CHECKPOINTS = {
    "another model": ("model.dim=48", NONE, "another model", "the configuration it was started with"),
    "another seed": ("seed=1 data.batch_tokens=160", NONE, "another batches", "the configuration it was started with"),
    "another corpus": ("data.path=other", NONE, "another", "the configuration it was started with"),
    "missing": ("", remove("checkpoints"), "no complete checkpoint", "--overwrite"),
    "half written": ("", rename(CHECKPOINT, f"{CHECKPOINT}.partial"), "no complete checkpoint", "--overwrite"),
    "truncated state": ("", change(STATE, lambda text: text[:-20]), "state.json", "remove"),
    "a list for the state": ("", write(STATE, "[]"), "state.json", "remove"),
    "a state without its layout": ("", without("layout"), "state.json", "remove"),
    "a foreign state": ("", write(STATE, '{"epoch": 3}'), "state.json", "remove"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_to_resume_from(
    name: str, commands: ForkedCommands, trainer: Trainer, finished: Path, tmp_path: Path
) -> None:
    overrides, prepare, says, cure = CHECKPOINTS[name]
    # One process can be a job of mode sync, whose directory has another name.
    run_dir = tmp_path / "runs" / "done-sync-seed1"
    shutil.copytree(finished, run_dir)
    prepare(run_dir)
    (tmp_path / "text").mkdir()
    if "data.path" in overrides:
        (tmp_path / "other").symlink_to(_other_corpus(tmp_path / "text", trainer))
    before = digest_of(tmp_path)
    words = (trainer.path, "mode=sync", "name=done", "run_dir=runs", f"stop={{updates: {NUM_UPDATES + 1}}}")
    done = commands("train", "--resume", *words, *overrides.split(), cwd=tmp_path, timeout=PATIENCE_SECONDS)
    check_refusal(done.returncode, done.stderr, ("runs/done-sync-seed1", says), cure)
    assert done.cpu_seconds < MOST_CPU_SECONDS
    assert digest_of(tmp_path) == before, "a refusal changes nothing"


def _other_corpus(directory: Path, trainer: Trainer) -> Path:
    """The corpus of the run with one word changed, so that all sizes stay."""
    path = Path(yaml.safe_load(trainer.path.read_text())["data"]["path"])
    text = (path.parent / "train.src").read_text()
    for name in ("train.tgt", "valid.src", "valid.tgt"):
        shutil.copy(path.parent / name, directory)
    (directory / "train.src").write_text("\n".join(reversed(text.splitlines())) + "\n")
    return make_prepared(directory)


def make_prepared(directory: Path) -> Path:
    """Prepare the text in a directory as the corpus of the tests is."""
    from hpcasync.data.prepare import PrepareOptions, prepare
    from hpcasync.data.subwords import SubwordOptions

    held_out = {"valid": (directory / "valid.src", directory / "valid.tgt")}
    options = PrepareOptions(subwords=SubwordOptions(vocab_size=70), held_out=held_out)
    prepare(directory / "train.src", directory / "train.tgt", directory / "corpus", options)
    return directory / "corpus"


def refuse(job: FinishedJob, *says: str, cure: str) -> None:
    """Check the one message of an MPI job."""
    check_refusal(job.returncode, job.stderr, says, cure)


def test_a_truncated_shard(trainer: Trainer, finished: Path) -> None:
    shard = next(iter(sorted((finished / CHECKPOINT).glob("shard-*"))))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    before = digest_of(finished)
    more = f"stop={{updates: {NUM_UPDATES + 1}}}"
    run = trainer.command(3, "mode=async", "roles.servers=2", "name=done", more, flags=["--resume"], exit_code=2)
    refuse(run.job, f"cannot read {shard}", cure=f"remove {shard.parent}")
    assert digest_of(finished) == before, "a refusal changes nothing"
    shard.write_bytes(content)


def test_ranks_with_another_corpus(mpirun: MpiRunner, trainer: Trainer, tmp_path: Path) -> None:
    values = yaml.safe_load(trainer.path.read_text())
    for name in ("here", "there"):
        (tmp_path / name / "text").mkdir(parents=True)
    (tmp_path / "here" / "corpus").symlink_to(values["data"]["path"])
    (tmp_path / "there" / "corpus").symlink_to(_other_corpus(tmp_path / "there" / "text", trainer))
    values["data"]["path"], values["run_dir"] = "corpus", str(tmp_path / "runs")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    arguments = (tmp_path / "there", "train", tmp_path / "config.yaml", "mode=async")
    options = ("--wdir" if mpirun.launcher.flavour == "openmpi" else "-wdir", str(tmp_path / "here"))
    job = mpirun.program(
        2, PROGRAMS / "differing_corpus.py", *arguments, options=options, exit_code=2, timeout=JOB_SECONDS
    )
    refuse(job, "the corpus corpus differs between ranks", "rank 1 has", cure="the same files")
    assert not (tmp_path / "runs").exists()


def test_horovod_is_absent(mpirun: MpiRunner, trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("raise ImportError('blocked by a test')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = mpirun(
        2,
        ["train", trainer.path, "mode=sync", "name=blocked"],
        env={"PYTHONPATH": path},
        exit_code=2,
        timeout=JOB_SECONDS,
    )
    refuse(job, "mode=sync needs Horovod", "blocked by a test", cure="sync.backend=torch and every asynchronous mode")
    assert not list(trainer.path.parent.glob("runs/blocked*"))


def test_sync_by_horovod_without_threads_in_mpi(mpirun: MpiRunner, trainer: Trainer) -> None:
    """Its thread calls MPI while this one looks for ranks that are gone."""
    pytest.importorskip("horovod")
    few = {"MPI4PY_RC_THREAD_LEVEL": "serialized"}
    settings = "mode=sync", "sync.backend=horovod", "name=threads"
    job = mpirun(2, ["train", trainer.path, *settings], env=few, exit_code=2, timeout=JOB_SECONDS)
    refuse(job, "mode=sync with Horovod needs MPI_THREAD_MULTIPLE", cure="set sync.backend=torch")


@contextmanager
def tiny_disk(directory: Path, *, options: str) -> Iterator[Path]:
    """A file system of its own; skips where there can be none."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_read_only_run_directory(mpirun: MpiRunner, trainer: Trainer, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="ro") as disk:
        job = mpirun(2, ["train", trainer.path, "mode=async", f"run_dir={disk}/runs"], exit_code=2, timeout=JOB_SECONDS)
    refuse(
        job,
        f"cannot write {disk}/runs",
        "Read-only file system",
        cure="name a place that may be written",
    )


def test_a_full_disk(commands: ForkedCommands, trainer: Trainer, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="size=64k") as disk:
        corpus = Path(yaml.safe_load(trainer.path.read_text())["data"]["path"]).parent
        (disk / "kept").write_bytes(b"x" * 20_000)
        words = ("data", "prepare", corpus / "train.src", corpus / "train.tgt", "--out", disk / "new")
        done = commands(*words, "--vocab-size", "70", cwd=disk, timeout=PATIENCE_SECONDS)
        check_refusal(done.returncode, done.stderr, (f"{disk}/new", "No space left on device"), "make room")
        assert digest_of(disk).keys() == {"kept"}, "what was written of it is gone"


def test_a_digest_notices_everything(tmp_path: Path) -> None:
    both(write("a/b", "1"), write("c", "2"))(tmp_path)
    before = digest_of(tmp_path)
    change("a/b", lambda _: b"3")(tmp_path)
    assert digest_of(tmp_path) != before
