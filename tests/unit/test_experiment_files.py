"""Every file in configs/ is valid: configurations and clusters as they are, experiments with each of their runs."""

from pathlib import Path

import pytest
import yaml

from hpcasync.config.schema import load_config
from hpcasync.experiment.plan import PlannedRun, plan_runs
from hpcasync.experiment.schema import load_experiment
from hpcasync.simulate.cluster import load_cluster

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
CLUSTERS = sorted((ROOT / "configs" / "clusters").glob("*.yaml"))
EXPERIMENTS = [path for path in FILES if "base" in yaml.safe_load(path.read_text())]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


@pytest.mark.parametrize("path", [path for path in FILES if path not in [*EXPERIMENTS, *CLUSTERS]], ids=name_of)
def test_training_configurations(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_clusters(path: Path) -> None:
    assert load_cluster(path).network.bandwidth > 0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments(path: Path) -> None:
    experiment = load_experiment(path)
    runs = plan_runs(experiment)
    assert len({run.name for run in runs}) == len(runs) > 1
    assert all((run.cluster is None) == (experiment.run == "real") for run in runs)


def effective_pushes(run: PlannedRun) -> int:
    """Gradients in an update."""
    return run.config.accumulate.local * run.config.pushes_per_update(run.num_workers)


@pytest.mark.parametrize("name", ["modes-transformer", "modes-rnn"])
def test_the_modes_of_the_paper_sum_four_gradients_but_for_plain_async(name: str) -> None:
    runs = plan_runs(load_experiment(ROOT / "configs" / "paper" / f"{name}.yaml"))
    assert {run.config.mode: effective_pushes(run) for run in runs} == {
        "sync": 4,
        "async": 1,
        "async-local": 4,
        "async-global": 4,
        "async-combined": 4,
    }
    for run in runs:  # validations at the same points of the corpus
        assert effective_pushes(run) * run.config.validation.every == 20_000


def test_the_modes_of_multi30k_are_validated_at_the_same_points_of_the_corpus() -> None:
    runs = plan_runs(load_experiment(ROOT / "configs" / "multi30k" / "modes-transformer.yaml"))
    assert {effective_pushes(run) * run.config.validation.every for run in runs} == {1000}
