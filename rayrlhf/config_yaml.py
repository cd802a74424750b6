"""The YAML the configuration is written in: YAML 1.2's few scalar forms, and no key twice.

PyYAML reads YAML 1.1, where `1e-4` is a string, `no` is false and `2026-11-22` is a date; a run
named `no` or a learning rate of `1e-4` should be what they look like.  Imports nothing of ours
but `errors`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rayrlhf.errors import ConfigError

_SCALARS = [  # tag, form, first characters; the first form that fits a plain scalar decides
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key.value, str):
                raise ConfigError(f"the key on line {line} is a list or a mapping; keys are words")
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                first = seen[key.value]
                raise ConfigError(f"key {key.value!r} stands twice, on lines {first} and {line}; keep one")
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or the loader above would take for something other than a string."""


for _tag, _form, _first in _SCALARS:
    for _scalars in (_Loader, _Dumper):
        _scalars.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), _first)


def parse(text: str, source: str) -> Any:
    """The value of `text`; `ConfigError` naming `source` when it is no YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{source}{_place(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a number, such as one of 5,000 digits
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def read(path: str) -> Any:
    """The value of the file at `path`; `ConfigError` when it is no text in UTF-8, or no YAML."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return parse(file.read(), path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
        raise ConfigError(
            f"{path} is not UTF-8 ({found}): save it as UTF-8, or give the YAML file that was meant"
        ) from error


def _place(error: yaml.MarkedYAMLError) -> str:
    """Where in the text, what is wrong there, and how such a thing comes about."""
    mark, said = error.problem_mark, error.problem or ""
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    hints = {
        "'\\t'": "indent with spaces",
        "mapping values are not allowed": "keys of one section begin in the same column, and text with ': ' has quotes",
        "expected <block end>": "keys of one section begin in the same column",
        "could not determine a constructor": "text that begins with ! has quotes",
        "document": "a configuration is one document, without ---",
    }
    hint = next((hint for words, hint in hints.items() if words in said), "")
    return f"{where}: not valid YAML: {said}{': ' if hint else ''}{hint}"


def dump(value: Any, flow: bool = False) -> str:
    """`value` as YAML that `parse` reads back; in one line when `flow`."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=flow)
    return text.removesuffix("...\n").strip() if flow else text
