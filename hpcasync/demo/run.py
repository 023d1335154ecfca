"""Runs the commands that a user would run, one after the other, and shows them."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hpcasync.config.schema import Config, load_config
from hpcasync.demo.results import compare, show_translations
from hpcasync.errors import UserError

# Two ranks of sync are both workers; the asynchronous run has a server beside its two.
_RANKS = {"sync": 2, "async-global": 3}
# How fast the two workers are: the end of the run's name, and settings.
_WORKERS = {
    "even": ("", ()),
    "one takes twice as long": ("-slow", ("straggler.worker=1", "straggler.slowdown=2")),
}


@dataclass(frozen=True)
class DemoPlan:
    """What to demonstrate.

    Attributes:
        corpus: a name that `hpcasync data fetch` knows.
        config: training configuration; its data.path is where the corpus is prepared.
        seconds: training time of each of the four runs; 0: as the configuration says.
        mirror: directory or URL to fetch the corpus from; empty: its home.
    """

    corpus: str
    config: Path
    seconds: float
    mirror: str


def run_demo(plan: DemoPlan) -> None:
    """Fetch, prepare, train in both modes, with even workers and with one that is slow; translate, compare, report.

    Raises:
        UserError: one of the commands failed.
    """
    base = load_config(plan.config)
    _prepare(plan, base.data.path)
    runs: dict[str, list[Config]] = {}
    for workers, (suffix, settings) in _WORKERS.items():
        name = base.name + suffix
        runs[workers] = [_train(plan, mode, workers, (f"name={name}", *settings)) for mode in _RANKS]
    _heading("A few sentences of the test set")
    show_translations(runs["even"])
    _heading("Comparison")
    compare(runs)
    _heading("Report")
    directories = [str(run.output_dir) for group in runs.values() for run in group]
    _hpcasync("report", *directories, "-o", str(base.run_dir / f"{base.name}.html"))


def _train(plan: DemoPlan, mode: str, workers: str, settings: tuple[str, ...]) -> Config:
    _heading(f"Training: {mode}, workers: {workers}")
    seconds = (f"stop.seconds={plan.seconds:g}",) if plan.seconds else ()
    overrides = (f"mode={mode}", *settings, *seconds)
    _hpcasync("launch", "-n", str(_RANKS[mode]), "--", "train", str(plan.config), *overrides, "--overwrite")
    config = load_config(plan.config, overrides)
    _hpcasync("evaluate", str(config.output_dir), "--split", "test")
    return config


def _prepare(plan: DemoPlan, prepared: Path) -> None:
    if (prepared / "manifest.json").is_file():
        _heading(f"Data: {prepared} is there already")
        return
    _heading("Data")
    raw = prepared.with_name(prepared.name + "-text")
    mirror = ["--mirror", plan.mirror] if plan.mirror else []
    _hpcasync("data", "fetch", plan.corpus, str(raw), *mirror)
    names = {"multi30k": ("train", "val", "test_2016_flickr", ".gz")}
    train, valid, test, suffix = names.get(plan.corpus, ("train", "valid", "test", ""))
    pairs = [[str(raw / f"{split}.{language}{suffix}") for language in ("en", "de")] for split in (train, valid, test)]
    vocabulary = ["--vocab-size", "4000" if plan.corpus == "multi30k" else "2000"]
    _hpcasync(
        "data", "prepare", *pairs[0], "--valid", *pairs[1], "--test", *pairs[2], *vocabulary, "--out", str(prepared)
    )


def _heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _hpcasync(*arguments: str) -> None:
    print(f"$ hpcasync {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "hpcasync", *arguments]).returncode
    if code:
        raise UserError(f"`hpcasync {shlex.join(arguments)}` ended with code {code}; its message is above")
