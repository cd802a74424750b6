"""Conversations as data sets write them, read into one form: a list of {"role", "content"}, both strings.

OpenAI, TRL, verl   [{"role": "user", "content": "..."}, ...]; content may also be a list of text parts
ShareGPT            [{"from": "human", "value": "..."}, ...]
"""

from __future__ import annotations

from typing import Any

from rayrlhf.data.rows import Row, shortened

Message = dict[str, str]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TOOLS = {"tool", "function", "function_call", "observation", "tool_call", "ipython"}


def are_turns(value: Any, *keys: str) -> bool:
    """Whether `value` is a list of objects that have all of `keys`, and not empty."""
    return isinstance(value, list) and bool(value) and all(_has(turn, keys) for turn in value)


def is_turn(value: Any) -> bool:
    """Whether `value` is one object of a conversation."""
    return _has(value, ("role", "content")) or _has(value, ("from", "value"))


def _has(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)


def message(turn: Any, name: str) -> Message:
    """One turn of the column `name`; ValueError where it is none, or one of a tool."""
    if not is_turn(turn):
        raise ValueError(f"{name} holds {shortened(turn)}, which is no message: expected role/content or from/value")
    role, content = (turn["role"], turn["content"]) if "role" in turn else (turn["from"], turn["value"])
    if not isinstance(role, str):
        raise ValueError(f"{name} has a turn whose role is {shortened(role)} ({type(role).__name__}), not a string")
    if role in _TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError(
            f"{name} has a turn of a tool ({shortened(turn)}): tool calls are not supported; write them out as text of "
            "the assistant and the user, or leave such rows out"
        )
    if role not in ROLES:
        raise ValueError(
            f"{name} has the role {shortened(role)}; there are {', '.join(ROLES)}. The turn: {shortened(turn)}"
        )
    if isinstance(content, list) and all(
        _has(part, ("text",)) and isinstance(part["text"], str) and part.get("type", "text") == "text"
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(
            f"{name} has a turn whose content is {shortened(content)} ({type(content).__name__}), not a string"
        )
    return {"role": ROLES[role], "content": content}


def conversation(value: Any, name: str) -> list[Message]:
    """All turns of a column: of one message or more, a system message only at the beginning."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {shortened(value)} ({type(value).__name__}), not a list of messages")
    found = [message(turn, name) for turn in value]
    if any(turn["role"] == "system" for turn in found[1:]):
        raise ValueError(f"{name} has a system message after the first place: {shortened(value)}")
    return found


def answer_text(value: Any, name: str) -> str:
    """An answer as text: a string, a message of the assistant, or a list of just that."""
    turn = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(turn, str):
        return turn
    found = message(turn, name)
    if found["role"] != "assistant":
        raise ValueError(f"{name} has a turn of the {found['role']}, not of the assistant: {shortened(value)}")
    return found["content"]


def asked(value: Any, name: str) -> list[Message]:
    """A prompt as messages: a string is one turn of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else conversation(value, name)


def with_system(row: Row, turns: list[Message]) -> list[Message]:
    """`turns` after the row's `system` column, where it has one and says something."""
    system = row.get("system")
    if not system:
        return turns
    if not isinstance(system, str):
        raise ValueError(f"system is {shortened(system)} ({type(system).__name__}), not a string")
    if turns[0]["role"] == "system":
        raise ValueError(f"the row has a system column and a system message: {shortened(turns[0]['content'])}")
    return [{"role": "system", "content": system}, *turns]


def up_to_last_answer(turns: list[Message], name: str) -> list[Message]:
    """`turns` without what follows the last answer, which nothing is learnt from; ValueError where none answers."""
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise ValueError(f"{name} has no turn of the assistant, so nothing to learn: {shortened(turns)}")
    return turns[: answers[-1] + 1]


def before_answer(turns: list[Message]) -> list[Message]:
    """`turns` as a prompt: all that stands before a last answer."""
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns
