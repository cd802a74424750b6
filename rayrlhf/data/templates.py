"""From prompts and completions to token ids: the one place that knows how the two meet.

A string prompt is one user turn, a list is messages, and "" is no conversation at all: only the
tokenizer's start token.  A tokenizer without a chat template just continues the text of the prompt or of the
user's one message.
"""

from __future__ import annotations

from typing import Any

from rayrlhf.data.rows import shortened
from rayrlhf.errors import ConfigError, DataError, ModelError

Prompt = str | list[dict[str, str]]

# The snippets' own template: a reply continues the text of the user, so that chat requests work on a model
# that knows nothing but snippets.
SNIPPET = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """A document: start token (where there is one), text, end token."""
    return _start(tokenizer) + token_ids(tokenizer, text) + [_end(tokenizer)]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens before a response, up to and with what the chat template puts in front of a reply.

    Raises ConfigError for messages other than one of the user where there is no template.
    """
    if not prompt:
        return _start(tokenizer)
    if not tokenizer.chat_template:
        if not isinstance(prompt, str) and [message["role"] for message in prompt] != ["user"]:
            roles = ", ".join(message["role"] for message in prompt)
            raise ConfigError(
                f"a prompt has messages of {roles}, and the tokenizer {tokenizer.name_or_path} no chat template to "
                "tell them apart: set chat_template (sft, reward_model, dpo, kto: chat_template=roles), or put a "
                "chat_template.jinja into the model's folder"
            )
        return _start(tokenizer) + token_ids(tokenizer, as_text(prompt))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return token_ids(tokenizer, rendered(tokenizer, messages, is_prompt=True))


def encode_completion(tokenizer: Any, completion: str) -> list[int]:
    """The tokens of a response, the end token last."""
    return token_ids(tokenizer, completion) + [_end(tokenizer)]


def rendered(tokenizer: Any, messages: list[dict[str, str]], is_prompt: bool = False) -> str:
    """The text of a conversation, `is_prompt`: with what stands in front of a reply.  DataError where the chat
    template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt))
    except Exception as error:  # what is in a template may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template refuses a conversation of {roles}: {error}. The row: {shortened(messages)}"
        ) from error


def as_text(prompt: Prompt) -> str:
    """A prompt for the eye: its string, or its messages' contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of `text` itself, without any that the tokenizer would put around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _start(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path} has no end token, so a response can never end. "
            "Set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)
