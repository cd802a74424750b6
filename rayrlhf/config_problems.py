"""Pydantic's validation errors in the user's words: one line a problem, with the whole dotted key."""

from __future__ import annotations

import difflib
import re
import types
from typing import Any

from pydantic import BaseModel, ValidationError

from rayrlhf.config_keys import keys_of, members, section_for, step

_EXPECTED = {  # pydantic's error types that need no more words than the type's name
    "int_type": "int",
    "int_parsing": "int",
    "int_from_float": "int",
    "float_type": "float",
    "float_parsing": "float",
    "bool_type": "bool (true or false)",
    "bool_parsing": "bool (true or false)",
    "string_type": "str",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}


def describe(cls: type[BaseModel], tree: dict[str, Any], error: ValidationError) -> list[str]:
    """The problems of `tree` as a `cls`."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        keys = _keys(cls, tree, item["loc"])
        found.setdefault(".".join(keys), []).append(_words(cls, tree, keys, item))
    lines = []
    for dotted, words in found.items():
        has_deeper = any(other.startswith(f"{dotted}.") for other in found)
        if has_deeper and all(w.startswith("expected ") for w in words):
            continue  # another member of a union fits better: its own problems are listed
        lines += [f"{dotted}: {w}" if dotted else w for w in _joined(words)]
    return lines


def _joined(words: list[str]) -> list[str]:
    """`expected int, got 'x'` and `expected float, got 'x'`, of a union, as one."""
    expected = [w.removeprefix("expected ").partition(", got ") for w in words if w.startswith("expected ")]
    if len(expected) < 2:
        return words
    wanted = dict.fromkeys(one[0] for one in expected)
    return [f"expected {' or '.join(wanted)}, got {expected[0][2]}"]


def _keys(cls: type[BaseModel], tree: dict[str, Any], loc: tuple[int | str, ...]) -> list[str]:
    """`loc` without the names of union members, which pydantic puts between the keys."""
    keys: list[str] = []
    node: Any = tree
    annotation, default = cls, None  # type: Any, Any
    for part in loc:
        is_item = isinstance(node, list) and isinstance(part, int) and part < len(node)
        is_here = part in node if isinstance(node, dict) else is_item
        alternatives = [m for m in members(annotation) if m is not types.NoneType]
        if not is_here and len(alternatives) > 1 and part not in _fields(annotation, node, default):
            continue
        annotation, default = step(annotation, node, str(part), default)
        node = node[part] if is_here else None  # type: ignore[index]
        keys.append(str(part))
    return keys


def _fields(annotation: Any, node: Any, default: Any) -> list[str]:
    section = section_for(annotation, node, default)
    return list(section.model_fields) if section else []


def _words(cls: type[BaseModel], tree: dict[str, Any], keys: list[str], item: Any) -> str:
    kind, value = item["type"], item.get("input")
    if kind == "missing":
        return f"required, but not set{_about(cls, tree, keys)}"
    if kind == "extra_forbidden":
        return _unknown(cls, tree, keys)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {value!r}{_remedy(kind, value)}"
    if kind in ("value_error", "assertion_error"):
        return str(item["msg"]).partition(", ")[2]
    if kind == "union_tag_not_found":
        return f"set its key {item['ctx']['discriminator']}, which says what kind of section this is"
    if kind == "union_tag_invalid":
        context = item["ctx"]
        allowed = context["expected_tags"]
        return f"its key {context['discriminator']} is {context['tag']!r}, but must be one of {allowed}"
    said = re.sub("^Input should be (?=greater|less)", "expected a value ", str(item["msg"]))
    return f"{said.replace('Input should be', 'expected')}, got {value!r}"


def _about(cls: type[BaseModel], tree: dict[str, Any], keys: list[str]) -> str:
    """What a missing key is, in the words of its documentation."""
    annotation, default, node = cls, None, tree  # type: Any, Any, Any
    for key in keys[:-1]:
        annotation, default = step(annotation, node, key, default)
        node = _inside(node, key)
    section = section_for(annotation, node, default)
    field = section.model_fields.get(keys[-1]) if section is not None else None
    return f": {field.description}" if field is not None and field.description else ""


def _inside(node: Any, key: str) -> Any:
    if isinstance(node, list):
        return node[int(key)] if key.isdecimal() and int(key) < len(node) else None
    return node.get(key) if isinstance(node, dict) else None


def _remedy(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return f": write it in quotes, '{value}'"
    if kind in ("list_type", "tuple_type") and isinstance(value, str):
        return f": write [{value}]"
    return ""


def _unknown(cls: type[BaseModel], tree: dict[str, Any], keys: list[str]) -> str:
    """`unknown key`, with the nearest known one: beside it, else anywhere by its last or its whole name."""
    annotation, default, node = cls, None, tree  # type: Any, Any, Any
    for key in keys[:-1]:
        annotation, default = step(annotation, node, key, default)
        node = _inside(node, key)
    beside = _fields(annotation, node, default)
    last = keys[-1]
    for near in difflib.get_close_matches(last, beside, n=1):
        return f"unknown key; did you mean {'.'.join([*keys[:-1], near])}?"
    known = list(dict.fromkeys(key.dotted for key in keys_of(cls)))
    near_anywhere = [dotted for dotted in known if dotted.rpartition(".")[2] == last][:3]
    near_anywhere = near_anywhere or difflib.get_close_matches(".".join(keys), known, n=1, cutoff=0.75)
    if near_anywhere:
        return f"unknown key; did you mean {' or '.join(near_anywhere)}?"
    return f"unknown key; keys here: {', '.join(beside)}"
