"""The description of a cluster: as strict as the configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcasync.config.reference import all_keys, markdown_table
from hpcasync.errors import UserError
from hpcasync.simulate.cluster import ClusterConfig, load_cluster, parse_cluster


def refusal(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_cluster(values, "test", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"worker": 4}, "unknown key worker: did you mean workers?"),
        (
            {"compute": {"secondspertoken": 1}},
            "unknown key compute.secondspertoken: did you mean compute.seconds_per_token?",
        ),
        (
            {"compute": {"stalls": {"evry_seconds": 1}}},
            "unknown key compute.stalls.evry_seconds: did you mean compute.stalls.every",
        ),
        ({"network": {"bandwith": 1}}, "unknown key network.bandwith: did you mean network.bandwidth?"),
        ({"server": {"push_second": 1}}, "unknown key server.push_second: did you mean server.push_seconds?"),
        ({"workers": 0}, "workers: input should be greater than or equal to 1"),
        ({"workers": 5000}, "workers: input should be less than or equal to 4096"),
        ({"compute": {"jitter": "normal"}}, "'none', 'lognormal' or 'pareto'"),
        ({"compute": {"jitter": "lognormal"}}, "cv goes with jitter lognormal, and must be positive then"),
        ({"compute": {"cv": 0.2}}, "cv goes with jitter lognormal"),
        ({"compute": {"tail": 1.0}}, "compute.tail: input should be greater than 1"),
        ({"compute": {"speeds": [1, 0]}}, "speeds must be greater than 0, not [1.0, 0.0]"),
        ({"compute": {"speeds": []}}, "compute.speeds"),
        ({"compute": {"seconds_per_token": 0}}, "computing would take no time"),
        (
            {"compute": {"stalls": {"every_seconds": 1, "seconds": 2}}},
            "seconds (2) must be less than every_seconds (1)",
        ),
        ({"compute": {"stalls": {"seconds": 2}}}, "seconds needs every_seconds"),
        (
            {"workers": 2, "compute": {"stalls": {"every_seconds": 9, "seconds": 1, "workers": [2]}}},
            "compute.stalls.workers names [2], but workers are 0 to 1",
        ),
        ({"network": {"bandwidth": 0}}, "network.bandwidth: input should be greater than 0"),
        ({"server": {"apply_seconds_per_element": -1}}, "apply_seconds_per_element must not be negative"),
        ({"server": {"apply_seconds_per_element": "guessed"}}, "apply_seconds_per_element"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], expected: str) -> None:
    message = refusal(values)
    assert message.startswith("test: ") and expected in message


def test_files_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("workers: 8\ncompute: {speeds: [1, 0.5]}\n")
    cluster = load_cluster(path, ("network.latency_seconds=0.001", "compute.jitter=lognormal", "compute.cv=0.2"))
    assert (cluster.workers, cluster.compute.speeds, cluster.compute.cv) == (8, (1.0, 0.5), 0.2)
    assert cluster.network.latency_seconds == 0.001
    assert load_cluster(None) == ClusterConfig()
    with pytest.raises(UserError, match="cannot read the configuration"):
        load_cluster(tmp_path / "absent.yaml")


def test_a_description_survives_being_written(tmp_path: Path) -> None:
    cluster = parse_cluster(
        {"compute": {"recorded": "runs/x"}, "server": {"apply_seconds_per_element": "measured"}}, ""
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(cluster.to_yaml())
    assert load_cluster(path) == cluster
    assert yaml.safe_load(path.read_text())["server"]["apply_seconds_per_element"] == "measured"


def test_the_documentation_lists_every_key() -> None:
    assert [key.name for key in all_keys(ClusterConfig) if not key.description] == []
    assert markdown_table(ClusterConfig) in (Path(__file__).parents[2] / "docs" / "simulate.md").read_text()


def test_a_change_is_checked() -> None:
    stalls = {"every_seconds": 9, "seconds": 1, "workers": [3]}
    cluster = parse_cluster({"workers": 4, "compute": {"stalls": stalls}}, "test")
    with pytest.raises(UserError, match="workers are 0 to 1"):
        cluster.changed(workers=2)
