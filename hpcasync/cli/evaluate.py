"""`hpcasync evaluate`: scores of translation files, and of the snapshots of a run."""

import json
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hpcasync.cli.cores import settle_threads
from hpcasync.cli.parameters import BEAM, FILE, SPLIT, THREADS, Count, Number
from hpcasync.config.schema import Config, load_config
from hpcasync.config.validation import Tokenizer
from hpcasync.errors import UserError

if TYPE_CHECKING:
    from hpcasync.nmt.evaluation import EvaluationSettings
    from hpcasync.runs.snapshots import Snapshot

_FILE_OPTIONS = ("systems", "samples", "metrics")
_RUN_OPTIONS = (
    "is_all", "split", "data", "beam", "length_penalty", "max_sentences", "batch_tokens", "device", "threads", "comet",
)  # fmt: skip
_MOST_SAMPLES = 1_000_000  # each is held in memory
_NO_BLANKS = (
    "note: the references have no blanks, by which 13a tells words apart, so that BLEU says little: see --tokenize"
)
TOKENIZERS = typing.get_args(Tokenizer)
_METRICS = ("bleu", "chrf", "ter")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="HYP REF... | RUN_DIR", type=FILE)
@click.option("--json", "is_json", is_flag=True, help="Write JSON.")
@click.option(
    "--system", "systems", multiple=True, type=FILE, metavar="HYP2", help="Compare with another output (repeatable)."
)
@click.option(
    "--samples", default=1000, show_default=True, type=Count(2, _MOST_SAMPLES), help="Resamples of the comparison."
)
@click.option("--metrics", default=",".join(_METRICS), show_default=True, help="Scores of files, by commas.")
@click.option("--tokenize", type=click.Choice(TOKENIZERS), help="Tokeniser of BLEU, as sacreBLEU's; default: 13a, of "
              "a run its validation.tokenize.")  # fmt: skip
@click.option("--all", "is_all", is_flag=True, help="Score all snapshots of the run, not the best alone.")
@click.option("--split", default="valid", show_default=True, type=SPLIT, help="valid, test, test2 …")
@click.option("--data", type=FILE, metavar="DIR", help="The prepared corpus; default: where the run says it was.")
@click.option("--beam", default=5, show_default=True, type=BEAM)
@click.option("--length-penalty", default=1.0, show_default=True, type=Number(min=0.0))
@click.option("--max-sentences", default=0, type=Count(min=0), help="Search so many sentences only; 0: all.")
@click.option("--batch-tokens", default=4096, show_default=True, type=Count(min=1))
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=THREADS, help="Threads on the CPU; default: one for each core that is free.")
@click.option("--comet", type=FILE, metavar="DIR", help="A COMET model to score with, too; default: the run's "
              "validation.comet.")  # fmt: skip
def evaluate(
    paths: tuple[Path, ...],
    is_json: bool,
    systems: tuple[Path, ...],
    samples: int,
    metrics: str,
    tokenize: str | None,
    is_all: bool,
    split: str,
    data: Path | None,
    beam: int,
    length_penalty: float,
    max_sentences: int,
    batch_tokens: int,
    device: str,
    threads: int | None,
    comet: Path | None,
) -> None:
    """Score translations or a trained model.

    HYP REF...: BLEU (cased), chrF and TER of the file HYP against one or several references, by sacreBLEU, with
    its signatures. Files are plain or .gz, one sentence a line; - is standard input. --system HYP2 compares HYP2 with
    HYP by paired bootstrap.

    RUN_DIR: loss, perplexity, BLEU and chrF of the best snapshot on the corpus that it was trained on; --all: of all
    snapshots, by version. A snapshot's directory in RUN_DIR: of that one. Scores are kept in
    RUN_DIR/evaluation-SPLIT.jsonl, and not computed again.
    """
    if not paths[0].is_dir():
        _refuse(_RUN_OPTIONS, "a run directory, but the first path is no directory")
        _evaluate_files(paths, systems, _parse_metrics(metrics), samples, tokenize, is_json=is_json)
        return
    _refuse(_FILE_OPTIONS, "files, but the first path is a directory")
    if len(paths) > 1:
        raise click.UsageError("give one run directory, or HYP and REF files")

    from hpcasync.nmt.evaluation import EvaluationSettings

    settle_threads(threads)
    settings = EvaluationSettings(split, beam, length_penalty, max_sentences, tokenize or "", batch_tokens, comet)
    _evaluate_run(paths[0], data, settings, device, is_all=is_all, is_json=is_json)


def _evaluate_files(
    paths: tuple[Path, ...],
    systems: tuple[Path, ...],
    metrics: list[str],
    num_samples: int,
    tokenize: str | None,
    *,
    is_json: bool,
) -> None:
    from hpcasync.cli.evaluate_text import comparison_lines, score_lines
    from hpcasync.data.languages import AUTO, DEFAULT, lacks_blanks
    from hpcasync.nmt.line_streams import read_documents
    from hpcasync.nmt.scoring import check_lengths, corpus_score, paired_bootstrap

    if len(paths) < 2:
        what = "is no directory" if paths[0].exists() or str(paths[0]) == "-" else "does not exist"
        raise UserError(f"{paths[0]} {what}: give a translation and its references, or a run directory")
    names = [str(path) for path in (paths[0], *systems)]
    if len(set(names)) < len(names):
        raise UserError("a system is given twice: name different files to compare")
    documents = read_documents([*paths, *systems])
    references = documents[1 : len(paths)]
    outputs = dict(zip(names, [documents[0], *documents[len(paths) :]], strict=True))
    check_lengths({**outputs, **dict(zip(map(str, paths[2:]), references[1:], strict=True))}, references[:1])
    if tokenize in (None, AUTO) and "bleu" in metrics and lacks_blanks(references[0]):
        click.echo(_NO_BLANKS, err=True)
    tokenizer = DEFAULT if tokenize in (None, AUTO) else tokenize
    if systems:
        compared = paired_bootstrap(outputs, references, metrics, num_samples, tokenizer)
        content: Any = [{"system": name, "scores": [vars(s) for s in scores]} for name, scores in compared.items()]
        lines = comparison_lines(compared)
    else:
        scores = [corpus_score(name, documents[0], references, tokenizer) for name in metrics]
        content = {"system": names[0], "scores": [vars(score) for score in scores]}
        lines = score_lines(scores)
    _write([json.dumps(content, indent=1)] if is_json else lines)


def _evaluate_run(
    path: Path, data: Path | None, settings: "EvaluationSettings", device: str, *, is_all: bool, is_json: bool
) -> None:
    from hpcasync.cli.evaluate_text import record_line, record_titles, signature_lines
    from hpcasync.data.corpus import PreparedCorpus
    from hpcasync.nmt.load import choose_device
    from hpcasync.nmt.run_evaluation import evaluate_snapshots
    from hpcasync.runs.snapshots import CONFIG_FILE, find_run_dir

    run_dir = find_run_dir(path)
    config = load_config(run_dir / CONFIG_FILE)
    corpus = PreparedCorpus.open(data or _corpus_path(run_dir, config))
    settings = replace(
        settings,
        tokenize=settings.tokenize or config.validation.tokenize,
        comet=settings.comet or config.validation.comet,
    )
    snapshots = _snapshots(path, run_dir, is_all=is_all)
    records = []
    if not is_json:
        _write(
            [
                f"{run_dir}, {settings.split} text of {corpus.path}",
                "",
                record_titles(has_comet=settings.comet is not None),
            ]
        )
    with _progress(len(snapshots)) as advance:
        for record in evaluate_snapshots(run_dir, snapshots, corpus, settings, choose_device(device)):
            records.append(record)
            if not is_json:
                _write([record_line(record)])
            advance()
    if len(records) > 2 and len({round(record["bleu"], 2) for record in records}) == 1:
        click.echo("note: BLEU is the same for all snapshots and cannot tell them apart; see --tokenize", err=True)
    _write([json.dumps(records, indent=1)] if is_json else signature_lines(records[-1]))


def _snapshots(path: Path, run_dir: Path, *, is_all: bool) -> "list[Snapshot]":
    from hpcasync.runs.snapshots import Snapshot, chosen_directory, list_snapshots

    is_run = path.absolute() == run_dir.absolute()
    if not is_all:
        return [Snapshot.read(chosen_directory(path) if is_run else path)]
    if not is_run:
        raise UserError(f"--all needs a run directory: {path} lies in {run_dir}")
    snapshots = list_snapshots(run_dir)
    if not snapshots:
        raise UserError(f"{run_dir} has no snapshots yet")
    return snapshots


def _corpus_path(run_dir: Path, config: Config) -> Path:
    path = config.data.path
    if not path.exists():
        raise UserError(f"{path}, the corpus that {run_dir} was trained on, is not here: say where with --data DIR")
    return path


def _parse_metrics(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in _METRICS:
            raise UserError(f"--metrics: there is no score {name!r}; choose from {', '.join(_METRICS)}")
    return list(dict.fromkeys(names))


def _refuse(options: Iterable[str], what: str) -> None:
    """Options of the other kind of evaluation would have no effect: a usage error if one is given."""
    context = click.get_current_context()
    for parameter in context.command.params:
        is_given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in options and is_given:
            raise click.UsageError(f"{parameter.opts[-1]} is for {what}")


def _write(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


@contextmanager
def _progress(num_snapshots: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("scoring snapshots"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else rows meant for a file would go to the terminal
    ) as bar:
        task = bar.add_task("", total=num_snapshots)
        yield lambda: bar.advance(task)
