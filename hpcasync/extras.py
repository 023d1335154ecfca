"""Packages that only some commands need: the extras of setup.py, and what to tell who lacks one."""

from hpcasync.command_line import pip_install
from hpcasync.errors import UserError

# Name of the module: the extra that brings it.
_EXTRAS = {
    "babel": "corpora",
    "num2words": "corpora",
    "requests": "corpora",
    "mtdata": "wmt",
    "simpy": "simulate",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "jinja2": "report",
    "matplotlib": "report",
    "plotly": "report",
    "ctranslate2": "export",
    "transformers": "export",
}


def lack_of(error: ImportError) -> UserError | None:
    """What to tell the user of an import that failed; None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    cure = pip_install(f"hpcasync[{_EXTRAS[module]}]")
    return UserError(f"this needs the package {module}, which is not installed: {cure}")
