"""The benchmarks run and say what they promise; what they measure is nobody's test."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from forked_ranks import ForkedRanks
from tiny_training import make_tiny_corpus

from hpcasync.bench.abort import bench_abort
from hpcasync.bench.compare import bench_compare, faster
from hpcasync.bench.network_hosts import bytes_per_second
from hpcasync.bench.network_hosts import reason_to_skip as reason_without_hosts
from hpcasync.bench.rows import Row, print_rows, rate_row, time_row
from hpcasync.cli.bench import bench
from hpcasync.errors import UserError
from hpcasync.ps.server import fused_apply

ROW = {"name", "value", "unit", "limit", "ratio", "goal", "met", "spread", "note"}


@pytest.fixture
def forks(forked: ForkedRanks | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks on this host are forks, where they can be."""
    if forked is not None:
        monkeypatch.setattr(sys, "executable", forked.python)


def rows_of(*arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(bench, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert {"hpcasync", "torch", "cpus"} <= set(answer["signature"])
    assert all(set(row) == ROW and row["value"] >= 0 for row in answer["rows"])
    return list(answer["rows"])


def test_apply() -> None:
    rows = rows_of("apply", "--elements", "300000", "--rounds", "2")
    # With a compiled kernel a row on its time beside torch's follows each.
    assert [row["goal"] for row in rows] == ([0.9, None, 0.9, None] if fused_apply.is_available() else [0.9, 0.9])


@pytest.mark.usefixtures("forks")
def test_transport() -> None:
    rows = rows_of("transport", "--elements", "100000", "--rounds", "2")
    assert [str(row["name"]).split(" of ")[0] for row in rows][:2] == ["push", "pull"]
    assert len(rows) == 4 and all(row["limit"] for row in rows)


def test_transport_between_hosts() -> None:
    if reason := reason_without_hosts():
        pytest.skip(reason)
    rows = rows_of("transport", "--elements", "100000", "--rounds", "2", "--link", "500mbit")
    assert [str(row["name"]).split(" of ")[0] for row in rows] == ["push", "pull", "push", "pull"]
    assert all(row["limit"] == 0.0625 and row["goal"] == 0.9 for row in rows)


def test_a_link_of_no_known_speed_is_refused() -> None:
    with pytest.raises(UserError, match="'fast' is no speed of a link"):
        bytes_per_second("fast")
    assert bytes_per_second("10gbit") == 1.25e9 and bytes_per_second("2.5mbit") == 312_500


@pytest.mark.usefixtures("forks")
def test_latency_has_all_its_parts() -> None:
    rows = rows_of("latency", "--elements", "1000", "--updates", "5", "--rounds", "1", "--compute", "1")
    names = [str(row["name"]).strip() for row in rows]
    assert len(rows) == 16 and names[1:8] == names[9:]
    assert names[:2] == ["update of 1,000, at once", "push"]


@pytest.mark.usefixtures("forks")
def test_idle_names_every_server() -> None:
    rows = rows_of("idle", "--seconds", "1", "--step", "0.5")
    assert [str(row["name"])[:13] for row in rows] == ["server 0 of 1", "server 0 of 2", "server 1 of 2"]
    assert all(row["limit"] == 3.0 and float(str(row["value"])) > 0 for row in rows)


def test_idle_between_hosts_names_them() -> None:
    if reason := reason_without_hosts():
        pytest.skip(reason)
    rows = rows_of("idle", "--seconds", "1", "--step", "0.5", "--link", "1gbit")
    assert len(rows) == 3 and all("workers on 2 hosts" in str(row["name"]) for row in rows)


def test_memory_has_every_rank_and_what_it_needs(tmp_path: Path) -> None:
    corpus = make_tiny_corpus(tmp_path)
    small = ("model.dim=16", "model.ffn_dim=32", "model.heads=2", "model.encoder_layers=1", "model.decoder_layers=1")
    rows = rows_of("memory", str(corpus.path), *small, "--updates", "2")
    totals = [row for row in rows if not str(row["name"]).startswith(" ")]
    assert [str(row["name"]) for row in totals] == [
        f"{who}: resident at most" for who in ("server", "worker 0", "worker 1")
    ]
    assert all(0 < float(str(row["limit"])) < float(str(row["value"])) for row in totals)


@pytest.mark.usefixtures("forks")
def test_abort_ends_a_job_as_promised() -> None:
    # One role: each starts a job. It raises where the job does not end with one traceback that names rank and host.
    [row], library = bench_abort(1, ["server"])
    assert row.name.startswith("a server of 2 servers and 2 workers throws") and "MPI" in library
    assert (row.limit, row.unit, row.value > 0) == (1.0, "s", True)


@pytest.mark.slow
def test_abort_names_every_role() -> None:
    rows = rows_of("abort", "--rounds", "1")
    assert [str(row["name"]).split()[1] for row in rows] == ["worker", "server", "coordinator"]


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []

    def rows() -> Iterator[Row]:
        for name in ("first", "second"):
            yield Row(name, 1.0, "us")
            printed.append(capsys.readouterr().out)

    print_rows(rows(), as_json=False)
    assert "first" in printed[0] and "second" in printed[1]


@pytest.mark.slow
def test_compare_runs_every_peer() -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed")
    rows = list(bench_compare(2000, num_rounds=1, num_updates=3, corpus=None, seconds=0))
    assert sum("ours against" in row.name for row in rows) == 4


def test_the_faster_baseline_counts() -> None:
    rates = {"mode=sync sync.backend=horovod": [10.0, 12.0, 2.0], "mode=sync sync.backend=torch": [11.0, 1.0, 13.0]}
    best, note = faster(rates)
    assert best == "mode=sync sync.backend=torch"
    assert note == "sync by horovod 10, torch 11: the faster one counts"


def test_ratios() -> None:
    rate = rate_row("copy", [8.0, 9.0, 5.0], [10.0, 10.0, 10.0], "GB/s", goal=0.9)
    assert (rate.value, rate.ratio, rate.met, rate.spread) == (8.0, 0.8, False, (5.0, 9.0))
    time = time_row("update", [0.001, 0.002], [0.004, 0.004], goal=1.0)
    assert (time.value, time.limit, time.ratio, time.met) == (1.5, 4.0, 3.0, True)
    assert Row("latency", 1.0, "us").met is None
