"""`hpcasync bench transport`: pushes and pulls through the engine's windows, against memcpy or the line."""

from collections.abc import Sequence
from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.rows import Row, rate_row

_PROGRAM = ("-m", "hpcasync.bench.transport_ranks")


def bench_transport(num_elements: int, num_rounds: int, options: Sequence[str]) -> tuple[list[Row], str]:
    """Measure on this host, or with `options` (mpirun's) between hosts; returns the rows and the MPI library."""
    arguments = str(num_elements), str(num_rounds)
    one = run_ranks(2, (*_PROGRAM, "1", *arguments), options=options)
    if one["hosts"] > 1:
        return _rows_between_hosts(num_elements, one), one["mpi"]
    size = f"{num_elements:,} fp32"
    rows = [
        rate_row(f"push of {size}", one["push"], one["memcpy"], "GB/s", goal=0.9, note="limit: memcpy"),
        rate_row(f"pull of {size}", one["pull"], one["memcpy"], "GB/s", goal=0.9, note="limit: memcpy"),
    ]
    for num_servers in (1, 2):
        two = run_ranks(num_servers + 2, (*_PROGRAM, str(num_servers), *arguments), options=options)
        name = f"two workers push at once into {num_servers} server{'s' if num_servers > 1 else ''}"
        rows.append(rate_row(name, two["push"], two["memcpy"], "GB/s", goal=0.8, note="limit: two memcpy at once"))
    return rows, one["mpi"]


def _rows_between_hosts(num_elements: int, result: Any) -> list[Row]:
    line = [result["line_rate"]] * len(result["push"])
    size = f"{num_elements:,} fp32 between hosts"
    return [
        rate_row(f"push of {size}", result["push"], line, "GB/s", goal=0.9, note="limit: one TCP stream"),
        rate_row(f"pull of {size}", result["pull"], line, "GB/s", goal=0.9, note="limit: one TCP stream"),
    ]
