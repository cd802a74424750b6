"""`--help` of a job: every key of its configuration, with type, default and description."""

from __future__ import annotations

import textwrap
import types
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from rayrlhf import config_yaml
from rayrlhf.config import Section
from rayrlhf.config_keys import keys_of, members, summary

_WIDTH = 100
_PROFILE = (
    "  --profile [3 | 5-6]",
    "                   write a trace and a table of every process's operators in these steps (3, where",
    "                   none are given) and Ray's timeline of them to ROOT/NAME/profile/STAGE",
)


def help_text(cls: type[Section], job: str, can_profile: bool = False) -> str:
    """The whole `--help` of `job`, whose configuration is a `cls`."""
    options = " [--profile [STEPS]]" if can_profile else ""
    lines = [
        f"usage: rayrlhf {job} [CONFIG.yaml] [key=value ...] [--help | --print-config | --dry-run]{options}",
        "",
        *textwrap.wrap(summary(cls), _WIDTH),
        "",
        "  --print-config   print the whole configuration as YAML and stop",
        "  --dry-run        print what would be placed where, asked against available, and stop",
        *(_PROFILE if can_profile else ()),
        "",
        "Keys (section.key=value on the command line, nested in YAML):",
    ]
    for key in keys_of(cls):
        if key.is_section:
            lines += ["", f"{key.dotted}: {key.description}" if key.description else key.dotted]
            continue
        default = "required" if key.is_required else f"= {_shown(key.default)}"
        lines.append(f"  {key.dotted}  ({type_name(key.annotation)})  {default}")
        lines += textwrap.wrap(key.description, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def type_name(annotation: Any) -> str:
    """As the user should read it: `int`, `float | null`, `'gae' | 'rloo'`, `list of str`, `NAME: Pool`."""
    names = []
    for member in members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if member is types.NoneType:
            names.append("null")
        elif origin is Literal:
            names += [_shown(value) for value in arguments]
        elif origin is dict:
            names.append(f"mapping of NAME: {type_name(arguments[1])}")
        elif origin in (list, tuple):
            names.append(f"list of {type_name(arguments[0])}")
        elif isinstance(member, type) and issubclass(member, BaseModel):
            names.append(f"section {member.__name__}")
        else:
            names.append(getattr(member, "__name__", str(member)))
    return " | ".join(names)


def _shown(value: Any) -> str:
    return " ".join(config_yaml.dump(_plain(value), flow=True).split())


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
