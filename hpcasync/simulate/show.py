"""Results of simulations without gradients, for people."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.simulate.result import Throughput, bottleneck
from hpcasync.simulate.sweep import Comparison

_BARS = 40
_MOST_ROWS = 12


def throughput_lines(result: Throughput, cluster: ClusterConfig, num_elements: int) -> Iterable[str]:
    """Rates, where the time went, staleness, and what is narrow."""
    is_sync = result.mode == "sync"
    ranks = _counted(result.num_workers, "worker")
    ranks += "" if is_sync else f", {_counted(result.num_servers, 'server')}"
    yield f"mode {result.mode}: {ranks}, {num_elements:,} parameters, seed {cluster.seed}"
    yield (
        f"  throughput     {result.target_tokens_per_second:,.0f} target tokens/s "
        f"({result.num_updates} updates in {result.seconds:,.2f} virtual seconds)"
    )
    yield f"  efficiency     {result.efficiency:.1%} of the workers' time computes gradients that are applied"
    yield f"  workers        waiting {result.waiting:.1%}, moving {result.moving:.1%} of their time"
    if is_sync:
        yield f"  optimizer      {result.server:.1%} of the time"
    else:
        yield f"  servers        processors busy {result.server:.1%}"
        yield f"  servers' links pushes {result.to_server:.1%}, pulls {result.from_server:.1%} busy"
        yield f"  workers' links {result.worker_links:.1%} busy; pulls repeated {result.pull_retries:.2%}"
        yield f"  staleness      mean {result.staleness_mean:.2f}, max {result.staleness_max}"
        yield from _histogram(result.staleness)
    yield f"  bottleneck     {bottleneck(result)}"


def servers_line(result: Throughput) -> str:
    """How many servers to use."""
    return (
        f"  servers to use {result.num_servers}: {result.target_tokens_per_second:,.0f} target tokens/s, efficiency "
        f"{result.efficiency:.1%}; more bring less than 2 %"
    )


def show_comparisons(comparisons: Iterable[Comparison]) -> None:
    """Print a table as the sizes are simulated."""
    table = Table(box=None, pad_edge=False)
    for heading in (
        "workers", "sync tok/s", "efficiency", "async-global tok/s", "efficiency", "servers", "staleness", "speed-up",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        sync, asynchronous = comparison.sync, comparison.asynchronous
        table.add_row(
            f"{sync.num_workers:,}",
            f"{sync.target_tokens_per_second:,.0f}",
            f"{sync.efficiency:.1%}",
            f"{asynchronous.target_tokens_per_second:,.0f}",
            f"{asynchronous.efficiency:.1%}",
            str(asynchronous.num_servers),
            f"{asynchronous.staleness_mean:.2f} (max {asynchronous.staleness_max})",
            f"{comparison.speedup:.2f}",
        )
    Console(width=120).print(table)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _histogram(staleness: dict[int, int]) -> Iterable[str]:
    total = sum(staleness.values())
    for updates, number in list(staleness.items())[:_MOST_ROWS]:
        share = number / total
        yield f"    {updates:>9} {share:6.1%} {'#' * round(share * _BARS)}"
    if len(staleness) > _MOST_ROWS:
        rest = sum(list(staleness.values())[_MOST_ROWS:]) / total
        yield f"         more {rest:6.1%} {'#' * round(rest * _BARS)}"
