"""What the classes of a configuration hold: the keys, their types, their defaults.

Reads pydantic models only, so loading, `--help` and error messages share one view of them.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Key(NamedTuple):
    """One documented key: a value, or a section's heading when `is_section`."""

    dotted: str
    annotation: Any
    is_required: bool
    default: Any
    description: str
    is_section: bool


def keys_of(cls: type[BaseModel], default: BaseModel | None = None, prefix: str = "") -> Iterator[Key]:
    """Every key of `cls`, single values before nested sections; NAME stands for a mapping's own keys, N for the
    number of an entry of a list."""
    nested: list[tuple[type[BaseModel], BaseModel | None, str, str]] = []
    for name, field in cls.model_fields.items():
        value = getattr(default, name) if default is not None else default_of(field)
        about = field.description or ""
        inner = sections_of(field.annotation)
        is_section = len(list(members(field.annotation))) == len(inner) == 1
        if not is_section:
            is_required = default is None and field.is_required()
            yield Key(prefix + name, field.annotation, is_required, value, about, False)
        for section in inner:
            heading = about if is_section else summary(section)
            nested.append((section, value if isinstance(value, section) else None, prefix + name, heading))
        for section in sections_of(element_of(field.annotation)):
            entry = "NAME" if any(get_origin(m) is dict for m in members(field.annotation)) else "N"
            nested.append((section, None, f"{prefix}{name}.{entry}", summary(section)))
    for section, value, dotted, heading in nested:
        yield Key(dotted, section, False, value, heading, True)
        yield from keys_of(section, value, f"{dotted}.")


def members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union (None among them), without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The section classes among the alternatives of `annotation`."""
    return [m for m in members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]


def element_of(annotation: Any) -> Any:
    """What the values of a mapping, or the items of a list, are; None where there are none."""
    for member in members(annotation):
        if get_origin(member) in (dict, list, tuple):
            return [a for a in get_args(member) if a is not ...][-1]
    return None


def default_of(field: FieldInfo) -> Any:
    """The default of a field, None when it is required."""
    return None if field.is_required() else field.get_default(call_default_factory=True)  # type: ignore[call-arg]


def section_for(annotation: Any, given: Any, default: Any) -> type[BaseModel] | None:
    """The section class that `given` is for.

    The only one; else the one whose `Literal` keys (`kind: vllm`) agree with those given; else,
    when none is given, the default's.
    """
    sections = sections_of(annotation)
    if len(sections) == 1:
        return sections[0]
    given = given if isinstance(given, dict) else {}
    shared = [name for name in given if all(name in section.model_fields for section in sections)]
    is_tagged = False
    for section in sections:
        kinds = {name: section.model_fields[name].annotation for name in shared}
        tags = {name: get_args(kind) for name, kind in kinds.items() if get_origin(kind) is Literal}
        is_tagged |= bool(tags)
        if tags and all(given[name] in allowed for name, allowed in tags.items()):
            return section
    return type(default) if type(default) in sections and not is_tagged else None


def merges_itself(section: type[BaseModel]) -> bool:
    """Whether a validator of its own completes what was given: then only it knows the rest."""
    validators = section.__pydantic_decorators__.model_validators
    return any(v.info.mode == "before" and name != "keep_parents_defaults" for name, v in validators.items())


def step(annotation: Any, given: Any, key: str, default: Any) -> tuple[Any, Any]:
    """The annotation and the default of `key` in a value of type `annotation`, given so far as `given`."""
    section = section_for(annotation, given, default)
    if section is None:
        return element_of(annotation), default.get(key) if isinstance(default, dict) else None
    field = section.model_fields.get(key)
    if field is None:
        return None, None
    if merges_itself(section):
        return field.annotation, None
    return field.annotation, getattr(default, key) if isinstance(default, section) else default_of(field)


def summary(section: type[BaseModel]) -> str:
    """The first paragraph of the class's docstring."""
    return " ".join((section.__doc__ or "").strip().split("\n\n")[0].split())
