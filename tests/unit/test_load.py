"""Loading trained models: what a path means, averaging, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import NAMES, TinyRun

from hpcasync.errors import UserError
from hpcasync.nmt.load import choose_device, load_model
from hpcasync.runs.snapshots import find_run_dir, list_snapshots


@pytest.fixture
def run_dir(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_run.run_dir, tmp_path / "run"))


def parameters_of(run_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "snapshots" / name / "parameters.safetensors")


def assert_has(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-7)


def test_a_run_directory_means_its_best_else_its_last(run_dir: Path) -> None:
    (run_dir / "best").write_text(f"snapshots/{NAMES[1]}\n")
    trained = load_model(run_dir)
    assert trained.parameter_files == (run_dir / "snapshots" / NAMES[1] / "parameters.safetensors",)
    assert_has(trained.model, parameters_of(run_dir, NAMES[1]))
    assert not trained.model.training
    (run_dir / "best").unlink()
    assert_has(load_model(run_dir).model, parameters_of(run_dir, NAMES[2]))


def test_a_snapshot_or_its_file(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = run_dir / "snapshots" / NAMES[0]
    assert_has(load_model(snapshot).model, parameters_of(run_dir, NAMES[0]))
    assert_has(load_model(snapshot / "parameters.safetensors").model, parameters_of(run_dir, NAMES[0]))
    monkeypatch.chdir(snapshot)
    assert_has(load_model(Path("parameters.safetensors")).model, parameters_of(run_dir, NAMES[0]))
    assert find_run_dir(Path()) == run_dir


def test_loading_leaves_the_random_state_alone(run_dir: Path) -> None:
    before = torch.get_rng_state()
    load_model(run_dir)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_of_snapshots(run_dir: Path) -> None:
    first, second, third = (parameters_of(run_dir, name) for name in NAMES)
    last_two = {name: (second[name] + third[name]) / 2 for name in first}
    first_two = {name: (first[name] + second[name]) / 2 for name in first}
    first_and_third = {name: (first[name] + third[name]) / 2 for name in first}
    snapshots = run_dir / "snapshots"
    assert_has(load_model(run_dir, average=2).model, last_two)
    assert_has(load_model(snapshots / NAMES[1], average=2).model, first_two)
    assert_has(load_model(snapshots / NAMES[0], average_with=[snapshots / NAMES[2]]).model, first_and_third)
    with pytest.raises(UserError, match=r"cannot average 4 snapshots: .* has 3"):
        load_model(run_dir, average=4)


def test_the_mean_is_accumulated_in_float64(run_dir: Path) -> None:
    paths = [run_dir / "snapshots" / name for name in NAMES]
    for path, value in zip(paths, (1e8, 1.0, -1e8), strict=True):
        file = path / "parameters.safetensors"
        save_file({name: torch.full_like(tensor, value) for name, tensor in load_file(file).items()}, file)
    model = load_model(run_dir, average=3).model
    assert float(next(model.parameters()).detach().flatten()[0]) == pytest.approx(1 / 3)


def test_snapshots_come_by_version(run_dir: Path) -> None:
    shutil.copytree(run_dir / "snapshots" / NAMES[0], run_dir / "snapshots" / "u00000300.partial")
    (run_dir / "snapshots" / "u00000400").mkdir()
    found = list_snapshots(run_dir)
    assert [snapshot.name for snapshot in found] == list(NAMES)
    assert [snapshot.wall_seconds for snapshot in found] == [0.5, 6.0, 25.0]


def test_missing_things(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"absent does not exist: give a run directory"):
        load_model(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"no config.yaml in .*other or above it"):
        load_model(tmp_path / "other")
    (run_dir / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"no parameters.safetensors in .*checkpoints: give a run directory or one of"):
        load_model(run_dir / "checkpoints")
    (run_dir / "source.spm").rename(run_dir / "moved.spm")
    with pytest.raises(UserError, match=r"source.spm"):
        load_model(run_dir)
    (run_dir / "moved.spm").rename(run_dir / "source.spm")
    shutil.rmtree(run_dir / "snapshots" / NAMES[2])
    with pytest.raises(UserError, match=r"best names .*u00000250, but there is no parameters.safetensors"):
        load_model(run_dir)
    (run_dir / "best").unlink()
    (run_dir / "last").unlink()
    with pytest.raises(UserError, match=r"has no snapshot yet"):
        load_model(run_dir)


def test_damaged_files(run_dir: Path) -> None:
    file = run_dir / "snapshots" / NAMES[2] / "parameters.safetensors"
    content = file.read_bytes()
    for damaged in (b"", b"no safetensors", content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"u00000250/parameters.safetensors is damaged or truncated"):
            load_model(run_dir)
    (run_dir / "snapshots" / NAMES[2] / "state.json").write_text('{"version": 3}')
    with pytest.raises(UserError, match=r"u00000250/state.json is damaged \(KeyError\('num_updates'\)\)"):
        list_snapshots(run_dir)


def test_parameters_of_another_model(run_dir: Path) -> None:
    file = run_dir / "snapshots" / NAMES[2] / "parameters.safetensors"
    tensors = load_file(file)
    name = "decoder_norm.weight"
    save_file({**tensors, name: torch.zeros(7)}, file)
    with pytest.raises(UserError, match=r"of another model .*: decoder_norm.weight has shape \[7\], not \[32\]$"):
        load_model(run_dir)
    save_file({key: tensor for key, tensor in tensors.items() if key != name} | {"more": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r": without decoder_norm.weight; unknown more$"):
        load_model(run_dir)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=rf"; {len(tensors) + 1 - 3} more$"):
        load_model(run_dir)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    else:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(UserError, match=r"device cuda: .*; use device cpu or auto"):
            choose_device("cuda")
