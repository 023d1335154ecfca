"""The configuration: strict keys, clear refusals, overrides, presets, and a digest that is the same everywhere."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcasync.config.model import MODEL_PRESETS
from hpcasync.config.schema import Config, load_config, parse_config
from hpcasync.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def values(**more: Any) -> dict[str, Any]:
    return {"data": {"path": "corpus"}, "stop": {"updates": 10}, **more}


def parse(**more: Any) -> Config:
    return parse_config(values(**more), source="test")


def refusal(**more: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(**more)
    return str(caught.value)


def write(path: Path, **more: Any) -> Path:
    path.write_text(yaml.safe_dump(values(**more)))
    return path


def test_what_is_required() -> None:
    with pytest.raises(UserError, match=r"run.yaml: stop is required; data is required"):
        parse_config({}, source="run.yaml")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"moed": "sync"}, "unknown key moed: did you mean mode?"),
        (
            {"optimizer": {"learningrate": 1}},
            "unknown key optimizer.learningrate: did you mean optimizer.learning_rate?",
        ),
        ({"accumulate": {"global_": 2}}, "unknown key accumulate.global_: did you mean accumulate.global?"),
        ({"roles": {"xyz": 1}}, "unknown key roles.xyz: valid keys: servers, server_threads, server_device"),
        ({"exchange": {"push": 1}}, "unknown key exchange.push: did you mean exchange.pull?"),
        ({"data": {"path": "c", "batchtokens": 1}}, "unknown key data.batchtokens: did you mean data.batch_tokens?"),
        ({"model": {"heds": 1}}, "unknown key model.heds: did you mean model.heads?"),
        ({"schedule": {"warm_up": 1}}, "unknown key schedule.warm_up: did you mean schedule.warmup?"),
        ({"stop": {"update": 1}}, "unknown key stop.update: did you mean stop.updates?"),
        ({"validation": {"evry": 1}}, "unknown key validation.evry: did you mean validation.every?"),
        ({"checkpoint": {"keeps": 1}}, "unknown key checkpoint.keeps: did you mean checkpoint.keep?"),
        ({"logging": {"tensor_board": True}}, "unknown key logging.tensor_board: did you mean logging.tensorboard?"),
    ],
)
def test_unknown_keys_of_every_section(more: dict[str, Any], expected: str) -> None:
    assert expected in refusal(**more)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"mode": "asink"}, ("mode", "'async-global'", "given: 'asink'")),
        ({"seed": "one"}, ("seed", "integer", "given: 'one'")),
        ({"seed": -1}, ("seed", "greater than or equal to 0", "given: -1")),
        ({"roles": {"servers": 0}}, ("roles.servers", "must be a positive number or per-device, not 0")),
        (
            {"roles": {"servers": "per-device", "placement": "first"}},
            ("roles.servers=per-device puts servers beside workers", "roles.placement must be spread"),
        ),
        ({"accumulate": {"global": 0}}, ("accumulate.global", "positive number, workers, or a multiple", "not 0")),
        ({"exchange": {"slots": 1.5}}, ("exchange.slots", "integer", "given: 1.5")),
        ({"exchange": {"host_sums": True, "gradients": "topk"}}, ("topk", "exchange.host_sums must be false")),
        (
            {"exchange": {"host_sums": True}, "staleness": {"limit": 2, "compensation": 0.1, "lookahead": 0}},
            ("staleness.compensation", "exchange.host_sums", "leave one of them out"),
        ),
        ({"data": {"path": "c", "batch_tokens": []}}, ("data.batch_tokens", "integer", "given: []")),
        ({"data": None}, ("data", "given: None")),
        ({"data": "corpus"}, ("data", "given: 'corpus'")),
        ({"model": {"dropout": 1.0}}, ("model.dropout", "less than 1", "given: 1.0")),
        ({"model": {"preset": "huge"}}, ("model.preset", "'small', 'base' or 'big'", "given: 'huge'")),
        ({"model": {"preset": ["small"]}}, ("model.preset",)),
        ({"model": 3}, ("model", "given: 3")),
        ({"model": None}, ("model", "given: None")),
        ({"model": {"dim": 100, "heads": 8}}, ("model", "dim 100 is not a multiple of heads 8")),
        ({"optimizer": {"learning_rate": float("nan")}}, ("optimizer.learning_rate", "given: nan")),
        ({"optimizer": {"betas": [0.9, 1.0]}}, ("optimizer", "betas must lie in [0, 1), not [0.9, 1.0]")),
        ({"optimizer": {"betas": [0.9]}}, ("optimizer.betas.1 is required",)),
        ({"optimizer": {"name": "muon"}, "model": {"architecture": "rnn"}}, ("muon", "model.architecture=rnn")),
        ({"schedule": {"name": "cosine", "warmup": 9, "total": 9}}, ("schedule", "greater than warmup (9), not 9")),
        ({"stop": {}}, ("stop", "training would never end", "patience")),
        ({"stop": {"patience": 3}, "validation": {"every": 0}}, ("stop.patience", "validation.every")),
        ({"stop": {"patience": 3}, "validation": {"every": 5, "score": False}}, ("stop.patience", "validation.score")),
        ({"name": "a/b"}, ("name", "given: 'a/b'")),
        ({"mode": "async", "accumulate": {"global": 2}}, ("mode async", "accumulate.global must be 1, not 2")),
        ({"mode": "async-global", "accumulate": {"local": 2}}, ("mode async-global", "local must be 1, not 2")),
        ({"mode": "async-local", "accumulate": {"global": 2}}, ("mode async-local", "global must be 1, not 2")),
    ],
)
def test_values_that_do_not_fit(more: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = refusal(**more)
    assert message.startswith("test: ") and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("optimizer", "architecture", "expected"),
    [
        ({}, "transformer", "muon"),
        ({"name": "auto"}, "rnn", "adam"),
        ({"weight_decay": 0.1}, "rnn", "adam"),
        ({"name": "adamw"}, "transformer", "adamw"),
        ({"name": "adam"}, "transformer", "adam"),
    ],
)
def test_the_optimizer_is_chosen_once(
    tmp_path: Path, optimizer: dict[str, Any], architecture: str, expected: str
) -> None:
    """Whoever reads the configuration, or what is saved of it, or counts its digest, finds no `auto`."""
    config = parse(optimizer=optimizer, model={"architecture": architecture})
    assert config.optimizer.name == expected == config.with_servers(2).optimizer.name
    assert config.staleness.fresh_start == (0.5 if expected == "muon" else 2.0)
    assert parse(optimizer=optimizer, staleness={"fresh_start": 0}).staleness.fresh_start == 0
    config.save(tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optimizer"]["name"] == expected
    said = parse(optimizer={**optimizer, "name": expected}, model={"architecture": architecture})
    assert config == said and config.digest == said.digest == load_config(tmp_path / "config.yaml").digest


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "added"),
        ({"mode": "async-combined", "accumulate": {"local": 2}}, "added"),
        ({"optimizer": {"name": "adam"}}, "handled"),
        ({"mode": "async"}, "handled"),
        ({"accumulate": {"global": 1}}, "handled"),
        ({"staleness": {"limit": 2}}, "handled"),
        ({"exchange": {"overlap": "full"}}, "handled"),
        ({"exchange": {"pull": "latest"}}, "latest"),
    ],
)
def test_what_workers_wait_for_by_default(more: dict[str, Any], expected: str) -> None:
    assert parse(**more).pull == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("{unit: updates, warmup: 100}", 150),
        ("{unit: batches, warmup: 1200}", 300),
        ("{unit: tokens, warmup: 80000}", 200),
        ("{unit: tokens, warmup: 0}", 0),
        ("{unit: epochs, warmup: 2}", 30),
    ],
)
def test_the_fresh_start_follows_the_warm_up(schedule: str, expected: int) -> None:
    assert fresh_updates({"seconds": 60}, schedule) == expected


@pytest.mark.parametrize(
    ("stop", "schedule", "expected"),
    [
        ({"updates": 1000}, "{warmup: 4000}", 250),
        ({"updates": 1000, "tokens": 300_000}, "{warmup: 4000}", 125),
        ({"tokens": 300_000, "seconds": 60}, "{warmup: 4000}", 125),
        ({"epochs": 2}, "{name: cosine, unit: epochs, warmup: 1}", 5),
        ({"epochs": 20}, "{name: cosine, unit: epochs, warmup: 1}", 15),
        ({"updates": 1000}, "{name: cosine, unit: batches, warmup: 600, total: 2400}", 100),
        ({"updates": 1000}, "{name: constant, unit: batches, warmup: 600, total: 2400}", 150),
        ({"patience": 2}, "{warmup: 4000}", 6000),
    ],
)
def test_the_fresh_start_is_at_most_a_quarter_of_the_run(stop: dict[str, int], schedule: str, expected: int) -> None:
    assert fresh_updates(stop, schedule) == expected


@pytest.mark.parametrize(
    ("more", "num_workers", "expected"),
    [
        ({"mode": "sync"}, 3, True),
        ({"exchange": {"pull": "applied"}}, 3, True),
        ({"mode": "async"}, 3, True),
        ({"mode": "async", "exchange": {"pull": "latest"}}, 3, False),
        ({"exchange": {"pull": "handled"}}, 1, True),
        ({"exchange": {"pull": "handled"}}, 3, False),
        ({}, 1, False),
    ],
)
def test_a_fresh_start_is_of_use_where_a_worker_may_go_on_without_its_update(
    more: dict[str, Any], num_workers: int, expected: bool
) -> None:
    assert parse(**more).is_always_fresh(num_workers) == expected


def fresh_updates(stop: dict[str, int], schedule: str) -> int:
    """An update has six batches of 100 target tokens, an epoch ten updates."""
    config = parse_config(
        {
            **values(mode="async-combined", accumulate={"local": 2}, staleness={"fresh_start": 1.5}),
            "schedule": yaml.safe_load(schedule),
            "stop": stop,
            "validation": {"every": 100},
        },
        "test",
    )
    return config.fresh_updates(3, 100.0, 60)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 3),
        (("mode=sync",), 3),
        (("mode=async",), 1),
        (("mode=async-local", "accumulate.local=2"), 1),
        (("mode=async-combined", "accumulate.local=2"), 3),
        (("accumulate.global=5",), 5),
        (("accumulate.global=2*workers",), 6),
    ],
)
def test_an_update_takes_a_push_of_each_worker_unless_told_otherwise(
    overrides: tuple[str, ...], expected: int, tmp_path: Path
) -> None:
    assert load_config(write(tmp_path / "run.yaml"), overrides).pushes_per_update(3) == expected


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal(seed="x", optimizer={"eps": 0}, modle=1)
    assert all(part in message for part in ("seed", "optimizer.eps", "unknown key modle: did you mean mode?"))


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", optimizer={"clip_norm": 1.0, "eps": 1e-8})
    config = load_config(
        path,
        (
            "optimizer.learning_rate=0.25",
            "optimizer.clip_norm=0",
            "accumulate.global=4",
            "mode=async-global",
            "roles.worker_threads=null",
            "optimizer.betas=[0.8, 0.9]",
            "logging.tensorboard=false",
            "name=ab",
        ),
    )
    assert config.optimizer.learning_rate == 0.25 and config.optimizer.clip_norm == 0
    assert config.optimizer.eps == 1e-8, "other keys of the section stay"
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.accumulate.global_ == 4 and config.roles.worker_threads is None
    assert not config.logging.tensorboard and config.name == "ab"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mode", "override 'mode' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("seed.deep=3", "override 'seed.deep=3': seed is a value, not a section"),
        ("seed=[1", "override 'seed=[1': the value is no valid YAML"),
        ("optimizer.lr=1", "override 'optimizer.lr=1': unknown key optimizer.lr"),
        ("stop.updats=3", "override 'stop.updats=3': unknown key stop.updats: did you mean stop.updates?"),
        ("learning_rate=1", "unknown key learning_rate: did you mean optimizer.learning_rate?"),
        ("seed=-1", "override 'seed=-1': seed: "),
        ("stop=", "stop"),
    ],
)
def test_overrides_that_do_not_fit(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "run.yaml", seed=3), (override,))
    assert expected in str(caught.value)


def test_an_empty_section_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: corpus}\nstop:\n")
    assert load_config(path, ("stop.updates=3",)).stop.updates == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the configuration .*absent.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot read the configuration"):
        load_config(tmp_path)
    for content, expected in (
        ("a: [", "is no valid YAML"),
        ("[1]", "must hold a mapping"),
        ("", "must hold a mapping"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(UserError, match=f"bad.yaml {expected}"):
            load_config(tmp_path / "bad.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match=r"binary.yaml is no valid YAML"):
        load_config(tmp_path / "binary.yaml")


def test_presets_give_the_sizes_that_are_not_set() -> None:
    small = parse(model={"preset": "small"}).model
    assert {key: getattr(small, key) for key in MODEL_PRESETS["small"]} == MODEL_PRESETS["small"]
    base = parse().model
    # Vaswani et al. 2017, table 3.
    assert (base.dim, base.ffn_dim, base.heads, base.encoder_layers, base.decoder_layers) == (512, 2048, 8, 6, 6)
    mixed = parse(model={"preset": "big", "dim": 64}).model
    assert (mixed.dim, mixed.ffn_dim, mixed.heads) == (64, 4096, 16)


def test_a_saved_configuration_is_the_same_configuration(tmp_path: Path) -> None:
    config = parse(model={"preset": "small"}, accumulate={"global": 3}, optimizer={"betas": [0.5, 0.6]})
    config.save(tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert again == config and again.digest == config.digest
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["accumulate"] == {"local": 1, "global": 3}


def test_digest_tells_configurations_apart(tmp_path: Path) -> None:
    config = parse()
    assert config.digest == parse(seed=1, mode="async-global").digest, "a default that is written out changes nothing"
    others = [
        parse(seed=2),
        parse(optimizer={"learning_rate": 0.0005000001}),
        parse(validation={"beam": 4}),
        parse(model={"tie": "none"}),
    ]
    assert len({config.digest, *(other.digest for other in others)}) == 5
    assert len(config.digest) == 16 and int(config.digest, 16) >= 0


def test_servers_and_output_directory() -> None:
    assert parse(mode="sync", roles={"servers": 3}).num_servers == 0
    assert parse(mode="async", roles={"servers": 3}).num_servers == 3
    beside = {"servers": "per-device"}
    assert parse(mode="sync", roles=beside).num_servers == 0
    assert parse(mode="async", roles=beside).with_servers(2).num_servers == 2
    with pytest.raises(UserError, match="give a number here"):
        _ = parse(mode="async", roles=beside).num_servers
    config = parse(name="x", run_dir="there", mode="async", seed=7)
    assert config.output_dir == Path("there/x-async-seed7")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "overrides",
    [
        ("mode=sync",),
        ("mode=async", "accumulate.global=1"),
        ("mode=async-local", "accumulate.local=2", "accumulate.global=1"),
        ("mode=async-global", "accumulate.global=2"),
        ("mode=async-combined", "accumulate.local=2", "accumulate.global=2"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_configurations_that_come_with_the_project(path: Path, overrides: tuple[str, ...]) -> None:
    assert load_config(path, overrides).mode in overrides[0]


def test_configurations_come_with_the_project() -> None:
    assert CONFIGS


def test_a_schedule_in_epochs_is_as_long_as_the_run() -> None:
    cosine = {"name": "cosine", "unit": "epochs", "warmup": 1}
    assert parse(schedule=cosine, stop={"epochs": 2}).schedule.total == 0
    message = refusal(schedule=cosine, stop={"epochs": 1})
    assert "stop.epochs must be greater than schedule.warmup (1), not 1" in message
    assert "not 0" in refusal(schedule=cosine, stop={"updates": 5})
    assert "cosine needs total greater than warmup" in refusal(schedule={**cosine, "unit": "tokens"})
