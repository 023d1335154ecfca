"""What the demonstration shows at the end: translations, and a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hpcasync.config.schema import Config
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.load import load_model
from hpcasync.nmt.search import Searcher, SearchSettings
from hpcasync.report.results import time_to
from hpcasync.runs.records import evaluation_file, read_records, read_validations

_NUM_SENTENCES = 4


def show_translations(runs: Sequence[Config]) -> None:
    """Print the first sentences of the test set with their reference and each run's translation."""
    sources, references = (side[:_NUM_SENTENCES] for side in PreparedCorpus.open(runs[0].data.path).raw("test"))
    translations = [_translate(run, sources) for run in runs]
    width = max(len(run.mode) for run in runs)
    for index, (source, reference) in enumerate(zip(sources, references, strict=True)):
        print(f"{'source':>{width}}  {source}\n{'reference':>{width}}  {reference}")
        for run, texts in zip(runs, translations, strict=True):
            print(f"{run.mode:>{width}}  {texts[index]}")
        print(flush=True)


def compare(runs: Mapping[str, Sequence[Config]]) -> None:
    """Print a table of the runs: BLEU, throughput, staleness, time to a BLEU that all reached, and the ratio to sync.

    Args:
        runs: by how fast the workers are; one of each group is in mode sync.
    """
    validations = {run.output_dir: read_validations(run.output_dir) for group in runs.values() for run in group}
    threshold = common_threshold(list(validations.values()))
    table = Table(box=None, pad_edge=False)
    for heading in ("workers", "mode", "BLEU valid", "BLEU test", "target tokens/s", "staleness"):
        table.add_column(heading, justify="left" if heading in ("workers", "mode") else "right", no_wrap=True)
    table.add_column(f"time to BLEU {threshold}", justify="right", no_wrap=True)
    table.add_column("x sync", justify="right", no_wrap=True)
    for workers, group in runs.items():
        times = {run.mode: time_to(threshold, validations[run.output_dir]) for run in group}
        for run in group:
            table.add_row(workers, run.mode, *_scores(run), *_against_sync(times[run.mode], times["sync"]))
    Console(width=140).print(table)


def _scores(run: Config) -> tuple[str, str, str, str]:
    summary = json.loads((run.output_dir / "summary.json").read_text())
    test = read_records(run.output_dir / evaluation_file("test"))
    return (
        f"{summary['best']['bleu']:.2f}" if summary["best"] else "-",
        f"{test[-1]['bleu']:.2f}" if test else "-",
        f"{summary['target_tokens_per_second']:,.0f}",
        f"{summary['staleness']['mean']:.2f}",
    )


def _against_sync(seconds: float | None, of_sync: float | None) -> tuple[str, str]:
    """A time, and how many times as fast that is as sync."""
    if seconds is None:
        return "not reached", "-"
    return f"{seconds:.0f} s", f"{of_sync / seconds:.2f}" if of_sync and seconds else "-"


def common_threshold(validations: Sequence[Sequence[dict[str, Any]]]) -> int:
    """The highest multiple of 5 BLEU that every run reached."""
    best = [max((score["bleu"] for score in scores), default=0.0) for scores in validations]
    return int(min(best) // 5 * 5)


def _translate(run: Config, sources: Sequence[str]) -> list[str]:
    trained = load_model(run.output_dir)
    searcher = Searcher(
        trained.model,
        trained.source_vocabulary,
        trained.target_vocabulary,
        SearchSettings(),
        max_length=trained.config.model.max_length,
    )
    return [hypotheses[0].text for hypotheses in searcher.translate(sources)]
