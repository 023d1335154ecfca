"""The keys of the configuration as a table, made from the schema itself."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hpcasync.config.schema import Config


@dataclass(frozen=True)
class Key:
    """A dotted key, its default and what it means."""

    name: str
    default: str
    description: str


def all_keys(schema: type[BaseModel] = Config) -> list[Key]:
    """Every key, in the order of the schema."""
    return list(_keys(schema, ""))


def markdown_table(schema: type[BaseModel] = Config) -> str:
    """The keys as a Markdown table."""
    rows = [f"| `{key.name}` | {key.default} | {key.description} |" for key in all_keys(schema)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for field_name, field in model.model_fields.items():
        name = prefix + (field.alias or field_name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, name + ".")
            continue
        description = field.description or ""
        if typing.get_origin(annotation) is Literal:
            choices = ", ".join(map(str, typing.get_args(annotation)))
            description = f"{choices}: {description}" if description else choices
        yield Key(name, _show(field.default), description)


def _show(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple):
        return str(list(default))
    return "none" if default is None else str(default)
