"""Reports: how runs are grouped, what is computed of them, and what is written."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from recorded_runs import make_run, write_timeline

from hpcasync.cli.report import report as report_command
from hpcasync.errors import UserError
from hpcasync.report.groups import differing_keys, group_runs
from hpcasync.report.page import render_page
from hpcasync.report.report import make_report
from hpcasync.report.results import Spread, default_thresholds, make_results, time_to
from hpcasync.report.run import load_run
from hpcasync.report.spans import read_timelines
from hpcasync.report.table import markdown, result_cells, time_cells
from hpcasync.report.timeline_view import pack_timeline
from hpcasync.report.wording import end_words, setting_words
from hpcasync.report.write import as_json, as_markdown, write_report


def test_a_run_is_read_with_the_last_record_of_each_update(tmp_path: Path) -> None:
    path = make_run(tmp_path, "async-global", accumulate={"global": 2}, histogram={0: 1, 1: 3})
    with (path / "metrics.jsonl").open("a") as file:  # a resumption made update 400 again
        file.write(json.dumps({"event": "update", "num_updates": 400, "target_tokens": 1, "loss": 9.0}) + "\n")
        file.write('{"event": "upd')  # being written
    run = load_run(path)
    assert [update["num_updates"] for update in run.updates] == [100, 200, 300, 400]
    assert run.updates[-1]["loss"] == 9.0
    assert [score["bleu"] for score in run.validations] == [10.0, 20.0, 26.0, 31.0]
    assert run.staleness_histogram == {0: 1, 1: 3} and run.staleness_mean == 0.75
    assert run.tokens_per_second == pytest.approx(100_000 / 60)
    assert (run.num_servers, run.num_workers) == (1, 2)


def test_a_run_that_has_not_ended_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, "sync", is_finished=False))
    assert run.summary is None and run.staleness_histogram == {} and run.num_workers is None
    assert run.tokens_per_second == pytest.approx(100_000 / 60)
    path = make_run(tmp_path, "async", is_finished=False)
    (path / "metrics.jsonl").unlink()
    assert load_run(path).tokens_per_second is None


def test_scores_made_after_the_run_count_where_it_made_none(tmp_path: Path) -> None:
    path = make_run(tmp_path, "sync", scores=())
    score = {"snapshot": "u1", "num_updates": 1, "wall_seconds": 5.0, "target_tokens": 3, "bleu": 4.0}
    (path / "evaluation-valid.jsonl").write_text(json.dumps(score) + "\n")
    (path / "evaluation-test.jsonl").write_text(json.dumps({**score, "bleu": 3.0}) + "\n")
    run = load_run(path)
    assert [s["bleu"] for s in run.validations] == [4.0] and [s["bleu"] for s in run.tests] == [3.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", "{\n{}\n", "cannot read .*metrics.jsonl"),
        ("summary.json", "{", "summary.json.*as unfinished"),
        ("config.yaml", "- a list", "holds no mapping"),
        ("config.yaml", "mode: sync", "lacks name, seed, roles"),
        ("cluster.yaml", "{", "cannot read .*cluster.yaml"),
        ("config.yaml", None, "is no run directory"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = make_run(tmp_path, "sync")
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_run(path)


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, "sync", seed=seed) for seed in (2, 1)]
    paths += [make_run(tmp_path / str(rate), "async", optimizer={"learning_rate": rate}) for rate in (0.001, 0.002)]
    groups = group_runs(load_run(path) for path in paths)
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 2], [1], [1]]
    # Sync's own rate is the default one, 0.0005.
    assert [group.label for group in groups] == [
        "sync, learning rate 0.0005",
        "async, learning rate 0.001",
        "async, learning rate 0.002",
    ]


def test_a_key_that_sync_ignores_does_not_tell_it_from_others(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", "sync", accumulate={"global": 4}, exchange={"slots": 3}),
        make_run(tmp_path / "b", "sync", seed=2),
        make_run(tmp_path / "c", "async-global", accumulate={"global": 4}),
    ]
    runs = [load_run(path) for path in paths]
    assert [len(group.runs) for group in group_runs(runs)] == [2, 1]
    assert differing_keys(runs) == ["mode"]


def test_groups_with_other_names_but_equal_settings_are_one(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", "sync", logging={"every": 7})
    second = make_run(tmp_path / "b", "sync", seed=5, roles={"worker_threads": 3})
    assert len(group_runs([load_run(first), load_run(second)])) == 1


def test_a_run_from_before_a_key_came_had_its_default(tmp_path: Path) -> None:
    old, new = (make_run(tmp_path, "async", seed=seed) for seed in (1, 2))
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["staleness"]["lookahead"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(group_runs([load_run(old), load_run(new)])) == 1
    config["optimizer"]["forgotten"] = 1
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_run(old).config["optimizer"]["forgotten"] == 1


def test_runs_on_other_clusters_are_other_groups(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / str(index), "async") for index in range(3)]
    for path, jitter in zip(paths[1:], (0.1, 0.2), strict=True):
        (path / "cluster.yaml").write_text(f"workers: 2\ncompute: {{cv: {jitter}}}\n")
    groups = group_runs([load_run(path) for path in paths])
    assert [group.label for group in groups] == [
        "async, time real",
        "async, time simulated, cv 0.1",
        "async, time simulated, cv 0.2",
    ]


def test_mean_and_spread() -> None:
    spread = Spread.of([2.0, None, 4.0])
    assert spread == Spread(3.0, math.sqrt(2), 2)
    assert spread is not None and spread.text(2) == "3.00 ± 1.41"
    assert Spread.of([5.0]) == Spread(5.0, None, 1) and Spread.of([None]) is None


def test_time_to_a_score_is_that_of_the_first_snapshot_that_reached_it() -> None:
    scores = [{"bleu": bleu, "wall_seconds": seconds} for seconds, bleu in ((1, 5.0), (2, None), (3, 9.0), (4, 8.0))]
    assert [time_to(threshold, scores) for threshold in (5, 6, 9, 10)] == [1.0, 3.0, 3.0, None]


def test_a_slow_worker_is_compared_with_sync_that_has_it_too(tmp_path: Path) -> None:
    slow = {"worker": 1, "slowdown": 2.0}
    runs = [
        make_run(tmp_path, "sync", name="even"),
        make_run(tmp_path, "async-global", name="even"),
        make_run(tmp_path, "sync", name="slow", seconds_per_snapshot=120.0, straggler=slow),
        make_run(tmp_path, "async-global", name="slow", seconds_per_snapshot=80.0, straggler=slow),
    ]
    ratios = {
        (result.group.mode, result.group.runs[0].config["straggler"]["worker"]): result.reached[20.0].ratio
        for result in make_results(group_runs(load_run(path) for path in runs), [20.0])
    }
    assert ratios == {
        ("sync", None): 1.0,
        ("async-global", None): 1.0,
        ("sync", 1): 1.0,
        ("async-global", 1): pytest.approx(1.5),
    }


def test_ratio_is_to_the_fastest_synchronous_group_and_needs_all_seeds(tmp_path: Path) -> None:
    slow, fast = {"learning_rate": 1e-4}, {"learning_rate": 1e-3}
    paths = [
        make_run(tmp_path / "a", "sync", seconds_per_snapshot=90.0, optimizer=slow),
        make_run(tmp_path / "b", "sync", seconds_per_snapshot=60.0, optimizer=fast),
        make_run(tmp_path / "c", "async-global", seed=1, seconds_per_snapshot=40.0),
        make_run(tmp_path / "c", "async-global", seed=2, seconds_per_snapshot=50.0),
        make_run(tmp_path / "d", "async", seed=1),
        make_run(tmp_path / "d", "async", seed=2, scores=(1.0, 2.0)),
    ]
    groups = group_runs(load_run(path) for path in paths)
    first, second, plain, global_ = make_results(groups, [20.0, 50.0])
    assert first.reached[20.0].ratio == pytest.approx(120 / 180) and second.reached[20.0].ratio == 1.0
    reached = global_.reached[20.0]
    assert reached.seconds is not None and reached.seconds.mean == 90.0 and reached.num_reached == 2
    assert reached.ratio == pytest.approx(120 / 90)
    assert plain.reached[20.0].num_reached == 1 and plain.reached[20.0].ratio is None
    assert global_.reached[50.0].seconds is None and global_.reached[50.0].num_reached == 0
    assert plain.best_bleu == Spread.of([31.0, 2.0])


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (36.2, (5, 10, 15, 20, 25, 30, 35)),
        (63.0, (25, 30, 35, 40, 45, 50, 55, 60)),
        (7.0, (2, 4, 6)),
        (1.7, (0.5, 1.0, 1.5)),
        (1.2, (0.5, 1.0)),
        (0.9, ()),
        (0.0, ()),
    ],
)
def test_default_thresholds(tmp_path: Path, best: float, expected: tuple[float, ...]) -> None:
    # Every score between is reached by a snapshot of its own.
    scores = [best * part / 100 for part in range(101)]
    assert default_thresholds([load_run(make_run(tmp_path, "sync", scores=scores))]) == expected


def test_thresholds_that_tell_the_same_are_told_once(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path, "sync", scores=(0.2, 41.0, 41.5)))]
    assert default_thresholds(runs) == (40,)
    runs.append(load_run(make_run(tmp_path, "async", scores=(12.0, 30.5))))
    assert default_thresholds(runs) == (10, 30, 40)


def test_the_table_tells_times_for_the_highest_score_that_all_reached(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, "sync"), make_run(tmp_path, "async-global", scores=(10.0, 22.0, 24.0, 25.5))]
    made = make_report(paths)
    assert made.threshold == 25.0
    titles, rows = result_cells(made.results, made.threshold)
    assert titles[-2:] == ["time to BLEU 25", "\N{MULTIPLICATION SIGN} sync"]
    assert [row[-2:] for row in rows] == [["3.00 min", "1.00"], ["4.00 min", "0.75"]]
    assert rows[0][2:4] == ["31.00", "31.00"] and rows[1][2:4] == ["25.50", "25.50"]
    titles, rows = time_cells(made.results)
    assert titles == ["run", *(f"BLEU {n}" for n in (10, 20, 25, 30))]
    assert rows[1][-1] == "not reached"


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path, "sync")
    with pytest.raises(UserError, match="given twice"):
        make_report([path, path / ".." / path.name])


def test_markdown_and_json(tmp_path: Path) -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    paths = [make_run(tmp_path, "sync"), make_run(tmp_path, "async", optimizer={"learning_rate": 0.1})]
    made = make_report(paths, title="Mine", thresholds=[20.0])
    text = as_markdown(made)
    assert text.startswith("# Mine\n") and "| optimizer.learning_rate | 0.0005 | 0.1 |" in text
    assert "| sync, learning rate 0.0005 | 1 | 31.00 |" in text
    content = json.loads(as_json(made))
    assert [group["mode"] for group in content["groups"]] == ["sync", "async"]
    times = content["groups"][1]["time_to_bleu"]
    assert times == [
        {
            "bleu": 20.0,
            "seconds": {"mean": 120.0, "deviation": None, "number": 1},
            "num_reached": 1,
            "ratio_to_sync": 1.0,
        }
    ]


def test_the_command_writes_what_is_asked_for(tmp_path: Path) -> None:
    path = str(make_run(tmp_path, "sync"))
    runner = CliRunner()
    shown = runner.invoke(report_command, [path, "--format", "md", "--thresholds", "20,30"])
    assert shown.exit_code == 0 and "| BLEU 20 |" in shown.output.replace("run | ", "| ")
    written = runner.invoke(report_command, [path, "-o", str(tmp_path / "deep" / "report.json")])
    assert written.exit_code == 0 and json.loads((tmp_path / "deep" / "report.json").read_text())["groups"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "report.pdf"], "cannot tell the format"),
        (["--thresholds", "twenty"], "--thresholds twenty"),
        (["--timeline-from", "5", "--timeline-to", "5"], "is not later than"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(report_command, [str(make_run(tmp_path, "sync")), *arguments])
    assert isinstance(result.exception, UserError) and message in str(result.exception)


def test_a_page_and_a_picture_of_runs_with_and_without_records(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, "sync"), make_run(tmp_path, "async-global", accumulate={"global": 2}, scores=())]
    paths.append(make_run(tmp_path, "async", is_finished=False))
    write_timeline(paths[1], 0, "worker", 0, 0.0, [["compute", 0.0, 1.0], ["push", 1.0, 0.5]])
    made = make_report(paths, title="A <b> title")
    write_report(made, tmp_path / "report.html", "html")
    write_report(made, tmp_path / "report.png", "png")
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;b&gt; title" in page and "<b> title" not in page
    assert "1 run not finished" in page and 'id="bleu-time"' in page and 'id="timeline-bars"' in page
    with Image.open(tmp_path / "report.png") as image:
        assert image.format == "PNG" and min(image.size) > 1000
    bare = make_report([make_run(tmp_path / "bare", "async", scores=())])
    write_report(bare, tmp_path / "bare.html", "html")
    write_report(bare, tmp_path / "bare.png", "png")
    page = (tmp_path / "bare.html").read_text()
    assert "No snapshot has been scored" in page and "No update has been recorded" in page


@pytest.mark.parametrize("scores", [(), (0.5,), (10.0, 20.0)])
def test_a_page_has_no_empty_boxes(tmp_path: Path, scores: tuple[float, ...]) -> None:
    made = make_report([make_run(tmp_path, "async", scores=scores, is_finished=bool(scores))])
    page = render_page(made)
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    body = page.split("<main>")[1].split("</main>")[0]
    assert set(re.findall(r'<div id="([^"]+)"></div>', body)) == figures.keys()
    assert set(re.findall(r'<a href="#([^"]+)"', page)) == set(re.findall(r'<h2 id="([^"]+)"', body))


def test_a_run_that_was_resumed_with_other_workers_says_so(tmp_path: Path) -> None:
    path, other = make_run(tmp_path, "async", workers=4), make_run(tmp_path, "async", seed=2, workers=4)
    starts = [json.dumps({"event": "start", "workers": workers}) + "\n" for workers in (2, 2, 4)]
    metrics = path / "metrics.jsonl"
    metrics.write_text("".join(starts) + metrics.read_text())
    run = load_run(path)
    assert run.worker_counts == (2, 4) and run.workers_text == "2, then 4"
    made = make_report([path, other])
    assert [group.label for group in made.groups] == ["async, workers 2, then 4", "async, 4 workers"]
    assert f"{path.name} was resumed with another number of workers: 2, then 4." in render_page(made)


def test_settings_and_ends_are_told_in_words(tmp_path: Path) -> None:
    paths = [
        make_run(
            tmp_path / str(seconds),
            "async-global",
            accumulate={"global": pushes},
            exchange={"pull": "handled"},
            stop={"seconds": seconds},
        )
        for seconds, pushes in ((150, 1), (1500, 2))
    ]
    groups = group_runs([load_run(path) for path in paths])
    assert [group.label for group in groups] == [
        "async-global, 1 push per update, 150 seconds of training",
        "async-global, 2 pushes per update, 1,500 seconds of training",
    ]
    assert setting_words("optimizer.nesterov", False) == "no nesterov"
    assert setting_words("staleness.limit", None) == "no staleness limit"
    assert setting_words("accumulate.global", "workers") == "pushes per update workers"
    assert end_words("stop.tokens=6000000 reached") == "after 6,000,000 target tokens"
    assert end_words("all workers have died") == "all workers have died"
    assert "after 400 updates" in render_page(make_report(paths))


def test_spans_beyond_what_a_page_bears_are_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run(tmp_path, "async")
    write_timeline(run_dir, 0, "worker", 0, 0.0, [["compute", float(second), 0.5] for second in range(100)])
    ranks = read_timelines(run_dir)
    whole = pack_timeline("whole", ranks, 0.0, None)
    assert whole["cut"] is None and whole["seconds"] == 99.5
    part = pack_timeline("part", ranks, 10.0, 20.0)
    assert part["cut"] == 20.0 and _starts(part) == [float(second) for second in range(10, 21)]
    monkeypatch.setattr("hpcasync.report.timeline_view.MAX_SPANS", 30)
    short = pack_timeline("short", ranks, 0.0, None)
    assert short["cut"] == 30.0 and len(_starts(short)) == 31
    # The overview and the totals are of the whole run all the same.
    assert short["overview"] == whole["overview"] and short["ranks"][0]["totals"] == whole["ranks"][0]["totals"]


def _starts(packed: dict[str, Any]) -> list[float]:
    return list(np.frombuffer(base64.b64decode(packed["ranks"][0]["start"]), "<f8"))


def test_a_trace_has_every_span_of_every_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path, "async-global")
    write_timeline(run, 0, "server", 0, 10.0, [["apply", 1.0, 0.5, {"version": 3}]])
    write_timeline(run, 1, "worker", 0, 10.5, [["compute", 0.0, 0.25], ["push", 2.0, 0.125]])
    written = CliRunner().invoke(report_command, [str(run), "--format", "trace", "-o", str(tmp_path / "trace.json")])
    assert written.exit_code == 0, written.output
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names[0].startswith("server 0") and names[1].startswith("worker 0")
    spans = [(e["tid"], e["name"], e["ts"], e["dur"], e.get("args")) for e in events if e["ph"] == "X"]
    assert spans == [
        (0, "apply", 0.5e6, 0.5e6, {"version": 3}),
        (1, "compute", 0.0, 0.25e6, None),
        (1, "push", 2e6, 0.125e6, None),
    ]
    late = CliRunner().invoke(
        report_command, [str(run), "--format", "trace", "-o", str(tmp_path / "late.json"), "--timeline-from", "1.5"]
    )
    assert late.exit_code == 0
    events = json.loads((tmp_path / "late.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["push"]


def test_a_trace_of_runs_without_timelines_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sync")
    with pytest.raises(UserError, match=r"no timeline to make a trace of; train with logging\.timeline=true"):
        write_report(make_report([run]), tmp_path / "trace.json", "trace")
