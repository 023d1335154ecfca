"""Experiments: axes become runs, each is looked up in its directory, and becomes a command or a task of an array."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from recorded_runs import make_run

from hpcasync.cli.experiment import experiment as experiment_command
from hpcasync.errors import UserError
from hpcasync.experiment.array import make_chains
from hpcasync.experiment.execute import Executor, choose_jobs, commands, threads_of
from hpcasync.experiment.outcome import collect, make_table
from hpcasync.experiment.plan import PlannedRun, experiment_directory, plan_runs
from hpcasync.experiment.schema import Experiment, load_experiment
from hpcasync.experiment.status import Status, status_of
from hpcasync.slurm.script import render

ROOT = Path(__file__).parents[2]
MODES = {
    "sync": {"mode": "sync"},
    "global": {"mode": "async-global", "accumulate.global": 2},
    "plain": {"mode": "async"},
}


def write(directory: Path, **values: Any) -> Path:
    """An experiment file beside its base configuration."""
    base = {
        "name": "base",
        "run_dir": str(directory / "runs"),
        "data": {"path": "data/made"},
        "stop": {"updates": 400},
    }
    (directory / "base.yaml").write_text(yaml.safe_dump(base))
    content = {"name": "trial", "base": "base.yaml", "workers": 2, **values}
    (directory / "trial.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return directory / "trial.yaml"


def plan(directory: Path, **values: Any) -> tuple[Experiment, list[PlannedRun]]:
    experiment = load_experiment(write(directory, **values))
    return experiment, plan_runs(experiment)


def test_axes_are_multiplied_out_and_named(tmp_path: Path) -> None:
    experiment, runs = plan(
        tmp_path,
        set={"optimizer.clip_norm": 1.0},
        axes={"method": MODES, "optimizer.learning_rate": [0.001, 0.002], "seed": [1, 2]},
        exclude=[{"method": ["sync", "plain"], "optimizer.learning_rate": 0.002}],
    )
    assert [run.name for run in runs] == [
        "trial-learning_rate0.001-sync-seed1",
        "trial-learning_rate0.001-sync-seed2",
        "trial-global-learning_rate0.001-async-global-seed1",
        "trial-global-learning_rate0.001-async-global-seed2",
        "trial-global-learning_rate0.002-async-global-seed1",
        "trial-global-learning_rate0.002-async-global-seed2",
        "trial-plain-learning_rate0.001-async-seed1",
        "trial-plain-learning_rate0.001-async-seed2",
    ]
    assert experiment_directory(experiment) == tmp_path / "runs" / "trial"
    assert {run.config.output_dir.parent for run in runs} == {tmp_path / "runs" / "trial"}
    assert [run.num_ranks for run in runs] == [2, 2, 3, 3, 3, 3, 3, 3]
    assert all(run.config.optimizer.clip_norm == 1.0 for run in runs)
    assert runs[4].config.optimizer.learning_rate == 0.002 and runs[4].config.accumulate.global_ == 2
    assert runs[4].coordinates == {"method": "global", "optimizer.learning_rate": "0.002", "seed": "1"}


def test_included_runs_come_beside_the_axes(tmp_path: Path) -> None:
    _, runs = plan(
        tmp_path,
        axes={"method": MODES},
        include=[{"method": "global", "accumulate.global": 4, "workers": 4, "seed": [1, 2]}],
    )
    assert [run.name for run in runs[3:]] == [
        "trial-global-global4-workers4-async-global-seed1",
        "trial-global-global4-workers4-async-global-seed2",
    ]
    assert runs[3].num_ranks == 5 and runs[3].config.accumulate.global_ == 4


def test_an_experiment_of_included_runs_alone(tmp_path: Path) -> None:
    _, runs = plan(tmp_path, include=[{"mode": "async", "optimizer.betas": [[0.9, 0.98]]}])
    assert [run.config.optimizer.betas for run in runs] == [(0.9, 0.98)]
    assert "optimizer.betas=[0.9,0.98]" in runs[0].overrides


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axis": {}}, "unknown key axis: did you mean axes"),
        ({"workers": 0}, "workers"),
        ({"axes": {"seed": []}}, "axis seed has no values"),
        ({"axes": {"seed": [1]}, "exclude": [{"mode": "sync"}]}, "exclude names axes, seed"),
        ({"axes": {"seed": [1]}, "exclude": [{"seed": 1}]}, "has no runs"),
        ({"cluster": "x.yaml"}, "cluster is for run: simulated"),
        ({"set": {"cluster.workers": 3}}, "cluster.workers is for run: simulated"),
        (
            {"axes": {"optimizer.learning_rat": [1]}},
            r"run \(optimizer.learning_rat 1\).*did you mean optimizer.learning_rate",
        ),
        ({"axes": {"mode": ["async"]}, "set": {"accumulate.global": 3}}, "run .mode async.: .*must be 1, not 3"),
        ({"axes": {"workers": [2, "many"]}}, "workers must be a whole number from 1, not 'many'"),
        ({"axes": {"m": {"a": {"mode": "sync"}}}, "include": [{"m": "b"}]}, "axis m has no 'b', but a"),
        ({"axes": {"seed": [1, 1]}}, "two runs would write"),
        ({"base": "absent.yaml"}, "cannot read the configuration .*absent.yaml"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path, **values)


def test_where_a_run_stands(tmp_path: Path) -> None:
    _, (run,) = plan(tmp_path, set={"mode": "sync"})
    directory = run.config.output_dir
    assert status_of(run) is Status.NEW
    directory.mkdir(parents=True)
    run.config.save(directory / "config.yaml")
    assert status_of(run) is Status.BROKEN_OFF
    (directory / "checkpoints" / "u00000010.partial").mkdir(parents=True)
    (directory / "checkpoints" / "u00000010.partial" / "state.json").touch()
    assert status_of(run) is Status.BROKEN_OFF
    (directory / "checkpoints" / "u00000010.partial").rename(directory / "checkpoints" / "u00000010")
    assert status_of(run) is Status.INTERRUPTED
    summary = directory / "summary.json"
    for exit_code, expected in ((0, Status.FINISHED), (86, Status.FINISHED), (85, Status.INTERRUPTED)):
        summary.write_text(json.dumps({"exit_code": exit_code}))
        assert status_of(run) is expected
    summary.write_text("{}")
    assert status_of(run, split="test") is Status.UNSCORED
    (directory / "evaluation-test.jsonl").touch()
    assert status_of(run, split="test") is Status.FINISHED
    summary.write_text("{")
    with pytest.raises(UserError, match=r"summary.json: .*remove it"):
        status_of(run)


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    _, (run,) = plan(tmp_path, set={"mode": "sync"})
    run.config.output_dir.mkdir(parents=True)
    path = run.config.output_dir / "config.yaml"
    values = run.config.to_dict()
    values["logging"]["every"] = 7
    values["roles"]["worker_threads"] = 9
    path.write_text(yaml.safe_dump(values))
    assert status_of(run) is Status.BROKEN_OFF  # what a machine may change
    values["optimizer"]["learning_rate"] = 0.5
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"optimizer.learning_rate=0.5 there, 0.0005 here"):
        status_of(run)


def test_commands(tmp_path: Path) -> None:
    experiment, (run,) = plan(tmp_path, set={"mode": "async"}, evaluate="test")
    train, evaluate = commands(experiment, run, Status.INTERRUPTED, None)
    assert train[:6] == ["launch", "-n", "3", "--", "train", str(tmp_path / "base.yaml")]
    assert train[-1] == "--resume" and {"mode=async", "roles.servers=1"} < set(train)
    assert evaluate == ["evaluate", str(run.config.output_dir), "--split", "test"]
    assert commands(experiment, run, Status.UNSCORED, 4) == [evaluate]
    assert commands(experiment, run, Status.BROKEN_OFF, 4)[0][-2:] == ["roles.worker_threads=4", "--overwrite"]
    assert commands(experiment, run, Status.NEW, None)[0][-1] == "roles.servers=1"


@pytest.mark.parametrize(("split", "number"), [("valid", 1), ("test", 2)])
def test_all_snapshots_are_scored_afterwards_where_the_run_does_not_score_them(
    tmp_path: Path, split: str, number: int
) -> None:
    experiment, (run,) = plan(tmp_path, set={"validation.score": False, "validation.beam": 2}, evaluate=split)
    every, *best = commands(experiment, run, Status.UNSCORED, None)
    assert every == ["evaluate", str(run.config.output_dir), "--split", "valid", "--all", "--beam", "2"]
    assert best == [["evaluate", str(run.config.output_dir), "--split", "test"]] * (number - 1)


def test_simulated_runs(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("compute: {jitter: lognormal, cv: 0.2}\n")
    experiment, runs = plan(
        tmp_path,
        run="simulated",
        cluster="cluster.yaml",
        axes={"cluster.compute.cv": [0.1, 0.5]},
        set={"mode": "async"},
    )
    (command,) = commands(experiment, runs[1], Status.NEW, None)
    assert command[0] == "simulate" and command[-2:] == ["--cluster", str(tmp_path / "cluster.yaml")]
    assert {"cluster.compute.cv=0.5", "cluster.workers=2"} < set(command)
    assert runs[1].name == "trial-cv0.5-async-seed1"
    with pytest.raises(UserError, match="--slurm is for real runs"):
        make_chains(experiment, [(runs[0], Status.NEW)], tmp_path)


def test_a_signal_ends_what_runs_and_starts_no_other(tmp_path: Path) -> None:
    _, runs = plan(tmp_path, axes={"seed": [1, 2]}, set={"mode": "sync"})
    # Anything that would run on: a reader of a pipe that nobody writes to.
    os.mkfifo(tmp_path / "pipe")
    waiting = ["evaluate", str(tmp_path / "pipe"), str(tmp_path / "pipe")]
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    first, second = Executor(tmp_path / "logs", 1, say).run_all([(run, [waiting]) for run in runs])
    assert first.is_failed and first.is_interrupted and first.reason == "interrupted"
    assert second.is_failed and second.reason == "not started"
    assert first.log.read_text().startswith("$ hpcasync evaluate")


def test_jobs_and_threads_share_the_cores(tmp_path: Path) -> None:
    _, runs = plan(tmp_path, axes={"workers": [2, 3]}, set={"mode": "async"})
    assert choose_jobs(3, runs, 64) == 3 and choose_jobs(0, runs, 64) == 16 and choose_jobs(0, runs, 2) == 1
    assert threads_of(runs[0], 1, 64) is None and threads_of(runs[0], 4, 64) == 8 and threads_of(runs[1], 8, 8) == 1


def arrays(directory: Path, statuses: list[Status], **values: Any) -> list[list[str]]:
    """Scripts of the first runs of an experiment, as chains."""
    experiment, runs = plan(directory, **values)
    chains = make_chains(experiment, list(zip(runs, statuses, strict=True)), Path("runs/trial"))
    return [[render(job, Path("/opt/slurm")) for job in chain] for chain in chains]


def test_arrays_hold_runs_of_one_size(tmp_path: Path) -> None:
    statuses = [Status.NEW, Status.INTERRUPTED, Status.BROKEN_OFF]
    options = {"options": ["--gpus-per-node", "2", "-t", "30", "--exclusive"]}
    (sync,), (others,) = arrays(tmp_path, statuses, axes={"method": MODES}, slurm=options)
    for line in ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "-t30", "--exclusive", "--array=1-1"):
        assert f"#SBATCH {line}\n" in sync
    assert "#SBATCH --ntasks-per-node=3\n" in others and "#SBATCH --array=1-2\n" in others
    assert "#SBATCH --output=runs/trial/logs/%x-%A_%a.out\n" in others and "#SBATCH --signal=B:USR1@120\n" in others
    first, second = (line for line in others.splitlines() if "settings=(" in line)
    assert " --resume)" in first and " --overwrite)" in second and " name=trial-global " in first


def test_what_is_trained_is_scored_task_by_task(tmp_path: Path) -> None:
    statuses = [Status.NEW, Status.UNSCORED, Status.NEW]
    (sync, score), (plain, _), (unscored,) = arrays(
        tmp_path, statuses, axes={"method": MODES}, evaluate="test", set={"validation.score": False}
    )
    assert "train_job any" in sync and "train_job any" in plain and "#SBATCH --job-name=trial-evaluate\n" in score
    scored = f"{tmp_path}/runs/trial/trial"
    for script, run in ((score, "sync-seed1"), (unscored, "global-async-global-seed1")):
        assert script.count(f"evaluate {scored}-{run} --split valid --all") == 1
        assert script.count(f"evaluate {scored}-{run} --split test") == 1


def test_a_task_of_an_array_gets_its_settings(tmp_path: Path) -> None:
    common = tmp_path / "common.sh"
    common.write_text(
        'prepare_environment() { :; }\ntrain_job() { printf "%s\\n" "$@"; }\nfail() { echo "$@"; exit 2; }\n'
    )
    settings = {"mode": "async", "data.path": "my data"}
    experiment, runs = plan(tmp_path, axes={"optimizer.betas": [[0.9, 0.98], [0.9, 0.999]]}, set=settings)
    ((array,),) = make_chains(experiment, [(run, Status.NEW) for run in runs], tmp_path)
    for index, expected in ((2, ["any", str(experiment.base), *runs[1].overrides]), (3, ["this array has no task 3"])):
        done = subprocess.run(
            ["bash"],
            input=render(array, tmp_path),
            env={"SLURM_ARRAY_TASK_ID": str(index)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines() == expected, done.stderr
    assert "data.path=my data" in runs[1].overrides and "optimizer.betas=[0.9,0.999]" in runs[1].overrides


def test_arrays_need_ranks_that_nodes_can_share(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 ranks, which 2 nodes"):
        arrays(tmp_path, [Status.NEW], set={"mode": "async"}, slurm={"nodes": 2})


def test_the_table_has_a_row_for_each_point_and_sums_up_seeds(tmp_path: Path) -> None:
    experiment, runs = plan(tmp_path, axes={"method": MODES, "seed": [1, 2]}, thresholds=[20])
    for run in runs[:-1]:  # one of plain's has not been started
        values = run.config.to_dict()
        bleu = (10.0, 20.0 + run.config.seed)
        make_run(run.config.output_dir.parent, run.config.mode, seed=run.config.seed, scores=bleu, name=run.config.name,
                 accumulate=values["accumulate"], stop=values["stop"])  # fmt: skip
    report = collect(experiment, runs)
    assert report is not None
    table = make_table(report, runs)
    assert table.titles[:4] == ("mode", "method", "seeds", "BLEU best")
    assert [row[:4] for row in table.rows] == [
        ("sync", "sync", "1, 2", "21.50 ± 0.71"),
        ("async", "plain", "1", "21.00"),
        ("async-global", "global", "1, 2", "21.50 ± 0.71"),
    ]


def test_a_dry_run_lists_and_starts_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, axes={"method": MODES})
    result = CliRunner().invoke(experiment_command, [str(file), "--dry-run"])
    assert result.exit_code == 0 and "3 runs" in result.output and "accumulate.global=2" in result.output
    assert not (tmp_path / "runs").exists()


def test_slurm_print_shows_the_scripts(tmp_path: Path) -> None:
    file = write(tmp_path, axes={"method": MODES})
    result = CliRunner().invoke(experiment_command, [str(file), "--slurm", "print"])
    assert result.exit_code == 0 and result.output.count("#SBATCH --array=1-") == 2
    assert result.output.count(f"source {ROOT}/slurm/common.sh") == 2 and "mode=async-global" in result.output


def test_nothing_to_collect(tmp_path: Path) -> None:
    result = CliRunner().invoke(experiment_command, [str(write(tmp_path)), "--collect"])
    assert result.exit_code == 0 and "no run has left any record" in result.output


def test_the_file_for_other_programs_has_axes_and_test_scores(tmp_path: Path) -> None:
    file = write(tmp_path, axes={"method": MODES}, set={"seed": 1})
    runs = plan_runs(load_experiment(file))
    for run in runs[:2]:
        make_run(run.config.output_dir.parent, run.config.mode, name=run.config.name)
    scored = {"num_updates": 400, "target_tokens": 400000, "wall_seconds": 10.0, "bleu": 33.5, "loss": 1.0}
    record = {"snapshot": "u00000400", "version": 400, **scored}
    (runs[1].config.output_dir / "evaluation-test.jsonl").write_text(json.dumps(record) + "\n")
    result = CliRunner().invoke(experiment_command, [str(file), "--collect"])
    assert result.exit_code == 0, result.exception
    with (tmp_path / "runs" / "trial" / "results.csv").open() as lines:
        rows = {row["run"]: row for row in csv.DictReader(lines)}
    assert {(row["method"], row["bleu_test"]) for row in rows.values()} == {("sync", ""), ("global", "33.5")}


def test_without_the_packages_of_a_page_the_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, set={"mode": "sync"})
    (run,) = plan_runs(load_experiment(file))
    make_run(run.config.output_dir.parent, "sync", name=run.config.name)
    monkeypatch.setitem(sys.modules, "hpcasync.report.page", None)
    result = CliRunner().invoke(experiment_command, [str(file), "--collect"])
    assert isinstance(result.exception, UserError) and "pip install 'hpcasync[report]'" in str(result.exception)
    written = {path.name for path in (tmp_path / "runs" / "trial").iterdir() if path.is_file()}
    assert written == {"results.md", "results.json", "results.csv"}
    lines = (tmp_path / "runs" / "trial" / "results.csv").read_text().splitlines()
    assert lines[0].startswith("run,mode,seed,updates") and lines[1].startswith(f"{run.name},sync,1,400,400000,240.0,")
