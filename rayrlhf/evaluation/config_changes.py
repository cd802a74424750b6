"""A stage's resolved configuration against its defaults, and one run's against another's, key by key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from rayrlhf.config import Section
from rayrlhf.config_keys import default_of, members, sections_of
from rayrlhf.redaction import redacted

Leaves = dict[str, Any]
_NOTHING = object()


@dataclass(frozen=True)
class Key:
    """One value of a configuration.  `default` is None where the key has none; `is_changed` is None where this
    version does not know."""

    name: str
    value: str
    default: str | None
    is_changed: bool | None


def keys(config: dict[str, Any], cls: type[Section] | None) -> list[Key]:
    """Every key of a recorded `config`, those that differ from the defaults of `cls` first.

    No key is marked where there is no `cls`, or where this version's does not take the configuration.
    """
    given = flat(redacted(config))
    if cls is None or not is_known(config, cls):
        return [Key(name, text(value), None, None) for name, value in given.items()]
    found, known = [], flat(redacted(defaults(cls)))
    for name, value in given.items():
        default = _default(known, name)
        shown = None if default is _NOTHING else text(default)
        found.append(Key(name, text(value), shown, shown is None or value != default))
    return sorted(found, key=lambda key: not key.is_changed)  # stable: the order of the configuration stays


def is_known(config: dict[str, Any], cls: type[Section]) -> bool:
    """Whether this version takes a recorded configuration."""
    try:
        cls.model_validate(config)
    except ValidationError:
        return False
    return True


def completed(config: dict[str, Any], cls: type[Section] | None) -> dict[str, Any]:
    """`config` with the keys that have come since at their defaults; as it is where this version does not take it."""
    try:
        return config if cls is None else cls.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def defaults(cls: type[BaseModel]) -> dict[str, Any]:
    """The defaults of `cls` as JSON, without keys that have to be given."""
    found = {}
    for name, field in cls.model_fields.items():
        sections = sections_of(field.annotation)
        if not field.is_required():
            found[name] = to_jsonable_python(default_of(field))
        elif len(sections) == 1 == len(list(members(field.annotation))):
            found[name] = defaults(sections[0])
    return found


def flat(tree: dict[str, Any], prefix: str = "") -> Leaves:
    """A configuration by dotted keys.  Lists are values."""
    leaves: Leaves = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def text(value: Any) -> str:
    """A value in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _default(known: Leaves, name: str) -> Any:
    """The default of a key; of one in a section that is absent by default, that; _NOTHING where there is none."""
    if name in known:
        return known[name]
    inner = {key.removeprefix(f"{name}."): value for key, value in known.items() if key.startswith(f"{name}.")}
    if inner:  # a section by default, and null or empty here
        return inner
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        above = ".".join(parts[:end])
        if above in known:
            return known[above]
    return _NOTHING
