"""What the demonstration shows at the end: translations, and a table."""

import json
from collections.abc import Sequence
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


def compare(runs: Sequence[Config]) -> None:
    """Print a table of the runs: BLEU, throughput, time to a BLEU that all reached, staleness, where they are."""
    validations = [read_validations(run.output_dir) for run in runs]
    threshold = common_threshold(validations)
    table = Table(box=None, pad_edge=False)
    for heading in (
        "mode",
        "BLEU valid",
        "BLEU test",
        "target tokens/s",
        f"time to BLEU {threshold}",
        "staleness",
        "run",
    ):
        table.add_column(heading, justify="left" if heading in ("mode", "run") else "right", no_wrap=True)
    for run, scores in zip(runs, validations, strict=True):
        summary = json.loads((run.output_dir / "summary.json").read_text())
        seconds = time_to(threshold, scores)
        test = read_records(run.output_dir / evaluation_file("test"))
        table.add_row(
            run.mode,
            f"{summary['best']['bleu']:.2f}" if summary["best"] else "-",
            f"{test[-1]['bleu']:.2f}" if test else "-",
            f"{summary['target_tokens_per_second']:,.0f}",
            "not reached" if seconds is None else f"{seconds:.0f} s",
            f"{summary['staleness']['mean']:.2f}",
            str(run.output_dir),
        )
    Console(width=140).print(table)


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
