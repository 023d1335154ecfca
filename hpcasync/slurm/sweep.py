"""A sweep: the settings of each task of an array, from a YAML file."""

from itertools import product
from pathlib import Path
from typing import Any

import yaml

from hpcasync.config.strict import read_yaml
from hpcasync.errors import UserError

_EXAMPLE = "for example `optimizer.learning_rate: [0.001, 0.003]`"


def read_sweep(path: Path) -> tuple[tuple[str, ...], ...]:
    """The `key=value` settings of each task.

    A mapping of keys to lists stands for all combinations, the last key changing fastest; a list of mappings for one
    task each.

    Raises:
        UserError: the file is missing, no YAML, or neither of these.
    """
    content = read_yaml(path, "sweep")
    if isinstance(content, dict) and content:
        return _grid(path, content)
    if isinstance(content, list) and content:
        return tuple(_task(path, number, task) for number, task in enumerate(content, start=1))
    raise UserError(f"{path} must hold a mapping of keys to lists of values, or a list of mappings, {_EXAMPLE}")


def _grid(path: Path, content: dict[Any, Any]) -> tuple[tuple[str, ...], ...]:
    for key, values in content.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: {key} needs a list of values to try, {_EXAMPLE}; it has {values!r}")
    return tuple(
        tuple(_setting(key, value) for key, value in zip(content, values, strict=True))
        for values in product(*content.values())
    )


def _task(path: Path, number: int, task: Any) -> tuple[str, ...]:
    if not isinstance(task, dict) or not task:
        raise UserError(f"{path}: task {number} must be a mapping of keys to values, not {task!r}")
    return tuple(_setting(key, value) for key, value in task.items())


def _setting(key: Any, value: Any) -> str:
    # One line of YAML; a plain value ends with the mark of a document's end.
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()
    return f"{key}={text}"
