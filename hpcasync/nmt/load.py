"""Rebuilding a trained model from its run directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hpcasync.config.schema import Config, load_config
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError, describe
from hpcasync.nmt.build import build_model
from hpcasync.nmt.model import TranslationModel
from hpcasync.runs.files import PARAMETERS_FILE
from hpcasync.runs.identity import check_parameters, identity_of_run
from hpcasync.runs.snapshots import CONFIG_FILE, chosen_directory, find_run_dir, list_snapshots

_NUM_SHOWN = 3  # names of parameters in a message


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode on a device, with what it was built from."""

    model: TranslationModel
    config: Config
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    run_dir: Path
    parameter_files: tuple[Path, ...]


def load_model(
    path: Path, *, device: torch.device | str = "cpu", average: int = 1, average_with: Sequence[Path] = ()
) -> TrainedModel:
    """Load a model.

    Args:
        path: a run directory (its `best` snapshot, else `last`), a snapshot in one, or a parameters.safetensors file in
            one.
        device: where the model goes.
        average: take the mean of the parameters of so many snapshots: the last ones of the run, or if `path` names a
            snapshot, it and those before it.
        average_with: more paths like `path`, of the same model, whose parameters enter the mean.

    Raises:
        UserError: a file is missing, damaged, or of another model; fewer snapshots than `average`.
    """
    run_dir = find_run_dir(path)
    files = parameter_files(path, run_dir, average) + [resolve_parameters(other) for other in average_with]
    trained = build_untrained(run_dir, device)
    expected = identity_of_run(run_dir)
    for file in files:
        check_parameters(file, find_run_dir(file), expected, run_dir)
    load_parameters_(trained.model, files)
    return TrainedModel(
        trained.model,
        trained.config,
        trained.source_vocabulary,
        trained.target_vocabulary,
        run_dir,
        tuple(files),
    )


def build_untrained(run_dir: Path, device: torch.device | str) -> TrainedModel:
    """The model of a run with arbitrary parameters, which `load_parameters_` is to replace.

    Raises:
        UserError: the configuration or a vocabulary is missing or damaged.
    """
    config = load_config(run_dir / CONFIG_FILE)
    source, target = (Vocabulary.load(run_dir / name) for name in ("source.spm", "target.spm"))
    with torch.random.fork_rng(devices=()):
        model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
    return TrainedModel(model.to(device).eval(), config, source, target, run_dir, ())


def parameter_files(path: Path, run_dir: Path, average: int) -> list[Path]:
    """The files to average; see `load_model`."""
    if average < 1:
        raise UserError(f"the number of snapshots to average must be at least 1, not {average}")
    if average == 1:
        return [resolve_parameters(path)]
    snapshots = list_snapshots(run_dir)
    if path.absolute() != run_dir.absolute():
        directory = resolve_parameters(path).parent.absolute()
        positions = [i for i, snapshot in enumerate(snapshots) if snapshot.path.absolute() == directory]
        if not positions:
            raise UserError(f"{path} is no snapshot of {run_dir}: to average it with others, name them one by one")
        snapshots = snapshots[: positions[0] + 1]
    if len(snapshots) < average:
        raise UserError(f"cannot average {average} snapshots: {path} has {len(snapshots)}")
    return [snapshot.path / PARAMETERS_FILE for snapshot in snapshots[-average:]]


def resolve_parameters(path: Path) -> Path:
    """The parameters file that a path means; see `load_model`.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if (path / CONFIG_FILE).is_file():
        return chosen_directory(path) / PARAMETERS_FILE
    if not (path / PARAMETERS_FILE).is_file():
        raise UserError(
            f"there is no {PARAMETERS_FILE} in {path}: give a run directory or one of RUN_DIR/snapshots "
            "(a checkpoint holds what training resumes from, cut into shards)"
        )
    return path / PARAMETERS_FILE


def load_parameters_(model: nn.Module, files: Sequence[Path]) -> None:
    """Set the model's parameters to the mean over files (accumulated in float64).

    Raises:
        UserError: a file is missing or damaged, or has other parameters than the model.
    """
    assert files
    parameters = dict(model.named_parameters())
    if len(files) == 1:
        mean = read_parameters(files[0], parameters)
    else:
        sums = {name: torch.zeros(parameter.shape, dtype=torch.float64) for name, parameter in parameters.items()}
        for file in files:
            for name, tensor in read_parameters(file, parameters).items():
                sums[name] += tensor
        mean = {name: total / len(files) for name, total in sums.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(mean[name])


def read_parameters(path: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Read a parameters file and compare names and shapes with those of a model.

    Raises:
        UserError: see `load_parameters_`.
    """
    try:
        path.open("rb").close()  # of a file that may not be read safetensors says that there is none
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {describe(error, 'use another snapshot')}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated ({error}); use another snapshot") from error
    differences = [f"without {name}" for name in sorted(parameters.keys() - tensors.keys())]
    differences += [f"unknown {name}" for name in sorted(tensors.keys() - parameters.keys())]
    differences += [
        f"{name} has shape {list(tensors[name].shape)}, not {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if differences:
        more = f"; {len(differences) - _NUM_SHOWN} more" if len(differences) > _NUM_SHOWN else ""
        raise UserError(
            f"{path} holds the parameters of another model than its {CONFIG_FILE} and vocabularies describe: "
            + "; ".join(differences[:_NUM_SHOWN])
            + more
        )
    return tensors


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        UserError: "cuda" where torch finds none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise UserError(f"device cuda: {reason}; use device cpu or auto")
    return torch.device(name)
