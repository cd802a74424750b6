"""A whole conversation as token ids, with the places that are learnt: the assistant's turns, and nothing else.

    rendered   <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n<|im_start|>user\\n...
    learnt                                                          ^^^^^^^^^^^^^^^^^^

What is learnt of a turn is what the model is to write there: from the end of the prompt that it is given for this turn
(the turns before it, rendered with `add_generation_prompt`) to the end token.  This needs a template that
renders a conversation's beginning as the beginning of the conversation.  One that does not, such as Qwen3's, which
leaves the thinking out of all turns but the last, has no single text that holds every turn as it was asked for: such
rows are refused.  Each piece gets tokens of its own, so that a turn has those that sampling would have given it.
"""

from __future__ import annotations

from typing import Any

from rayrlhf.data.messages import Message
from rayrlhf.data.rows import shortened
from rayrlhf.data.templates import rendered, token_ids
from rayrlhf.errors import ConfigError, DataError

_MARK = "wfhzqkpvjx"  # stands for a content, to see what a template puts around it


def encode_conversation(
    tokenizer: Any, messages: list[Message], num_given: int = 0, only_last: bool = False
) -> tuple[list[int], list[bool]]:
    """(token ids, loss mask) of `messages`, which end with an answer of the assistant.

    The loss is on the assistant's turns but those among the first `num_given` messages; with `only_last` on the last
    one alone, which asks nothing of the template.  Raises ConfigError for a tokenizer without a chat template,
    DataError where the template does not render the turns as said above.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} has no chat template, which messages need: set chat_template, "
            "such as chat_template=roles, or put a chat_template.jinja into the model's folder"
        )
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant" and n >= num_given]
    if turns and turns[-1 if only_last else 0] == 0:
        raise DataError(
            f"a conversation begins with the assistant, so nothing asks for that answer: {shortened(messages)}. Put "
            "the user's turn before it in front"
        )
    ids: list[int] = []
    mask: list[bool] = []
    done = ""
    for n in turns[-1:] if only_last else turns:
        before = rendered(tokenizer, messages[:n], is_prompt=True)
        answer, end = _answer(tokenizer, messages[: n + 1], before)
        if not before.startswith(done):
            raise DataError(
                f"the chat template renders earlier turns of a conversation in another way once there are more: "
                f"{_difference(done, before)}. So no one text holds all turns as the model is asked for them: set "
                "data.turns=last (the last answer alone is learnt), or another chat_template"
            )
        piece = token_ids(tokenizer, before[len(done) :])
        learnt = token_ids(tokenizer, answer) + token_ids(tokenizer, end)
        is_last = n == turns[-1]
        if not end and not is_last and not only_last:
            raise DataError(
                "the chat template puts no end token after an answer, so that no model could learn where the answers "
                "before the last one end: write {{ eos_token }} after the assistant's content, or set data.turns=last"
            )
        if not end:
            learnt.append(int(tokenizer.eos_token_id))
        ids += piece + learnt
        mask += [False] * len(piece) + [True] * len(learnt)
        done = before + answer + end
    return ids, mask


def end_of_turn(tokenizer: Any) -> str:
    """The text that the chat template puts after an answer, such as <|im_end|>; "" for none, or no template."""
    if not tokenizer.chat_template:
        return ""
    try:
        return _probed(tokenizer)
    except DataError:  # the template is made for other conversations; a row's own error will say more
        return ""


def _probed(tokenizer: Any) -> str:
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    return _answer(tokenizer, probe, rendered(tokenizer, probe[:1], is_prompt=True))[1].strip()


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The token that ends an answer by the chat template; None where it is none, or not one token."""
    ids = token_ids(tokenizer, end_of_turn(tokenizer))
    return ids[0] if len(ids) == 1 else None


def two_ends(tokenizer: Any) -> str:
    """A note where answers of conversations and those of other rows would end with different tokens; "" else."""
    end = end_of_turn_id(tokenizer)
    if end in (None, tokenizer.eos_token_id):
        return ""
    return (
        f"the chat template ends answers with {tokenizer.convert_ids_to_tokens(end)!r}, and the tokenizer's end token "
        f"is {tokenizer.eos_token!r}: conversations are learnt with the first, other rows with the second. Give the "
        "template as chat_template, or another eos_token, to make them one"
    )


def _answer(tokenizer: Any, messages: list[Message], before: str) -> tuple[str, str]:
    """What the model is to write after `before`: (the last message's content with all that the template puts in
    front of it, the end)."""
    *given, last = messages
    whole, content = rendered(tokenizer, messages), last["content"]
    around = rendered(tokenizer, [*given, last | {"content": _MARK}])
    head, mark, end = around[len(before) :].partition(_MARK)
    # as it stands there, or trimmed; a content that writes its own thinking takes the place of an empty one
    forms = [start + form for form in (content, content.strip()) for start in (head, "")]
    form = next((form for form in forms if whole == before + form + end), None)
    if form is None or not around.startswith(before) or not mark:
        raise DataError(
            "the chat template does not render an answer as it stands in the row, after the prompt that asks for it: "
            f"{_difference(before + head + content + end, whole)}. The answer: {shortened(content)}. Take such rows "
            "out, or set another chat_template"
        )
    return form, end.rstrip()


def _difference(expected: str, found: str) -> str:
    """Where two texts part."""
    place = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
    start = max(0, place - 20)
    return f"{expected[start : place + 60]!r} became {found[start : place + 60]!r}"


def check_end(tokenizer: Any, name: str) -> None:
    """ConfigError unless the template that the key chat_template=`name` gave the tokenizer ends answers with one
    token, at which sampling can stop."""
    try:
        end = _probed(tokenizer)
    except DataError as error:
        raise ConfigError(f"chat_template={name} fails for a question and its answer: {error}") from None
    ids = token_ids(tokenizer, end)
    if not end:
        raise ConfigError(
            f"chat_template={name} puts nothing after an answer, so that no model could learn where one ends: write "
            "{{ eos_token }} after the assistant's content"
        )
    if len(ids) != 1:
        raise ConfigError(
            f"chat_template={name} ends answers with {end!r}, which is {len(ids)} tokens to the tokenizer "
            f"{tokenizer.name_or_path}: take chat_template=roles, which ends them with its end token "
            f"({tokenizer.eos_token!r}), or a tokenizer that has {end!r} as a token"
        )
