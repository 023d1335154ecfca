"""How fast ways of training are beside each other: real jobs in turn, on this host or on two that a link joins.

    .venv/bin/python benchmarks/training_in_turn.py CONFIG [KEY=VALUE …] --out DIR --way "sync: mode=sync" --way "free:"

A way is a name and the settings that make it one. Every round trains each way once, with the round's seed; what is
told is target tokens per second, and how many times that is what the first way had in the same round. `--link 1gbit`
makes two network namespaces and spreads the ranks over them (root and iproute2); workers have one thread each there,
for these hosts share the cores that each takes for its own. The machine must do nothing else.
The runs stay in DIR: `hpcasync evaluate RUN --all --split valid --beam 1` scores one, and
`hpcasync report DIR/* --thresholds 25,27` compares them.
"""

import contextlib
import json
import re
import statistics
import sys
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
    return name, tuple(settings.split())


def train(config: Config, path: Path, settings: tuple[str, ...], workers: int, hosts: NetworkHosts | None) -> None:
    """One job; its run directory is where `config` says."""
    program = ("-m", "hpcasync", "train", str(path.absolute()), *settings)
    require_success(*start_ranks(workers + config.num_servers, program, hosts=hosts))


def show(speeds: dict[str, list[float]], staleness: dict[str, list[float]]) -> None:
    """A table of medians, and of the ratios to the first way."""
    first = next(iter(speeds.values()))
    click.echo("| way | target tokens/s | times the first | staleness |\n|---|---:|---:|---:|")
    for name, those in speeds.items():
        ratios = sorted(speed / base for speed, base in zip(those, first, strict=True))
        spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
        middle, stale = statistics.median(those), statistics.fmean(staleness[name])
        click.echo(f"| {name} | {middle:,.0f} | {statistics.median(ratios):.2f}{spread} | {stale:.2f} |")


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("settings", nargs=-1)
@click.option("--way", "ways", multiple=True, required=True, help="NAME: KEY=VALUE …; the first is compared with.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where the runs go.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Of each job.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(1,), show_default=True, help="Of a round; several.")
@click.option("--link", help="Two hosts joined by a link of this speed, for example 1gbit; default: this host.")
def main(
    config: Path,
    settings: tuple[str, ...],
    ways: tuple[str, ...],
    out: Path,
    workers: int,
    seeds: tuple[int, ...],
    link: str | None,
) -> None:
    """Train with CONFIG and SETTINGS in each of the WAYS, in turn."""
    speeds: dict[str, list[float]] = {}
    staleness: dict[str, list[float]] = {}
    if link:
        settings = ("roles.worker_threads=1", *settings)
    try:
        named = dict(map(parse_way, ways))
        with linked_hosts(link) if link else contextlib.nullcontext() as hosts:
            for seed in seeds:
                for name, own in named.items():
                    chosen = (*settings, *own, f"run_dir={out.absolute()}", f"name={name}", f"seed={seed}")
                    loaded = load_config(config, chosen)
                    train(loaded, config, chosen, workers, hosts)
                    summary = json.loads((loaded.output_dir / "summary.json").read_text())
                    speeds.setdefault(name, []).append(summary["target_tokens_per_second"])
                    staleness.setdefault(name, []).append(summary["staleness"]["mean"])
                    told = f"{summary['target_tokens_per_second']:,.0f} tok/s, {summary['wall_seconds']:.1f} s"
                    click.echo(f"{loaded.output_dir}: {told}, staleness {summary['staleness']['mean']:.2f}")
    except UserError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    show(speeds, staleness)


if __name__ == "__main__":
    main()
