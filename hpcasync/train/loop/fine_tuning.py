"""Training that begins with another run's parameters, some of which stay as they are."""

import difflib
import fnmatch
import hashlib

from torch import nn

from hpcasync.config.model import ModelConfig
from hpcasync.data.digests import file_digest
from hpcasync.errors import UserError
from hpcasync.nmt.load import load_parameters_, resolve_parameters
from hpcasync.runs.identity import check_parameters, identity_of_run
from hpcasync.runs.snapshots import find_run_dir

_NUM_DIGITS = 16


def start_from_(model: nn.Module, config: ModelConfig, identity: dict[str, str]) -> str:
    """Give a new model the parameters of `model.start_from`, if it names any.

    Returns:
        Which parameters these are, by digest; empty: those that were drawn.
    """
    path = config.start_from
    if path is None:
        return ""
    run_dir = find_run_dir(path)
    file = resolve_parameters(path)
    for what, value in identity_of_run(run_dir).items():
        if identity[what] != value:
            cure = (
                f"prepare the corpus with --source-model {run_dir}/source.spm --target-model {run_dir}/target.spm"
                if "vocabulary" in what
                else "set the keys of model as in its config.yaml"
            )
            raise UserError(f"model.start_from={path} has another {what} ({value}, here {identity[what]}): {cure}")
    check_parameters(file, run_dir, {}, run_dir)
    load_parameters_(model, [file])
    return file_digest(file)[:_NUM_DIGITS]


def freeze_(model: nn.Module, patterns: tuple[str, ...]) -> str:
    """Take parameters out of training.

    Args:
        patterns: of their names, as those of files in a shell.

    Returns:
        What they hold, by digest; empty: none are frozen.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        chosen = fnmatch.filter(parameters, pattern)
        if not chosen:
            near = difflib.get_close_matches(pattern, parameters, 1, 0.0)[0]
            raise UserError(f"model.frozen: no parameter is called {pattern}; one is called {near}")
        for name in chosen:
            parameters[name].requires_grad_(False)
    frozen = {name: parameter for name, parameter in parameters.items() if not parameter.requires_grad}
    if len(frozen) == len(parameters):
        raise UserError(f"model.frozen={list(patterns)} leaves nothing to train: name fewer parameters")
    digest = hashlib.sha256()
    for name, parameter in frozen.items():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:_NUM_DIGITS] if frozen else ""
