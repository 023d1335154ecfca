"""How well `hpcasync simulate` forecasts real jobs on this machine.

    .venv/bin/python benchmarks/simulator_forecast.py CORPUS [KEY=VALUE …] [--config configs/multi30k.yaml]

CORPUS is a directory made by `hpcasync data prepare`. Each mode is trained by `hpcasync launch` with even workers and
with one that is slowed down (`straggler.slowdown`), in turn, as many rounds as are asked for. A cluster is fitted to
the timelines of the even run alone; both runs of its round are then forecast from it. The uneven run is the test:
nothing of it has been seen. The machine must do nothing else: what changes from one run to the next counts as an error.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError
from hpcasync.simulate.fit import fit_cluster
from hpcasync.simulate.throughput import measure_throughput
from hpcasync.simulate.times import times_of
from hpcasync.simulate.workload import find_workload

# The first updates pay for allocations and caches.
_SHARE_LEFT_OUT = 0.2


@dataclass(frozen=True)
class Row:
    """A real run and its forecast.

    Attributes:
        mode: of training.
        workers: "even", or which one is slowed down.
        measured, forecast: target tokens per second.
        measured_staleness, forecast_staleness: mean, in updates.
    """

    mode: str
    workers: str
    measured: float
    forecast: float
    measured_staleness: float
    forecast_staleness: float

    @property
    def ratio(self) -> float:
        """Forecast throughput over measured."""
        return self.forecast / self.measured


def train(config: Path, num_ranks: int, overrides: tuple[str, ...]) -> Config:
    """Run a real job; returns its configuration."""
    command = [sys.executable, "-m", "hpcasync", "launch", "-n", str(num_ranks), "--", "train", str(config), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` ended with code {done.returncode}:\n{done.stderr}")
    return load_config(config, overrides)


def measured(run_dir: Path) -> tuple[float, float]:
    """Target tokens per second and mean staleness of a run, without its first updates."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["event"] == "update"]
    updates = updates[int(_SHARE_LEFT_OUT * len(updates)) :]
    first, last = updates[0], updates[-1]
    tokens = last["target_tokens"] - first["target_tokens"]
    staleness = sum(update["staleness_mean"] for update in updates[1:]) / (len(updates) - 1)
    return tokens / (last["wall_seconds"] - first["wall_seconds"]), staleness


def compare(config: Path, mode: str, num_workers: int, slowdown: float, overrides: tuple[str, ...]) -> list[Row]:
    """Train with even and uneven workers, and forecast both from the even run."""
    # Measured is what goes on, not the start.
    of_mode = (*overrides, f"mode={mode}", "name=even", "staleness.fresh_start=0")
    uneven = (*of_mode, "name=uneven", f"straggler={{worker: 0, slowdown: {slowdown:g}}}")
    num_ranks = num_workers + load_config(config, of_mode).num_servers
    runs = {"even": train(config, num_ranks, of_mode), f"one {slowdown:g}x slower": train(config, num_ranks, uneven)}
    cluster = fit_cluster(runs["even"].output_dir)
    click.echo(f"fitted to {mode}, even: {json.dumps(cluster.to_dict())}")
    rows = []
    for workers, run in runs.items():
        workload, _ = find_workload(run, None)
        forecast = measure_throughput(run, cluster, workload, times_of(cluster, run.straggler))
        rate, staleness = measured(run.output_dir)
        rows.append(Row(mode, workers, rate, forecast.target_tokens_per_second, staleness, forecast.staleness_mean))
        click.echo(f"  {workers}: measured {rate:,.0f} tok/s, forecast {forecast.target_tokens_per_second:,.0f}")
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print a table: means over the rounds, and the range of the ratio."""
    click.echo("| setting | measured tok/s | forecast tok/s | ratio | staleness measured | forecast |")
    click.echo("|---|---:|---:|---:|---:|---:|")
    settings = dict.fromkeys((row.mode, row.workers) for row in rows)
    for mode, workers in settings:
        chosen = [row for row in rows if (row.mode, row.workers) == (mode, workers)]
        rate, forecast = (statistics.fmean(getattr(row, name) for row in chosen) for name in ("measured", "forecast"))
        ratios = [row.ratio for row in chosen]
        staleness = " | ".join(
            f"{statistics.fmean(getattr(row, name) for row in chosen):.2f}"
            for name in ("measured_staleness", "forecast_staleness")
        )
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        click.echo(
            f"| `{mode}`, {workers} | {rate:,.0f} | {forecast:,.0f} | {forecast / rate:.2f}{spread} | {staleness} |"
        )


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("settings", nargs=-1)
@click.option("--config", type=click.Path(path_type=Path), default="configs/multi30k.yaml", show_default=True)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Workers of each job.")
@click.option("--slowdown", default=2.0, show_default=True, type=click.FloatRange(min=1), help="Of worker 0.")
@click.option("--updates", default=80, show_default=True, type=click.IntRange(min=40), help="Of each job.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(min=1), help="Of all jobs.")
@click.option("--mode", "modes", multiple=True, default=("sync", "async-global"), show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows of all rounds there.")
def main(
    corpus: Path,
    settings: tuple[str, ...],
    config: Path,
    workers: int,
    slowdown: float,
    updates: int,
    rounds: int,
    modes: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Train on CORPUS, fit, forecast, compare."""
    rows: list[Row] = []
    overrides = (
        f"data.path={corpus.absolute()}",
        f"stop={{updates: {updates}}}",
        "validation={every: 0, score: false}",
        "logging={every: 5, tensorboard: false, timeline: true}",
        *settings,
    )
    for _ in range(rounds):
        for mode in modes:
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    rows += compare(config, mode, workers, slowdown, (f"run_dir={scratch}", *overrides))
                except UserError as error:
                    raise click.ClickException(str(error)) from error
    show(rows)
    if json_path:
        json_path.write_text(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
