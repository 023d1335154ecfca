"""Reading settings strictly: every mistake in a file or an override is a UserError that names it, on one line."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hpcasync.errors import UserError

Schema = TypeVar("Schema", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's reader would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} is there twice: remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds; `what` it is, for messages.

    Raises:
        UserError: the file cannot be read, or is no valid YAML.
    """
    try:
        return yaml.load(path.read_text(), _StrictLoader)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {_problem(error)}") from error


def read_values(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a YAML file says, with `key=value` overrides, before any key is checked.

    Raises:
        UserError: the file is missing or no YAML mapping, or an override has no such form.
    """
    values = read_yaml(path, "configuration")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not {type(values).__name__}")
    apply_overrides(values, overrides)
    return values


def apply_overrides(values: dict[str, Any], overrides: tuple[str, ...]) -> None:
    """Set dotted keys, in place, to YAML values.

    Raises:
        UserError: an override is not of the form key=value, or its key goes through a value.
    """
    for override in overrides:
        _apply_override(values, override)


def validate(schema: type[Schema], values: dict[str, Any], source: str) -> Schema:
    """A mapping as a `schema`; `source` is named in errors.

    Raises:
        UserError: naming the key, its value and, for an unknown key, the nearest valid one.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail, schema) for detail in error.errors()]
        raise UserError(f"{source}: " + "; ".join(lines)) from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(
            f"override {override!r} is not of the form key=value, for example optimizer.learning_rate=0.001"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is no valid YAML") from error
    section: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}  # missing, or a key with nothing below it
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(f"override {override!r}: {parent} is a value, not a section")
    section[last] = value


def _explain(detail: Any, schema: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(detail["loc"][:-1], schema)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(known)}"
        return f"unknown key {location}: {hint}"
    if detail["type"] == "missing":
        return f"{location} is required"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = "" if detail["type"] == "value_error" else f" (given: {detail['input']!r})"
    return f"{location}: {message}{shown}" if location else message


def _keys_at(location: tuple[int | str, ...], schema: type[BaseModel]) -> list[str]:
    model = schema
    for part in location:
        annotation = next(f.annotation for name, f in model.model_fields.items() if (f.alias or name) == part)
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or error}"
