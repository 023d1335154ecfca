"""Values are read by the type of their key, in files and in overrides; ~ is the home directory in every path."""

import shutil
from pathlib import Path

import pytest
import yaml
from bad_input import PATIENCE_SECONDS
from forked_commands import ForkedCommands
from tiny_run import TinyRun

from hpcasync.config.schema import Config, load_config
from hpcasync.config.strict import read_yaml
from hpcasync.errors import UserError

FILE = "data: {path: corpus}\nstop: {updates: 5}\n"


def read(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "q.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def value_of(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=008", 8),
        ("seed=010", 10),
        ("seed=0x10", 16),
        ("seed='7'", 7),
        ("stop.updates= 5 ", 5),
        ("stop.updates=1_000", 1000),
        ("data.path=corpus #2", Path("corpus #2")),
        ("data.path=12", Path("12")),
        ("data.path=a: b", Path("a: b")),
        ("name=1e3", "1e3"),
        ("name=2024-01-01", "2024-01-01"),
        ("name=on", "on"),
        ("name=12", "12"),
        ("name=null", "null"),
        ("name='ab'", "ab"),
        ("optimizer.learning_rate=1e-3", 0.001),
        ("optimizer.betas=[.8, 9e-1]", (0.8, 0.9)),
        ("logging.tensorboard=off", False),
        ("logging.tensorboard=Yes", True),
        ("roles.worker_threads=null", None),
        ("roles.worker_threads=~", None),
    ],
)
def test_an_override_is_read_by_the_type_of_its_key(tmp_path: Path, override: str, value: object) -> None:
    found = value_of(read(tmp_path, FILE, override), override.partition("=")[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "override",
    [
        "stop.updates=1:40",
        "stop.updates=1 #2",
        "seed=true",
        "seed=yes",
        "seed=²",
        "optimizer.learning_rate=true",
        "optimizer.learning_rate=1e999",
        f"seed={'9' * 5000}",
        "data.path=" + "a" * 300,
    ],
)
def test_what_does_not_fit_the_type_is_refused(tmp_path: Path, override: str) -> None:
    key, _, text = override.partition("=")
    with pytest.raises(UserError) as caught:
        read(tmp_path, FILE, override)
    message = str(caught.value)
    assert key in message and ("too long" in message or f"given: '{text[:50]}" in message)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("seed: 008", "seed", 8),
        ("seed: 010", "seed", 10),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("name: 12", "name", "12"),
        ("name: off", "name", "off"),
        ("logging: {tensorboard: no}", "logging.tensorboard", False),
        ("optimizer: {eps: 1e-8}", "optimizer.eps", 1e-8),
        ("model: &m {dropout: 0.2}", "model.dropout", 0.2),
        ("<<: {seed: 3}", "seed", 3),
    ],
)
def test_a_file_is_read_by_the_types_of_its_keys(tmp_path: Path, line: str, key: str, value: object) -> None:
    assert value_of(read(tmp_path, f"{FILE}{line}\n"), key) == value


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stop: {updates: 1:40}", "stop.updates: input should be a valid integer"),
        ("seed: true", "seed: input should be a valid integer"),
        ("model: &m {dim: *m}", "it holds itself"),
        ("? [a]\n: 1", "a key must be text"),
        ('data: {path: "a\\0b"}', "it holds a NUL"),
        ("name: " + "[" * 2000, "maximum recursion depth"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(UserError, match=r"q\.yaml") as caught:
        read(tmp_path, f"data: {{path: c}}\n{line}\n" if "stop" in line else f"stop: {{updates: 1}}\n{line}\n")
    assert says in str(caught.value)


def test_a_saved_configuration_keeps_every_text(tmp_path: Path) -> None:
    for text in ("1e3", "010", "on", "2024-01-01", "1:40", "0o17", "1_0", "12", "null"):
        config = read(tmp_path, FILE, f"name=x{text.replace(':', '')}", f"data.path={text}")
        config.save(tmp_path / "saved.yaml")
        again = load_config(tmp_path / "saved.yaml")
        assert again == config and again.digest == config.digest


def test_what_has_no_type_yet_keeps_its_spelling(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("seed: [008, 010, 3]\nname: [1e3, on]\n")
    assert read_yaml(path, "sweep") == {"seed": ["008", "010", 3], "name": ["1e3", "on"]}


def test_seeds_with_zeros_before_them_are_runs_of_their_own(
    tmp_path: Path, tiny_run: TinyRun, commands: ForkedCommands
) -> None:
    sizes = {"dim": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    values = {"mode": "sync", "model": sizes, "stop": {"updates": 1}, "validation": {"score": False}}
    (tmp_path / "q.yaml").write_text(yaml.safe_dump({**values, "data": {"path": "none", "batch_tokens": 200}}))
    shutil.copytree(tiny_run.corpus, tmp_path / "corpus #2")
    for seed in ("008", "010"):
        overrides = (f"seed={seed}", "name=2024-01-01", "data.path=~/corpus #2", "run_dir=~/runs")
        done = commands(
            "train", "q.yaml", *overrides, cwd=tmp_path, environment={"HOME": str(tmp_path)}, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "2024-01-01-sync-seed10",
        "2024-01-01-sync-seed8",
    ]
