"""How fast ways of training are beside each other: real jobs in turn, on this host or on two that a link joins.

    .venv/bin/python benchmarks/training_in_turn.py CONFIG [KEY=VALUE …] --out DIR --way "sync: mode=sync" --way "free:"

A way is a name and the settings that make it one. Every round trains each way once, with the round's seed; what is
told is target tokens per second, and how many times that is what the first way had in the same round. `--link 1gbit`
makes two network namespaces and spreads the ranks over them (root and iproute2); workers have one thread each there,
for these hosts share the cores that each takes for its own. The machine must do nothing else. A run that takes more
than `--hours` is ended; where one fails, what the rounds before it came to is told all the same.
The runs stay in DIR: `hpcasync evaluate RUN --all --split valid --beam 1` scores one, and
`hpcasync report DIR/* --thresholds 25,27` compares them.
"""

import contextlib
import json
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from hpcasync.bench.jobs import require_success, start_ranks
from hpcasync.bench.network_hosts import NetworkHosts, linked_hosts
from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError


def parse_way(text: str) -> tuple[str, tuple[str, ...]]:
    """The name of "NAME: KEY=VALUE …", and its settings."""
    name, colon, settings = text.partition(":")
    if not colon or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--way {text!r}: write a name, a colon, and settings, for example 'sync: mode=sync'")
    return name, tuple(shlex.split(settings))


def named_ways(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Settings by the name of the way."""
    ways: dict[str, tuple[str, ...]] = {}
    for name, settings in map(parse_way, texts):
        if name in ways:
            raise UserError(f"--way: two are called {name}")
        ways[name] = settings
    return ways


@dataclass(frozen=True)
class Jobs:
    """How each job is started."""

    path: Path
    workers: int
    hosts: NetworkHosts | None
    hours: float

    def train(self, config: Config, settings: tuple[str, ...]) -> None:
        """One job; its run directory is where `config` says."""
        program = ("-m", "hpcasync", "train", str(self.path.absolute()), *settings)
        num_ranks, seconds = self.workers + config.num_servers, 3600 * self.hours
        line, job = start_ranks(num_ranks, program, hosts=self.hosts, timeout_seconds=seconds)
        require_success(line, job, seconds)


def show(speeds: dict[str, list[float]], staleness: dict[str, list[float]]) -> None:
    """A table of medians, and of the ratios to the first way."""
    num_rounds = min(map(len, speeds.values()))
    if not num_rounds:
        return
    first = next(iter(speeds.values()))[:num_rounds]
    click.echo("| way | target tokens/s | times the first | staleness |\n|---|---:|---:|---:|")
    for name, those in speeds.items():
        ratios = sorted(speed / base for speed, base in zip(those, first, strict=False))
        spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
        middle, stale = statistics.median(those[:num_rounds]), statistics.fmean(staleness[name][:num_rounds])
        click.echo(f"| {name} | {middle:,.0f} | {statistics.median(ratios):.2f}{spread} | {stale:.2f} |")


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("settings", nargs=-1)
@click.option("--way", "ways", multiple=True, required=True, help="NAME: KEY=VALUE …; the first is compared with.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where the runs go.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Of each job.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(1,), show_default=True, help="Of a round; several.")
@click.option("--hours", default=2.0, show_default=True, type=click.FloatRange(min=0), help="That a run may take.")
@click.option("--link", help="Two hosts joined by a link of this speed, for example 1gbit; default: this host.")
def main(
    config: Path,
    settings: tuple[str, ...],
    ways: tuple[str, ...],
    out: Path,
    workers: int,
    seeds: tuple[int, ...],
    hours: float,
    link: str | None,
) -> None:
    """Train with CONFIG and SETTINGS in each of the WAYS, in turn."""
    if link:
        settings = ("roles.worker_threads=1", *settings)
    speeds: dict[str, list[float]] = {}
    staleness: dict[str, list[float]] = {}
    error: UserError | None = None
    try:
        named = named_ways(ways)
        speeds, staleness = {name: [] for name in named}, {name: [] for name in named}
        with linked_hosts(link) if link else contextlib.nullcontext() as hosts:
            for seed in seeds:
                for name, own in named.items():
                    chosen = (*settings, *own, f"run_dir={out.absolute()}", f"name={name}", f"seed={seed}")
                    loaded = load_config(config, chosen)
                    Jobs(config, workers, hosts, hours).train(loaded, chosen)
                    summary = json.loads((loaded.output_dir / "summary.json").read_text())
                    speeds[name].append(summary["target_tokens_per_second"])
                    staleness[name].append(summary["staleness"]["mean"])
                    told = f"{summary['target_tokens_per_second']:,.0f} tok/s, {summary['wall_seconds']:.1f} s"
                    click.echo(f"{loaded.output_dir}: {told}, staleness {summary['staleness']['mean']:.2f}")
    except UserError as caught:
        error = caught
    if speeds:
        show(speeds, staleness)
    if error is not None:
        click.echo(str(error), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
