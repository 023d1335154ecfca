"""What must be the same wherever parameters are used: how the model computes, and its vocabularies, by digest."""

from pathlib import Path

from hpcasync.complete_files import STATE_FILE
from hpcasync.config.model import ModelConfig
from hpcasync.config.schema import load_config
from hpcasync.data.digests import file_digest
from hpcasync.data.manifest import SIDES, vocabulary_file
from hpcasync.errors import UserError, describe
from hpcasync.runs.files import FILES_KEY, read_state

LAYOUT_KEY = "layout"
_NUM_DIGITS = 16


def identity(config: ModelConfig, vocabularies: dict[str, str]) -> dict[str, str]:
    """What shapes of parameters do not tell.

    Args:
        vocabularies: side -> SHA-256 of its SentencePiece model, which holds the normalisation of text, too.
    """
    is_transformer = config.architecture == "transformer"
    details = f", {config.heads} heads, norm {config.norm}" if is_transformer else ""
    if is_transformer and config.decoder_start != "embedding":  # snapshots of earlier releases do not tell
        details += f", decoder starts with {config.decoder_start}"
    digests = {f"{side} vocabulary": vocabularies[side][:_NUM_DIGITS] for side in SIDES}
    return {"architecture": config.architecture + details, **digests}


def identity_of_run(run_dir: Path) -> dict[str, str]:
    """By the configuration and the vocabularies in a run directory."""
    config = load_config(run_dir / "config.yaml")
    try:
        digests = {side: file_digest(run_dir / vocabulary_file(side)) for side in SIDES}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {describe(error, 'restore it')}") from error
    return identity(config.model, digests)


def check_parameters(path: Path, run_dir: Path, expected: dict[str, str], user_dir: Path) -> None:
    """Refuse parameters that are not what their snapshot was written with, or do not belong to a model.

    Args:
        run_dir: of the run that they lie in, which tells what they are where their snapshot is too old to.
        expected: identity of the model.
        user_dir: of the run that the model is of, for messages.
    """
    state = read_state(path.parent) if (path.parent / STATE_FILE).is_file() else {}
    recorded = state.get(FILES_KEY, {}).get(path.name, {}).get("sha256")
    if recorded is not None and file_digest(path) != recorded:
        raise UserError(f"{path} is not what was written with its snapshot: restore it, or use another snapshot")
    found = state.get(LAYOUT_KEY) or ({} if run_dir == user_dir else identity_of_run(run_dir))
    for what, value in expected.items():
        if found.get(what, value) != value:
            raise UserError(
                f"{path} was trained with another {what} than {user_dir} has now ({found[what]}, there {value}): "
                "use snapshots with the configuration and the vocabularies of their own run"
            )
