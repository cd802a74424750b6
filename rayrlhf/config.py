"""Configuration: typed sections, loaded from YAML and `key=value` overrides, with errors that help.

A job's configuration is one `Section` of `Section`s.  A YAML file gives some keys, the command
line overrides single ones (`ppo.kl.beta=0.1`), the rest keep their defaults: a section given in
part keeps the other values that its *parent* gave it.  All problems are reported at once, each
with its whole dotted key.
"""

from __future__ import annotations

import copy
import os
import types
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rayrlhf import config_yaml
from rayrlhf.config_keys import default_of, members, merges_itself, section_for, step
from rayrlhf.config_problems import describe
from rayrlhf.errors import ConfigError


class Section(BaseModel):
    """Base of every configuration model: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def keep_parents_defaults(cls, given: Any) -> Any:
        """Pydantic takes the class's defaults for the rest of a section given in part, and so forgets
        `critic: Optimizer = Optimizer(lr=1e-4)` as soon as `critic.warmup` is set; here the rest stays.
        """
        if not isinstance(given, dict):
            return given
        fields = ((name, cls.model_fields[name]) for name in given if name in cls.model_fields)
        return {**given, **{n: _fill_value(f.annotation, given[n], default_of(f)) for n, f in fields}}


S = TypeVar("S", bound=Section)
Tree = dict[str, Any]


def load(cls: type[S], path: str | None, overrides: list[str]) -> S:
    """`cls` from the YAML file at `path` (or from nothing) with `key=value` overrides on top.

    A mapping of names (`dict[str, Section]`) in the file replaces the default one; an override
    changes single entries of it.  Of two overrides of one key the later one counts.

    Raises `ConfigError` naming every unknown key (with the nearest known one), every value of the
    wrong type and every missing key, by their dotted names.
    """
    given = _read(path) if path is not None else {}
    for override in overrides:
        _override(cls, given, override)
    return from_tree(cls, given, f" of {path}" if path else "")


def from_tree(cls: type[S], given: Tree, source: str = "") -> S:
    """`cls` from keys that something else has read, such as Ray Serve's configuration; ConfigError as `load`'s."""
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        problems = describe(cls, given, error)
    if len(problems) == 1:
        raise ConfigError(f"configuration{source}: {problems[0]}")
    raise ConfigError(f"{len(problems)} problems with the configuration{source}:\n  " + "\n  ".join(problems))


def to_yaml(config: Section) -> str:
    """`config` as YAML with every key; `load` reads the same configuration back."""
    return config_yaml.dump(config.model_dump(mode="json"))


def _read(path: str) -> Tree:
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise ConfigError(
            f"configuration file {path} {what}; give the path of a YAML file, or none (settings are written key=value)"
        )
    tree = config_yaml.read(path)
    if tree is None:  # nothing but comments
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {_kind(tree)}, not keys; write lines such as run: {{name: demo}}")
    return tree


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the value {value!r}"


def _override(cls: type[Section], tree: Tree, override: str) -> None:
    """Set `a.b=value` in `tree`; sections on the way that are absent or null are made."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"cannot read {override!r} as an override; write key=value, such as run.seed=1")
    node = tree
    annotation, default = cls, None  # type: Any, Any
    for depth, key in enumerate(keys[:-1], start=1):
        annotation, default = step(annotation, node, key, default)
        child = node.get(key)
        if child is None:  # of a default mapping (name -> section) the other entries stay
            entries = default.items() if isinstance(default, dict) else ()
            child = node[key] = {name: _plain(value) for name, value in entries}
        elif not isinstance(child, dict):
            parent = ".".join(keys[:depth])
            raise ConfigError(f"cannot set {dotted}: {parent} is {_kind(child)}, which has no keys")
        node = child
    annotation, _ = step(annotation, node, keys[-1], default)
    node[keys[-1]] = _value(annotation, text, override)


def _value(annotation: Any, text: str, source: str) -> Any:
    """`text` as YAML; a key that takes nothing but text (or a list) takes it as it is, unless quoted or `null`."""
    taken = set(members(annotation)) - {types.NoneType}
    is_list = text.startswith("[") and text.endswith("]")  # of a key that takes text or a list
    takes_only_text = taken == {str} or (str in taken and not is_list and all(get_origin(one) for one in taken - {str}))
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if takes_only_text and not is_quoted and text != "null":
        return text
    return config_yaml.parse(text, source)


def _fill(section: type[BaseModel], given: Any, default: Any) -> Any:
    """`given` over the values of the parent's `default`; unknown keys stay, for the check."""
    if not isinstance(given, dict) or not isinstance(default, section) or merges_itself(section):
        return given
    tree = {name: _plain(getattr(default, name)) for name in section.model_fields if name not in given}
    for name, value in given.items():
        field = section.model_fields.get(name)
        tree[name] = value if field is None else _fill_value(field.annotation, value, getattr(default, name))
    return tree


def _fill_value(annotation: Any, given: Any, default: Any) -> Any:
    section = section_for(annotation, given, default) if isinstance(given, dict) else None
    return given if section is None else _fill(section, given, default)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else copy.deepcopy(value)
