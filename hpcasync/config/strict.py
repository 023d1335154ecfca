"""Reading settings strictly: every mistake in a file or an override is a UserError that names it, on one line.

A value is read by the type of its key: text stays as it is written, also where it looks like a number or a date. What
YAML 1.1 and 1.2 read differently (010, 1:40, on, 1e3) is no number or truth value by itself: the key's type decides.
"""

import contextlib
import difflib
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError

from hpcasync.errors import UserError, describe

Schema = TypeVar("Schema", bound=BaseModel)

_NULL_WORDS = ("", "~", "null", "Null", "NULL")
_MOST_SHOWN = 300  # characters of a value in a message
# Longest name of a file and of a path, in bytes, on every system that this runs on.
_NAME_BYTES, _PATH_BYTES = 255, 4095


def usable_path(path: Path) -> Path:
    """A path as a user writes it, with ~ and ~user expanded."""
    with contextlib.suppress(RuntimeError):  # there is no such user: a name that begins with ~
        path = path.expanduser()
    encoded = os.fsencode(path)
    if b"\0" in encoded or len(encoded) > _PATH_BYTES or any(len(part) > _NAME_BYTES for part in encoded.split(b"/")):
        raise ValueError("no file can have such a name: it holds a NUL, or is too long")
    return path


UserPath = Annotated[Path, AfterValidator(usable_path)]


class _StrictLoader(yaml.SafeLoader):
    """Takes for numbers and truth values only what both YAML 1.1 and 1.2 do.

    Refuses a key that is given twice, of which YAML's reader would take the last one without a word.
    """

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.check_keys(node)
        return super().construct_mapping(node, deep)

    def check_keys(self, node: yaml.MappingNode) -> None:
        """Raise an error for a key that is there twice."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} is there twice: remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]{0,99})|0x[0-9a-fA-F]{1,99}", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)\.[0-9]*)([eE][-+][0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path, what: str, schema: Any = Any) -> Any:
    """What a YAML file holds, values by the types of `schema`; `what` it is, for messages."""
    try:
        return _parse(path.read_text("utf-8-sig"), schema)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {describe(error, 'give the path of a YAML file')}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid YAML: {_problem(error)}") from error


def read_values(path: Path, schema: type[BaseModel], overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a YAML file says, with `key=value` overrides, before any key is checked.

    Raises:
        UserError: the file is missing or no YAML mapping, or an override has no such form.
    """
    values = read_yaml(path, "configuration", schema)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not {type(values).__name__}")
    apply_overrides(values, overrides, schema)
    return values


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of nested sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def apply_overrides(values: dict[str, Any], overrides: tuple[str, ...], schema: type[BaseModel]) -> None:
    """Set dotted keys, in place, to values of the types that `schema` says.

    Raises:
        UserError: an override is not of the form key=value, or its key goes through a value.
    """
    for override in overrides:
        _apply_override(values, override, schema)


def validate(
    schema: type[Schema], values: dict[str, Any], source: str, overrides: tuple[str, ...] = (), prefix: str = ""
) -> Schema:
    """A mapping as a `schema`; errors name the override that a value comes from, or else `source`.

    Users write `prefix` before the keys of overrides.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        of_source: list[str] = []
        of_overrides: list[str] = []
        for detail in error.errors():
            if override := _override_of(detail["loc"], overrides):
                of_overrides.append(f"override {_shortened(prefix + override)!r}: {_explain(detail, schema, prefix)}")
            else:
                of_source.append(_explain(detail, schema))
        in_file = [f"{source}: " + "; ".join(of_source)] if of_source else []
        raise UserError("; ".join(in_file + of_overrides)) from error


def _override_of(location: tuple[int | str, ...], overrides: tuple[str, ...]) -> str | None:
    """The override that set what is wrong; the last one wins."""
    path = [str(part) for part in location]
    for override in reversed(overrides):
        key = override.partition("=")[0].split(".")
        if path and (key == path[: len(key)] or path == key[: len(path)]):
            return override
    return None


def _apply_override(values: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(
            f"override {_shortened(override)!r} is not of the form key=value, for example optimizer.learning_rate=0.001"
        )
    *parents, last = key.split(".")
    annotation: Any = schema
    for part in (*parents, last):
        annotation = _type_below(annotation, part)
    try:
        value = _parse_override(text, annotation)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"override {_shortened(override)!r}: the value is no valid YAML") from error
    section: Any = values
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}  # missing, or a key with nothing below it
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(f"override {_shortened(override)!r}: {parent} is a value, not a section")
    section[last] = value


def _parse_override(text: str, annotation: Any) -> Any:
    """A value as a shell gives it: neither `#` nor `:` means anything in what is no list and no mapping."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return _parse(text, annotation)  # quoted for YAML
    if _is_text(annotation):
        return None if type(None) in _members(annotation) and text in _NULL_WORDS else text
    if annotation is Any or text.lstrip()[:1] in ("[", "{"):
        return _parse(text, annotation)
    loader = _StrictLoader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text.strip(), (True, False))  # type: ignore[no-untyped-call]
        return _typed(loader, yaml.ScalarNode(tag, text.strip()), annotation)
    finally:
        loader.dispose()


def _parse(text: str, annotation: Any) -> Any:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _typed(loader, node, annotation)
    finally:
        loader.dispose()


def _typed(loader: _StrictLoader, node: yaml.Node, annotation: Any, inside: frozenset[int] = frozenset()) -> Any:
    """What a node means for a key of this type; what does not fit is left to the check of the whole."""
    if id(node) in inside:
        raise yaml.MarkedYAMLError(problem="it holds itself", problem_mark=node.start_mark)
    inside |= {id(node)}
    if isinstance(node, yaml.MappingNode) and annotation is not Any:
        loader.check_keys(node)
        loader.flatten_mapping(node)
        found = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, typing.Hashable):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
            found[key] = _typed(loader, value_node, _type_below(annotation, key), inside)
        return found
    if isinstance(node, yaml.SequenceNode) and annotation is not Any:
        return [_typed(loader, item, _type_below(annotation, number), inside) for number, item in enumerate(node.value)]
    value = loader.construct_object(node, deep=True)
    if isinstance(node, yaml.ScalarNode) and value is not None:
        is_misread = isinstance(value, bool) and annotation is not Any and bool not in _members(annotation)
        if _is_text(annotation) or is_misread:
            return node.value
    return value


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union; a bare type is one of itself."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    return tuple(typing.get_args(m)[0] if typing.get_origin(m) is Annotated else m for m in members)


def _is_text(annotation: Any) -> bool:
    """Whether a key holds text, or nothing."""
    members = [member for member in _members(annotation) if member is not type(None)]
    return all(
        member in (str, Path)
        or (typing.get_origin(member) is Literal and all(isinstance(word, str) for word in typing.get_args(member)))
        for member in members
    )


def _type_below(annotation: Any, key: Any) -> Any:
    """The type of a section's key, of a mapping's values, or of the item of a list at a position."""
    for member in _members(annotation):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            fields = {field.alias or name: field.annotation for name, field in member.model_fields.items()}
            return fields.get(key, Any)
        if origin is dict:
            return arguments[1]
        if origin is tuple and isinstance(key, int) and Ellipsis not in arguments:
            return arguments[key] if key < len(arguments) else Any
        if origin in (list, tuple) and isinstance(key, int):
            return arguments[0]
    return Any


def _explain(detail: Any, schema: type[BaseModel], prefix: str = "") -> str:
    location = prefix + ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(detail["loc"][:-1], schema)
        *above, last = map(str, detail["loc"])
        near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
        # A whole path, to be pasted: also of a key that stands in another section, or below one that is misspelt.
        written = ".".join([*above, last, *detail["input"]]) if _is_one_key(detail["input"]) else ""
        meant = (
            difflib.get_close_matches(written, list(_all_paths(schema)), n=1, cutoff=0.75)
            or [".".join([*above, name]) for name in near]
            or [path for path in _all_paths(schema) if path.endswith(f".{last}")]
        )
        hint = (
            f"did you mean {' or '.join(prefix + path for path in meant)}?"
            if meant
            else f"valid keys: {', '.join(known)}"
        )
        return f"unknown key {location}: {hint}"
    if detail["type"] == "missing":
        return f"{location} is required"
    message = _shortened(detail["msg"].removeprefix("Value error, "))
    message = message[:1].lower() + message[1:]
    shown = "" if detail["type"] == "value_error" else f" (given: {_shortened(repr(detail['input']))})"
    return f"{location}: {message}{shown}" if location else message


def _is_one_key(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and all(isinstance(key, str) for key in value)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _keys_at(location: tuple[int | str, ...], schema: type[BaseModel]) -> list[str]:
    model = schema
    for part in location:
        annotation = next(f.annotation for name, f in model.model_fields.items() if (f.alias or name) == part)
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _all_paths(schema: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        path = f"{above}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_paths(field.annotation, f"{path}.")
        else:
            yield path


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or error}"
