"""Chat templates that come with the package, and how a tokenizer gets one."""

from __future__ import annotations

import os
from typing import Any

from rayrlhf.data.conversation import check_end, end_of_turn_id
from rayrlhf.errors import ConfigError

_OPEN = "{% if add_generation_prompt %}"

# OpenAI's ChatML, as Qwen and SmolLM write it, without a system message of its own
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    + _OPEN
    + "<|im_start|>assistant\n{% endif %}"
)
# Llama 3's headers; contents are trimmed, as Meta does
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    + _OPEN
    + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# plain text for any tokenizer: nothing but its end token (and its start token) is special
ROLES = (
    "{{ bos_token }}{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    + _OPEN
    + "### Assistant:\n{% endif %}"
)
SHIPPED = {"chatml": CHATML, "llama3": LLAMA3, "roles": ROLES}


def template_text(name: str) -> str:
    """The Jinja text of a shipped template or of a file; ConfigError where there is neither, or it is no template."""
    if name in SHIPPED:
        return SHIPPED[name]
    if not os.path.isfile(name):
        raise ConfigError(
            f"chat_template={name} is neither a file nor one of {', '.join(SHIPPED)}; null keeps the tokenizer's own"
        )
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template={name} cannot be read: {error}; save it as UTF-8") from error
    _check_syntax(name, text)
    return text


def _check_syntax(name: str, text: str) -> None:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(text)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"chat_template={name} is no Jinja template: {error.message} (line {error.lineno})"
        ) from error
    if "messages" not in text:
        raise ConfigError(f"chat_template={name} does not use `messages`, so every conversation would be the same")


def with_template(tokenizer: Any, text: str, name: str = "") -> Any:
    """`tokenizer`, changed to have the template; the token that ends an answer there becomes its end token.

    Raises ConfigError where the template ends answers with no token of the tokenizer.
    """
    tokenizer.chat_template = text
    check_end(tokenizer, name or "...")
    end = end_of_turn_id(tokenizer)
    if end != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer
