"""`hpcasync translate`: text to text with a trained model."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from hpcasync.cli.cores import settle_threads
from hpcasync.cli.parameters import BEAM, FILE, THREADS, Count, Number
from hpcasync.errors import UserError

_READ_AHEAD = 2048  # sentences that are sorted by length into batches


@click.command()
@click.argument("model", metavar="MODEL", type=FILE)
@click.option(
    "-i", "--input", "source", type=FILE, metavar="FILE", help="Text, plain or .gz; default, or -: standard input."
)
@click.option("-o", "--output", "target", type=FILE, metavar="FILE", help="Default, or -: standard output.")
@click.option("--beam", default=5, show_default=True, type=BEAM, help="Hypotheses kept per sentence.")
@click.option("--greedy", is_flag=True, help="Always take the most probable token; the same as --beam 1.")
@click.option("--nbest", default=1, show_default=True, type=BEAM, help="Translations per sentence.")
@click.option("--scores", is_flag=True, help="Add the score to each line; always there with --nbest 2 or more.")
@click.option(
    "--length-penalty",
    default=1.0,
    show_default=True,
    type=Number(min=0.0),
    help="Hypotheses are ranked by log probability / length ** PENALTY.",
)
@click.option(
    "--patience",
    default=2.0,
    show_default=True,
    type=Number(min=0.0),
    help="A sentence is done when beam * PATIENCE hypotheses have ended.",
)
@click.option(
    "--max-length-factor",
    default=2.0,
    show_default=True,
    type=Number(min=0.0, can_be_unlimited=True),
    help="A translation has at most FACTOR * source pieces + 10 pieces; inf: model.max_length.",
)
@click.option(
    "--average",
    multiple=True,
    metavar="N|PATH",
    help="Average the last N snapshots up to MODEL; or MODEL with the one at PATH (several: repeat it).",
)
@click.option(
    "--batch-tokens",
    default=4096,
    show_default=True,
    type=Count(min=1),
    help="Padded source tokens times beam in a batch; bounds the memory.",
)
@click.option(
    "--read-ahead",
    type=Count(min=1),
    help=f"Sentences read before the first is translated; default: {_READ_AHEAD}, on a terminal 1.",
)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=THREADS, help="Threads on the CPU; default: one for each core that is free.")
def translate(
    model: Path,
    source: Path | None,
    target: Path | None,
    beam: int,
    greedy: bool,
    nbest: int,
    scores: bool,
    length_penalty: float,
    patience: float,
    max_length_factor: float,
    average: tuple[str, ...],
    batch_tokens: int,
    read_ahead: int | None,
    device: str,
    threads: int | None,
) -> None:
    """Translate with MODEL, one sentence a line, in the order of the input.

    MODEL is a run directory (its best snapshot), a snapshot in it, or a parameters.safetensors file in it. --nbest 2 or
    more writes lines `i ||| translation ||| score`, with i from 0.
    """

    from hpcasync.nmt.line_streams import OutputFormat, format_translation, input_lines, open_output, write_line
    from hpcasync.nmt.load import choose_device, load_model
    from hpcasync.nmt.search import Searcher, SearchSettings

    _check_files(source, target)
    settings = SearchSettings(
        beam=_beam(beam, greedy),
        nbest=nbest,
        length_penalty=length_penalty,
        patience=patience,
        max_length_factor=max_length_factor,
        batch_tokens=batch_tokens,
    )
    settle_threads(threads)
    num_averaged, average_with = parse_average(average)
    trained = load_model(model, device=choose_device(device), average=num_averaged, average_with=average_with)
    searcher = Searcher(
        trained.model,
        trained.source_vocabulary,
        trained.target_vocabulary,
        settings,
        max_length=trained.config.model.max_length,
    )
    output_format: OutputFormat = "nbest" if nbest > 1 else "best-with-score" if scores else "best"
    is_interactive = str(source or "-") == "-" and sys.stdin.isatty()
    translations = searcher.stream(input_lines(source), read_ahead or (1 if is_interactive else _READ_AHEAD))
    lines = (format_translation(number, hypotheses, output_format) for number, hypotheses in enumerate(translations))
    is_shown = sys.stderr.isatty() and (str(target or "-") != "-" or not sys.stdout.isatty())
    with open_output(target) as stream, _progress(is_shown=is_shown) as advance:
        for line in lines:
            write_line(line, stream, str(target or "standard output"))
            advance()


def parse_average(values: Sequence[str]) -> tuple[int, list[Path]]:
    """What --average asks for: how many snapshots of the run, and paths of others."""
    numbers = [value for value in values if _is_count(value)]
    if not numbers:
        return 1, [FILE.convert(value, None, None) for value in values]
    if len(values) > 1:
        raise UserError(f"--average takes one number or any number of paths, not {', '.join(values)}")
    return int(numbers[0]), []


def _is_count(text: str) -> bool:
    """Whether it is a number, not the name of a file; `isdigit` takes ² for one, which `int` does not."""
    return text.isascii() and text.isdigit() and len(text) < 10


@contextmanager
def _progress(*, is_shown: bool) -> Iterator[Callable[[], None]]:
    """Count sentences on standard error; yields what is called after each one."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.completed:,} sentences")
    with Progress(
        SpinnerColumn(), text, TimeElapsedColumn(), console=Console(stderr=True), disable=not is_shown
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.advance(task)


def _beam(beam: int, greedy: bool) -> int:
    is_given = click.get_current_context().get_parameter_source("beam") is ParameterSource.COMMANDLINE
    if greedy and is_given and beam > 1:
        raise click.UsageError(f"--greedy is --beam 1, but --beam {beam} is given, too")
    return 1 if greedy else beam


def _check_files(source: Path | None, target: Path | None) -> None:
    source, target = (None if str(path) == "-" else path for path in (source, target))
    if source is not None and not source.exists():
        raise UserError(f"there is no input file {source}")
    if source is not None and target is not None and target.exists() and source.samefile(target):
        raise UserError(f"{target} is input and output at once: choose another output file")
