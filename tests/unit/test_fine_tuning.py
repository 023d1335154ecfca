"""Starting from another run's parameters, freezing some of them, and going on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from simulator import Simulator
from tiny_run import TinyRun

from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError
from hpcasync.nmt.load import load_model
from hpcasync.train.loop.task import make_task


def config_of(run: TinyRun, *overrides: str) -> Config:
    return load_config(run.run_dir / "config.yaml", (f"data.path={run.corpus}", *overrides))


def test_a_run_starts_with_the_parameters_of_another(tiny_run: TinyRun) -> None:
    config = config_of(tiny_run, f"model.start_from={tiny_run.run_dir}", "seed=7")
    task = make_task(config, torch.device("cpu"))
    expected = dict(load_model(tiny_run.run_dir).model.named_parameters())
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)
    assert task.start_digest and "frozen parts" not in task.layout


def test_another_model_or_vocabulary_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = config_of(tiny_run, f"model.start_from={tiny_run.run_dir}", "model.norm=post")
    with pytest.raises(UserError, match=r"another architecture \(.*norm pre, here .*norm post\)"):
        make_task(config, torch.device("cpu"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.yaml", "source.spm"):
        (other / name).write_bytes((tiny_run.run_dir / name).read_bytes())
    (other / "target.spm").write_bytes((tiny_run.run_dir / "target.spm").read_bytes() + b"\n")
    (other / "parameters.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"another target vocabulary.*--source-model .*other/source\.spm"):
        make_task(config_of(tiny_run, f"model.start_from={other / 'parameters.safetensors'}"), torch.device("cpu"))


def test_frozen_parts_stay_and_are_in_snapshots(tiny_run: TinyRun, simulate: Simulator) -> None:
    start, frozen = f"model.start_from={tiny_run.run_dir}", "model.frozen=[encoder.*, output_weight]"
    model = {"start_from": str(tiny_run.run_dir), "frozen": ["encoder.*", "output_weight"]}
    before = load_file(load_model(tiny_run.run_dir).parameter_files[0])
    values = load_config(tiny_run.run_dir / "config.yaml").to_dict()["model"]
    run_dir = simulate(model={**values, **model}, stop={"updates": 3}).output_dir
    (directory,) = (run_dir / "snapshots").iterdir()
    after = load_file(directory / "parameters.safetensors")
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        name for name in before if name.startswith(("decoder.", "memory_", "encoder_norm", "decoder_norm"))
    }
    layout = json.loads((directory / "state.json").read_text())["layout"]
    assert layout["frozen parts"] == make_task(config_of(tiny_run, start, frozen), torch.device("cpu")).frozen_digest
    assert load_model(run_dir).config.model.frozen == ("encoder.*", "output_weight")


def test_patterns_that_fit_nothing_or_all_are_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(UserError, match=r"no parameter is called enc0der\.\*; one is called encoder"):
        make_task(config_of(tiny_run, "model.frozen=[enc0der.*]"), torch.device("cpu"))
    with pytest.raises(UserError, match="leaves nothing to train"):
        make_task(config_of(tiny_run, "model.frozen=['*']"), torch.device("cpu"))
