"""No option of any command and no key takes a number that is not finite, or that the libraries below cannot hold."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from bad_input import PATIENCE_SECONDS
from forked_commands import ForkedCommands
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TinyRun

from hpcasync.cli.main import cli
from hpcasync.cli.parameters import MOST, Count, FilePath, Number
from hpcasync.config.reference import all_keys
from hpcasync.config.schema import Config, load_config
from hpcasync.config.strict import read_values
from hpcasync.errors import UserError
from hpcasync.experiment.schema import load_experiment
from hpcasync.simulate.cluster import ClusterConfig, load_cluster

NOT_NUMBERS = (
    "inf",
    "-inf",
    "nan",
    "NaN",
    "Infinity",
    ".inf",
    ".nan",
    "1e400",
    "²",
    "٣½",
    "",
    " ",
    "9" * 5000,
    "-1e30",
)


def parameters_of(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Parameter]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from parameters_of(command, f"{path}{name} ")
        else:
            yield from ((f"{path}{name} {parameter.name}", parameter) for parameter in command.params)


PARAMETERS = dict(parameters_of(cli))
NUMBERS = {name: p for name, p in PARAMETERS.items() if isinstance(p.type, Count | Number)}
PATHS = {name: p for name, p in PARAMETERS.items() if isinstance(p.type, click.Path)}


def convert(parameter: click.Parameter, text: str) -> Any:
    """The value, or None where it is refused."""
    try:
        return parameter.type.convert(text, parameter, click.Context(click.Command("x")))
    except click.UsageError as error:
        assert len(error.format_message()) < 500
        return None


def test_every_option_with_a_number_is_of_a_type_that_is_checked() -> None:
    unchecked = (click.IntRange, click.FloatRange, click.types.IntParamType, click.types.FloatParamType)
    assert [n for n, p in PARAMETERS.items() if isinstance(p.type, unchecked) and n not in NUMBERS] == []
    assert len(NUMBERS) > 50
    assert all(isinstance(parameter.type, FilePath) for parameter in PATHS.values()) and len(PATHS) > 20


@pytest.mark.parametrize("name", NUMBERS)
def test_options_refuse_what_is_no_number(name: str) -> None:
    parameter = NUMBERS[name]
    for text in NOT_NUMBERS:
        value = convert(parameter, text)
        unlimited = isinstance(parameter.type, Number) and parameter.type.can_be_unlimited and value == math.inf
        assert value is None or unlimited, (text, value)
    assert isinstance(parameter.type, Number) or convert(parameter, str(10**30)) is None


@settings(max_examples=300)
@given(st.sampled_from(sorted(NUMBERS)), st.floats() | st.integers(), st.sampled_from(["{}", " {}", "+{}"]))
def test_options_take_finite_numbers_alone(name: str, number: float, form: str) -> None:
    value = convert(NUMBERS[name], form.format(number))
    if isinstance(NUMBERS[name].type, Count):
        assert value is None or 0 <= value <= MOST
    elif value is not None and not NUMBERS[name].type.can_be_unlimited:  # type: ignore[attr-defined]
        assert math.isfinite(value)


@pytest.mark.parametrize("name", PATHS)
def test_paths_begin_at_home(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    assert str(convert(PATHS[name], "~/x")) == str(tmp_path / "x")
    assert convert(PATHS[name], "a" * 300) is None and convert(PATHS[name], "a\0b") is None
    assert PATHS[name].type.exists or str(convert(PATHS[name], "-")) == "-"  # type: ignore[attr-defined]


def numeric_keys(schema: type[Config] | type[ClusterConfig], probe: Any) -> list[str]:
    """Keys that take some number: those for which 1, 0.5, or their default is no wrong type."""
    return [key.name for key in all_keys(schema) if "number" in probe(key.name) or "integer" in probe(key.name)]


def refusal(load: Any, override: str) -> str:
    try:
        load((override,))
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "q.yaml"
    path.write_text(yaml.safe_dump({"data": {"path": "corpus"}, "stop": {"updates": 1}}))
    return path


@pytest.mark.parametrize("schema", [Config, ClusterConfig], ids=["training", "cluster"])
def test_keys_take_finite_numbers_alone(schema: type[Config] | type[ClusterConfig], base: Path) -> None:
    def load(overrides: tuple[str, ...]) -> object:
        return load_config(base, overrides) if schema is Config else load_cluster(None, overrides)

    keys = numeric_keys(schema, lambda key: refusal(load, f"{key}=nonsense"))
    assert len(keys) > (40 if schema is Config else 15)
    for key in keys:
        more = [str(10**30)] if "integer" in refusal(load, f"{key}=nonsense") else []
        for text in (*NOT_NUMBERS[:10], "9" * 5000, f"-{10**30}", "1e300", "1e-300", "true", *more):
            message = refusal(load, f"{key}={text}")
            assert key.rpartition(".")[2] in message, (key, text, message)
            assert len(message) < 1_500


def test_experiments_take_finite_numbers_alone(tmp_path: Path, base: Path) -> None:
    for line in ("thresholds: [.inf]", "thresholds: [nan]", f"workers: {10**30}", "workers: .inf"):
        path = tmp_path / "e.yaml"
        path.write_text(f"name: e\nbase: {base}\n{'' if 'workers' in line else 'workers: 1'}\n{line}\n")
        with pytest.raises(UserError, match=line.partition(":")[0]):
            load_experiment(path)


def test_whatever_a_value_is_it_is_taken_or_refused(base: Path) -> None:
    names = [key.name for key in all_keys()]

    @settings(max_examples=400)
    @given(st.sampled_from(names), st.text(max_size=12) | st.floats().map(repr) | st.integers().map(str))
    def check(key: str, text: str) -> None:
        message = refusal(lambda overrides: load_config(base, overrides), f"{key}={text}")
        assert not message or key.partition(".")[0] in message

    check()
    assert read_values(base, Config)["stop"] == {"updates": 1}


def test_infinity_is_no_limit(tmp_path: Path, tiny_run: TinyRun, commands: ForkedCommands) -> None:
    text = tiny_run.corpus.parent
    models = ("--source-model", tiny_run.corpus / "source.spm", "--target-model", tiny_run.corpus / "target.spm")
    sides = (text / "train.en", text / "train.de")
    prepared = commands(
        "data", "prepare", *sides, "--out", "new", "--max-ratio", "inf", *models, cwd=tmp_path, timeout=PATIENCE_SECONDS
    )
    assert prepared.returncode == 0 and "dropped: ratio over no limit" in prepared.stdout, prepared.stderr
    checked = commands("data", "check", "new", cwd=tmp_path, timeout=PATIENCE_SECONDS)
    assert checked.returncode == 0, checked.stderr
    translated = commands(
        *("translate", tiny_run.run_dir, "--max-length-factor", "inf", "--threads", "1"),
        cwd=tmp_path,
        stdin=b"the old dog sees the cat\n",
        timeout=PATIENCE_SECONDS,
    )
    assert translated.stdout == "der alte Hund sieht der Kater\n", translated.stderr
