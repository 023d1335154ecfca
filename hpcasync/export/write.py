"""One function for all formats."""

import shutil
from pathlib import Path

from hpcasync.complete_files import partial_of, publish
from hpcasync.errors import UserError, describe
from hpcasync.export.parts import ExportedModel, Format
from hpcasync.nmt.load import TrainedModel


def export_model(trained: TrainedModel, form: Format, directory: Path) -> None:
    """Write a model in another program's format; the directory appears complete or not at all.

    Args:
        trained: a model on the CPU.
        form: of which program.
        directory: to make; it may be there if it is empty.

    Raises:
        UserError: the format cannot express the model, or the directory is there or cannot be written.
        ImportError: the program's package is missing.
    """
    exported = ExportedModel.of(trained)
    if form == "ctranslate2":
        from hpcasync.export.to_ctranslate2 import write
    elif form == "marian":
        from hpcasync.export.to_marian import write
    else:
        from hpcasync.export.to_huggingface import write
    partial = partial_of(directory)
    try:
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise UserError(f"--out {directory} is there already: name another, or remove it")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(exported, partial)
        publish(directory)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or partial}: {describe(error, 'name another --out')}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
