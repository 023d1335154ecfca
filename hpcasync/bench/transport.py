"""`hpcasync bench transport`: pushes and pulls through the engine's windows, against memcpy or the line."""

from collections.abc import Sequence
from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.network_hosts import bytes_per_second, linked_hosts
from hpcasync.bench.rows import Row, rate_row

_PROGRAM = ("-m", "hpcasync.bench.transport_ranks")
_FORMATS = ("fp32", "bf16")


def bench_transport(
    num_elements: int, num_rounds: int, options: Sequence[str], link: str | None = None
) -> tuple[list[Row], str]:
    """Measure on this host, or between hosts: with `options` (mpirun's), or two made here with a `link` of known rate.

    Returns:
        the rows and the MPI library.

    Raises:
        UserError: `link` is no rate, or no hosts can be made here; or the job failed.
    """
    arguments = str(num_elements), str(num_rounds)
    if link is not None:
        return _over_link(arguments, options, link)
    one = run_ranks(2, (*_PROGRAM, "1", *arguments, "fp32"), options=options)
    if one["hosts"] > 1:
        two = run_ranks(2, (*_PROGRAM, "1", *arguments, "bf16"), options=options)
        return _rows_between_hosts(arguments, [one, two], None), one["mpi"]
    size = f"{num_elements:,} fp32"
    rows = [
        rate_row(f"push of {size}", one["push"], one["memcpy"], "GB/s", goal=0.9, note="limit: memcpy"),
        rate_row(f"pull of {size}", one["pull"], one["memcpy"], "GB/s", goal=0.9, note="limit: memcpy"),
    ]
    for num_servers in (1, 2):
        both = run_ranks(num_servers + 2, (*_PROGRAM, str(num_servers), *arguments, "fp32"), options=options)
        name = f"two workers push at once into {num_servers} server{'s' if num_servers > 1 else ''}"
        rows.append(rate_row(name, both["push"], both["memcpy"], "GB/s", goal=0.8, note="limit: two memcpy at once"))
    return rows, one["mpi"]


def _over_link(arguments: tuple[str, str], options: Sequence[str], link: str) -> tuple[list[Row], str]:
    with linked_hosts(link) as hosts:
        results = [run_ranks(2, (*_PROGRAM, "1", *arguments, form), options=options, hosts=hosts) for form in _FORMATS]
    assert all(result["hosts"] == 2 for result in results)
    return _rows_between_hosts(arguments, results, bytes_per_second(link)), results[0]["mpi"]


def _rows_between_hosts(arguments: tuple[str, str], results: Sequence[Any], rate: float | None) -> list[Row]:
    """Rows for each format, against the link's rate in bytes per second, or where it is not known one TCP stream."""
    rows = []
    for form, result in zip(_FORMATS, results, strict=True):
        tcp = result["line_rate"]
        limits = [tcp if rate is None else rate / 1e9] * len(result["push"])
        note = "limit: one TCP stream" if rate is None else f"limit: the link; one TCP stream reached {tcp:.3g}"
        for what in ("push", "pull"):
            name = f"{what} of {int(arguments[0]):,} {form} between hosts"
            rows.append(rate_row(name, result[what], limits, "GB/s", goal=0.9, note=note))
    return rows
